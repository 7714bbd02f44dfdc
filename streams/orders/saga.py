"""An order as a fold of the order log: reserve its lines one by one, and give back what it cannot keep.

    placed ─► PENDING ──all lines held──► CONFIRMED ──cancelled──► CANCELLING ─► CANCELLED
                 │  └────cancelled──────────────────────────────────►┘
                 └──a line rejected──► REJECTING ─► REJECTED
    returned ─► RETURNING ─► RETURNED

The states in -ING wait for the answers to what was asked of the stock; one is passed over when there is
nothing to wait for.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from schemas.orders import ORDER_STATUS, SAGA, STOCK_COMMANDS
from schemas.orders.limits import CANCELLED, MAX_EVENTS_PER_ORDER, PLACED, RETURNED
from streams.decide import Event, KeyedState, Outcomes, Record, Versions
from streams.orders.unversioned import Unversioned


class Line(msgspec.Struct, array_like=True):
    """One SKU of an order.

    waiting ─► asked ─► held | rejected; held ─► releasing ─► released; restocking ─► restocked.
    """

    sku: str
    quantity: int
    amount_minor: int
    state: str


class Order(msgspec.Struct, array_like=True):
    """An order, or a return, with the input whose consequences are on their way.

    `version` counts status records. `seen` has a digest of the content of every event id. Lines are in
    SKU order, and are forgotten once the order holds nothing and waits for nothing.
    """

    status: str = "UNKNOWN"
    version: int = 0
    reason: str | None = None
    customer_id: str | None = None
    currency: str | None = None
    total_minor: int = 0
    placed_at: int | None = None
    input_id: str = ""
    input_kind: str = ""
    occurred_at: int = 0
    lines: list[Line] = []
    seen: dict[str, int] = {}


_SETTLES = {"REJECTING": "REJECTED", "CANCELLING": "CANCELLED", "RETURNING": "RETURNED"}
_AWAITED = frozenset({"asked", "releasing", "restocking"})
_ANSWERS = {
    ("asked", "reserve", "reserved"): "held",
    ("asked", "reserve", "rejected"): "rejected",
    ("releasing", "release", "released"): "released",
    ("restocking", "restock", "restocked"): "restocked",
}
"""A line's state, the command answered and the outcome: the line's next state. All else is a repeat."""


class Saga(Unversioned):
    """Owns orders. Commands its lines' stock in SKU order and answers every order event with a status."""

    def new_state(self) -> KeyedState[Order]:
        return KeyedState(Order)

    def decide(
        self, state: KeyedState[Order], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        for record in records:
            entry = record.event
            key = f"{entry['tenant']}/{entry['order_id']}"
            order = state.get(key)
            step = _Step(record, Order() if order is None else order, out)
            if entry["order_event"] is not None:
                changed = step.order_event(entry["order_event"])
            elif order is None or entry["stock_result"] is None:
                changed = False
                out.dead_letter(
                    record,
                    "order_id",
                    "an order event, or the answer to a command of this order, is missing; send orders "
                    "through order-events",
                )
            else:
                changed = step.stock_result(entry["stock_result"])
            if changed:
                state.put(key, step.order)


class _Step:
    """One record's effect on its order. The methods return whether the order has changed."""

    def __init__(self, record: Record, order: Order, out: Outcomes) -> None:
        self.record = record
        self.order = order
        self.out = out

    def order_event(self, event: Event) -> bool:
        order, event_id = self.order, self.record.event["event_id"]
        digest = _digest(event)
        if event_id in order.seen:
            if order.seen[event_id] == digest:
                self.out.duplicate()
            else:
                self.out.dead_letter(
                    self.record,
                    "event_id",
                    "the id was used before with other content; send it with an id of its own",
                )
            return False
        if len(order.seen) >= MAX_EVENTS_PER_ORDER:
            self.out.dead_letter(
                self.record,
                "order_id",
                f"the order has had {MAX_EVENTS_PER_ORDER} events, which is the most; place a new order",
                "limit",
            )
            return False
        order.seen[event_id] = digest
        kind = event["kind"]
        if kind in (PLACED, RETURNED) and order.status == "UNKNOWN":
            self._open(event)
        elif kind == CANCELLED and order.status in ("PENDING", "CONFIRMED"):
            self._take_input(kind)
            self._give_back("CANCELLING")
        else:
            self._refuse(kind)
        return True

    def stock_result(self, answer: Event) -> bool:
        order = self.order
        at = bisect_left(order.lines, answer["sku"], key=lambda line: line.sku)
        line = order.lines[at] if at < len(order.lines) and order.lines[at].sku == answer["sku"] else None
        if line is None:
            self.out.duplicate()
            return False
        state = _ANSWERS.get((line.state, answer["kind"], answer["outcome"]))
        if state is None:
            self.out.duplicate()
            return False
        line.state = state
        if order.status == "PENDING":
            if state == "held":
                self._ask_next(at + 1)
            else:
                order.reason = f"{line.sku}: {answer['reason']}"
                self._give_back("REJECTING")
        else:
            if state == "held":
                # Cancelled while the reservation was on its way.
                self._command(line, "release", "releasing")
            self._settle()
        return True

    def _open(self, event: Event) -> None:
        order = self.order
        self._take_input(event["kind"])
        order.placed_at = order.occurred_at
        order.customer_id, order.currency = event["customer_id"], event["currency"]
        order.total_minor = sum(line["amount_minor"] for line in event["lines"])
        order.lines = [
            Line(line["sku"], line["quantity"], line["amount_minor"], "waiting") for line in event["lines"]
        ]
        if event["kind"] == PLACED:
            self._command(order.lines[0], "reserve", "asked")
            self._move("PENDING")
        else:
            for line in order.lines:
                self._command(line, "restock", "restocking")
            self._move("RETURNING")

    def _take_input(self, kind: str) -> None:
        entry = self.record.event
        self.order.input_id, self.order.input_kind = entry["event_id"], kind
        self.order.occurred_at = entry["occurred_at"]

    def _ask_next(self, at: int) -> None:
        if at < len(self.order.lines):
            self._command(self.order.lines[at], "reserve", "asked")
        else:
            self._move("CONFIRMED")

    def _give_back(self, status: str) -> None:
        for line in self.order.lines:
            if line.state == "held":
                self._command(line, "release", "releasing")
        if any(line.state in _AWAITED for line in self.order.lines):
            self._move(status)
        else:
            self.order.status = status
            self._settle()

    def _settle(self) -> None:
        order = self.order
        if not any(line.state in _AWAITED for line in order.lines):
            self._move(_SETTLES[order.status])
            order.lines = []

    def _command(self, line: Line, kind: str, state: str) -> None:
        line.state = state
        entry, order = self.record.event, self.order
        self.out.emit(
            STOCK_COMMANDS,
            {
                "event_id": f"{entry['tenant']}/{entry['order_id']}/{line.sku}/{kind}",
                "tenant": entry["tenant"],
                "occurred_at": order.occurred_at,
                "sku": line.sku,
                "kind": kind,
                "order_id": entry["order_id"],
                "quantity": line.quantity,
                "input_id": order.input_id,
                "issued_at": self.record.append_ms,
                "code_version": SAGA.code_version,
            },
        )

    def _move(self, status: str) -> None:
        order = self.order
        order.status = status
        self._emit_status(
            input_id=order.input_id,
            input_kind=order.input_kind,
            occurred_at=order.occurred_at,
            outcome="accepted",
            reason=order.reason,
            lines=[
                {
                    "sku": line.sku,
                    "quantity": line.quantity,
                    "amount_minor": line.amount_minor,
                    "state": line.state,
                }
                for line in order.lines
            ],
        )

    def _refuse(self, kind: str) -> None:
        status = self.order.status
        if status == "UNKNOWN":
            reason = "there is no such order; place it first, then cancel it with a new event id"
        elif kind == CANCELLED:
            reason = f"the order is {status} and cannot be cancelled any more"
        else:
            reason = f"the order id is taken, its order is {status}; use an order id of its own"
        self._emit_status(
            input_id=self.record.event["event_id"],
            input_kind=kind,
            occurred_at=self.record.event["occurred_at"],
            outcome="refused",
            reason=reason,
            lines=[],
        )

    def _emit_status(
        self,
        *,
        input_id: str,
        input_kind: str,
        occurred_at: int,
        outcome: str,
        reason: str | None,
        lines: list[Event],
    ) -> None:
        order, entry = self.order, self.record.event
        order.version += 1
        self.out.emit(
            ORDER_STATUS,
            {
                "event_id": f"{entry['tenant']}/{entry['order_id']}/{order.version}",
                "tenant": entry["tenant"],
                "occurred_at": occurred_at,
                "order_id": entry["order_id"],
                "version": order.version,
                "input_id": input_id,
                "input_kind": input_kind,
                "outcome": outcome,
                "status": order.status,
                "reason": reason,
                "customer_id": order.customer_id,
                "currency": order.currency,
                "total_minor": order.total_minor,
                "placed_at": order.placed_at,
                "lines": lines,
                "code_version": SAGA.code_version,
            },
        )


def _digest(event: Event) -> int:
    """64 bits of an order event's content. Not of its time: a client that repeats a request whose time
    the gateway filled in must not be refused, and the time decides nothing here."""
    lines = ((line["sku"], line["quantity"], line["amount_minor"]) for line in event["lines"])
    content = msgspec.msgpack.encode((event["kind"], event["customer_id"], event["currency"], tuple(lines)))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
