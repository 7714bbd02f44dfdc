"""The stateless ends of the saga: check what came from outside, and merge inputs through one topic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from schemas.orders import INTAKE, ORDER_LOG, RECEIPTS, STOCK_COMMANDS, STOCK_RESULTS
from schemas.orders.limits import (
    CANCELLED,
    CURRENCY,
    EVENT_ID,
    IDENTIFIER,
    KINDS,
    MAX_LINES,
    MAX_QUANTITY,
    MAX_UNIT_PRICE_MINOR,
)
from streams.decide import Event, NoState, Outcomes, Record, Versions
from streams.orders.unversioned import Unversioned

_IDENTIFIER = re.compile(IDENTIFIER)
_EVENT_ID = re.compile(EVENT_ID)
_CURRENCY = re.compile(CURRENCY)

Fault = tuple[str, str]
"""Field and reason of a refusal."""


def _identifier_fault(event: Event, *fields: str) -> Fault | None:
    if not _EVENT_ID.fullmatch(event["event_id"]):
        return "event_id", "event_id must have 1 to 200 characters and no control character; send another id"
    if event["occurred_at"] < 0:
        return "occurred_at", "occurred_at lies before 1970; send the time in milliseconds since then"
    for field in ("tenant", *fields):
        if not _IDENTIFIER.fullmatch(event[field]):
            return field, (
                f"{field} {event[field]!r:.80} must have 1 to 64 characters, no slash and no blank at its "
                f"ends; send the event with another {field}"
            )
    return None


def order_event_fault(event: Event) -> Fault | None:
    """Field and reason why an event of `order-events` cannot be accepted; None where it can."""
    if fault := _identifier_fault(event, "order_id"):
        return fault
    kind, lines = event["kind"], event["lines"]
    if kind not in KINDS:
        return "kind", f"kind {kind!r:.80} is unknown; send one of {', '.join(KINDS)}"
    if event["customer_id"] is not None and not _IDENTIFIER.fullmatch(event["customer_id"]):
        return "customer_id", "customer_id must have 1 to 64 characters and no slash; send null if unknown"
    if kind == CANCELLED:
        return ("lines", "a cancellation is for the whole order; send it without lines") if lines else None
    if event["currency"] is None or not _CURRENCY.fullmatch(event["currency"]):
        return "currency", f"currency {event['currency']!r:.80} is no ISO 4217 code; send one such as EUR"
    if not 1 <= len(lines) <= MAX_LINES:
        return "lines", f"an order has 1 to {MAX_LINES} lines, not {len(lines)}; split or complete it"
    for n, line in enumerate(lines):
        if not _IDENTIFIER.fullmatch(line["sku"]):
            return f"lines[{n}].sku", f"SKU {line['sku']!r:.80} must have 1 to 64 characters and no slash"
        if not 1 <= line["quantity"] <= MAX_QUANTITY:
            return f"lines[{n}].quantity", (
                f"quantity {line['quantity']} is not between 1 and {MAX_QUANTITY}; for goods given back send "
                "kind returned with positive quantities"
            )
        if not 0 <= line["unit_price_minor"] <= MAX_UNIT_PRICE_MINOR:
            return f"lines[{n}].unit_price_minor", (
                f"price {line['unit_price_minor']} is not between 0 and {MAX_UNIT_PRICE_MINOR} minor units; "
                "send a correction of money elsewhere, orders only move goods"
            )
    return None


def one_line_per_sku(lines: Sequence[Event]) -> list[Event]:
    """Lines with the same SKU summed into one, in SKU order.

    The order is what keeps two orders from each holding what the other still needs.
    """
    quantities: dict[str, int] = {}
    amounts: dict[str, int] = {}
    for line in lines:
        sku, quantity = line["sku"], line["quantity"]
        quantities[sku] = quantities.get(sku, 0) + quantity
        amounts[sku] = amounts.get(sku, 0) + quantity * line["unit_price_minor"]
    return [
        {"sku": sku, "quantity": quantities[sku], "amount_minor": amounts[sku]} for sku in sorted(quantities)
    ]


class Intake(Unversioned):
    """Merges order events and stock results into `order-log`, whose order is the truth for the saga."""

    def new_state(self) -> NoState:
        return NoState()

    def decide(self, state: NoState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        for record in records:
            event = record.event
            if record.topic == STOCK_RESULTS.name:
                # A receive belongs to no order: it ends in the sink's ledger.
                if event["kind"] != "receive":
                    out.emit(ORDER_LOG, _entry(event, stock_result=_stock_answer(event)))
            elif fault := order_event_fault(event):
                out.dead_letter(record, *fault)
            else:
                out.emit(ORDER_LOG, _entry(event, order_event=_checked(event)))


def _checked(event: Event) -> Event:
    return {
        "kind": event["kind"],
        "customer_id": event["customer_id"],
        "currency": event["currency"],
        "lines": one_line_per_sku(event["lines"]),
    }


def _stock_answer(event: Event) -> Event:
    return {name: event[name] for name in ("sku", "kind", "outcome", "reason")}


def _entry(event: Event, order_event: Any = None, stock_result: Any = None) -> Event:
    return {
        "event_id": event["event_id"],
        "tenant": event["tenant"],
        "occurred_at": event["occurred_at"],
        "order_id": event["order_id"],
        "order_event": order_event,
        "stock_result": stock_result,
        "code_version": INTAKE.code_version,
    }


def receipt_fault(event: Event) -> Fault | None:
    """Field and reason why an event of `stock-receipts` cannot be accepted; None where it can."""
    if fault := _identifier_fault(event, "sku"):
        return fault
    if not 1 <= event["quantity"] <= MAX_QUANTITY:
        return "quantity", (
            f"quantity {event['quantity']} is not between 1 and {MAX_QUANTITY}; send what arrived, in parts "
            "if it is more"
        )
    return None


class Receipts(Unversioned):
    """Turns stock receipts into receive commands, so that each SKU has one log for all that moves it."""

    def new_state(self) -> NoState:
        return NoState()

    def decide(self, state: NoState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        for record in records:
            event = record.event
            if fault := receipt_fault(event):
                out.dead_letter(record, *fault)
                continue
            out.emit(
                STOCK_COMMANDS,
                {
                    "event_id": f"{event['tenant']}/{event['sku']}/{event['event_id']}/receive",
                    "tenant": event["tenant"],
                    "occurred_at": event["occurred_at"],
                    "sku": event["sku"],
                    "kind": "receive",
                    "order_id": None,
                    "quantity": event["quantity"],
                    "input_id": event["event_id"],
                    "issued_at": record.append_ms,
                    "code_version": RECEIPTS.code_version,
                },
            )
