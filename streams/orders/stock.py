"""A SKU's stock as a pure fold of its command log: the log alone decides who gets the last unit."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from schemas.declare import DAY_MS
from schemas.orders import COMMAND_HORIZON_MS, RECEIPT_HORIZON_MS, STOCK, STOCK_RESULTS
from streams.decide import Event, KeyedState, Outcomes, Record, Versions
from streams.orders.unversioned import Unversioned


class Balance(msgspec.Struct, array_like=True, gc=False):
    """A SKU's stock. `reserved` is part of `on_hand`; `version` counts the commands applied."""

    on_hand: int = 0
    reserved: int = 0
    version: int = 0


class Answer(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a command came to; with the command itself it gives the result again, byte for byte."""

    asked: int
    outcome: str
    reason: str | None
    quantity: int
    on_hand: int
    reserved: int
    version: int


class Holding(msgspec.Struct, array_like=True):
    """What one order holds of one SKU, and the answers to its commands: each kind comes once."""

    held: int = 0
    issued_at: int = 0
    reserve: Answer | None = None
    release: Answer | None = None
    restock: Answer | None = None


class Receipt(msgspec.Struct, array_like=True, frozen=True):
    """A receipt that was applied: its event time and the answer."""

    occurred_at: int
    answer: Answer


class StockState:
    """Stock of the SKUs of one partition: balances, holdings per order, and receipts by id.

    Bounded: a holding goes `COMMAND_HORIZON_MS` after the order gave everything back, a receipt's id
    once it lies `RECEIPT_HORIZON_MS` behind the SKU's newest one.
    """

    def __init__(self) -> None:
        self.balances = KeyedState(Balance)
        self.holdings = KeyedState(Holding)
        self.receipts: KeyedState[dict[str, Receipt]] = KeyedState(dict[str, Receipt])
        self._parts: tuple[KeyedState[Any], ...] = (self.balances, self.holdings, self.receipts)
        self._idle: deque[tuple[int, str]] | None = deque()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(tuple[bytes | None, bytes | None, bytes | None])

    def delta(self) -> bytes | None:
        parts = [part.delta() for part in self._parts]
        return self._encoder.encode(parts) if any(part is not None for part in parts) else None

    def snapshot(self) -> Iterator[bytes]:
        for n, part in enumerate(self._parts):
            for chunk in part.snapshot():
                yield self._encoder.encode([chunk if n == i else None for i in range(3)])

    def load(self, chunk: bytes) -> None:
        parts = self._decoder.decode(chunk)
        for keyed, part in zip(self._parts, parts, strict=True):
            if part is not None:
                keyed.load(part)
        self._idle = None

    def keep(self, key: str, holding: Holding) -> None:
        """Store a holding after a command was applied to it."""
        self.holdings.put(key, holding)
        if not holding.held and self._idle is not None:
            self._idle.append((holding.issued_at, key))

    def forget(self, now_ms: int) -> None:
        """Drop holdings that no accepted command can name any more. `now_ms` is a broker's append time.

        A day later than commands are refused, as append times may step back when the leader changes.
        """
        if self._idle is None:
            self._idle = deque(sorted((h.issued_at, key) for key, h in self.holdings.items() if not h.held))
        limit = now_ms - COMMAND_HORIZON_MS - DAY_MS
        while self._idle and self._idle[0][0] < limit:
            _, key = self._idle.popleft()
            holding = self.holdings.get(key)
            if holding is not None and not holding.held and holding.issued_at < limit:
                self.holdings.delete(key)


class Stock(Unversioned):
    """Owns the stock of its SKUs: receives, reserves or rejects, releases, restocks. Never below zero."""

    def new_state(self) -> StockState:
        return StockState()

    def decide(self, state: StockState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        for record in records:
            command = record.event
            if command["quantity"] < 1 or (command["order_id"] is None) != (command["kind"] == "receive"):
                out.dead_letter(
                    record,
                    "quantity" if command["quantity"] < 1 else "order_id",
                    "a command moves 1 unit or more, and names an order exactly when it is no receive; "
                    "send stock through stock-receipts and orders through order-events",
                )
            elif command["kind"] == "receive":
                _receive(state, record, out)
            elif command["kind"] in ("reserve", "release", "restock"):
                _apply_for_order(state, record, out)
            else:
                out.dead_letter(
                    record,
                    "kind",
                    f"kind {command['kind']!r:.80} is unknown; send receive, reserve, release or restock",
                )
        if records:
            state.forget(records[-1].append_ms)


def _receive(state: StockState, record: Record, out: Outcomes) -> None:
    command = record.event
    sku = f"{command['tenant']}/{command['sku']}"
    balance = state.balances.get(sku) or Balance()
    receipts = state.receipts.get(sku) or {}
    if known := receipts.get(command["input_id"]):
        _repeat(record, known.answer, out)
        return
    newest = max((r.occurred_at for r in receipts.values()), default=command["occurred_at"])
    if command["occurred_at"] < newest - RECEIPT_HORIZON_MS:
        out.dead_letter(
            record,
            "occurred_at",
            f"the receipt is over {RECEIPT_HORIZON_MS // DAY_MS} days older than the SKU's newest one, so "
            "whether it was booked before is no longer known; send it with a new id and a later time",
            "late",
        )
        return
    balance.on_hand += command["quantity"]
    balance.version += 1
    answer = _answer(command, "received", None, command["quantity"], balance)
    newest = max(newest, command["occurred_at"])
    receipts = {i: r for i, r in receipts.items() if r.occurred_at >= newest - RECEIPT_HORIZON_MS}
    receipts[command["input_id"]] = Receipt(command["occurred_at"], answer)
    state.receipts.put(sku, receipts)
    state.balances.put(sku, balance)
    out.emit(STOCK_RESULTS, _result(command, answer))


def _apply_for_order(state: StockState, record: Record, out: Outcomes) -> None:
    command = record.event
    kind, quantity = command["kind"], command["quantity"]
    if record.append_ms - command["issued_at"] > COMMAND_HORIZON_MS:
        out.dead_letter(
            record,
            "issued_at",
            f"the command's cause is over {COMMAND_HORIZON_MS // DAY_MS} days old, so whether it was applied "
            "before is no longer known; compare stock_ledger with order_lines and correct by a receipt",
            "late",
        )
        return
    sku = f"{command['tenant']}/{command['sku']}"
    key = f"{sku}/{command['order_id']}"
    balance = state.balances.get(sku) or Balance()
    holding = state.holdings.get(key) or Holding()
    known: Answer | None = getattr(holding, kind)
    if known is not None:
        _repeat(record, known, out)
        return
    balance.version += 1
    if kind == "reserve":
        available = balance.on_hand - balance.reserved
        if holding.release is not None:
            answer = _answer(command, "rejected", "the order has given this line back already", 0, balance)
        elif quantity > available:
            answer = _answer(command, "rejected", f"{quantity} asked, {available} available", 0, balance)
        else:
            holding.held = quantity
            balance.reserved += quantity
            answer = _answer(command, "reserved", None, quantity, balance)
        holding.reserve = answer
    elif kind == "release":
        freed, holding.held = holding.held, 0
        balance.reserved -= freed
        answer = holding.release = _answer(command, "released", None, freed, balance)
    else:
        balance.on_hand += quantity
        answer = holding.restock = _answer(command, "restocked", None, quantity, balance)
    holding.issued_at = max(holding.issued_at, command["issued_at"])
    state.balances.put(sku, balance)
    state.keep(key, holding)
    out.emit(STOCK_RESULTS, _result(command, answer))


def _repeat(record: Record, known: Answer, out: Outcomes) -> None:
    if known.asked != record.event["quantity"]:
        out.dead_letter(
            record,
            "quantity",
            f"the id was used before for {known.asked} units, now for {record.event['quantity']}; "
            "send it with an id of its own",
        )
        return
    out.duplicate()
    out.emit(STOCK_RESULTS, _result(record.event, known))


def _answer(command: Event, outcome: str, reason: str | None, quantity: int, balance: Balance) -> Answer:
    return Answer(
        command["quantity"], outcome, reason, quantity, balance.on_hand, balance.reserved, balance.version
    )


def _result(command: Event, answer: Answer) -> Event:
    return {
        "event_id": command["event_id"],
        "tenant": command["tenant"],
        "occurred_at": command["occurred_at"],
        "order_id": command["order_id"] if command["order_id"] is not None else f"stock:{command['sku']}",
        "sku": command["sku"],
        "kind": command["kind"],
        "outcome": answer.outcome,
        "reason": answer.reason,
        "quantity": answer.quantity,
        "on_hand": answer.on_hand,
        "reserved": answer.reserved,
        "available": answer.on_hand - answer.reserved,
        "version": answer.version,
        "input_id": command["input_id"],
        "code_version": STOCK.code_version,
    }
