"""Orders and opening stock from files.

UCI Online Retail has one row per invoice line. Consecutive rows of one invoice are one order event with the
invoice's number as its order id: a return where all its quantities are negative (invoices whose number
begins with C, and write-offs), an order otherwise. Nothing is mended or left out here: what no order can
hold (no quantity, a price below zero) is sent as it is, and stands in the dead letters with its reason. An
invoice that goes on after rows of another one is a second event for its order, which the saga refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import groupby
from typing import Any

import pyarrow as pa

from connectors.files import Event, FileSource
from schemas.declare import Topic
from schemas.orders import ORDER_EVENTS, STOCK_RECEIPTS
from schemas.orders.limits import PLACED, RETURNED

RETAIL_CURRENCY = "GBP"
"""The file names none; it is a British shop's."""

OPENING_AT_MS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1000)
"""When opening stock without a time of its own arrived: before everything else."""

_REFUSED = -1
"""Stands for a missing number: no quantity and no price, so that the intake refuses it by name."""


def _retail(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    rows = zip(
        batch["invoice_no"].to_pylist(),
        batch["invoiced_at"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist(),
        batch["customer_id"].to_pylist(),
        batch["sku"].to_pylist(),
        batch["quantity"].to_pylist(),
        batch["unit_price"].to_pylist(),
        strict=True,
    )
    row_number = first_row
    for invoice, group in groupby(rows, key=lambda row: row[0]):
        lines = list(group)
        is_return = all((quantity or 0) < 0 for *_, quantity, _ in lines)
        yield (
            ORDER_EVENTS,
            {
                "event_id": f"online-retail/{invoice}/{row_number}",
                "tenant": "default",
                "occurred_at": lines[0][1],
                "order_id": "" if invoice is None else str(invoice),
                "kind": RETURNED if is_return else PLACED,
                "customer_id": _customer(lines[0][2]),
                "currency": RETAIL_CURRENCY,
                "lines": [
                    {
                        "sku": str(sku or "").strip(),
                        "quantity": _REFUSED if quantity is None else -quantity if is_return else quantity,
                        "unit_price_minor": _minor(price),
                    }
                    for _, _, _, sku, quantity, price in lines
                ],
            },
        )
        row_number += len(lines)


def _customer(text: Any) -> str | None:
    # The file went through a table of floats: 17850.0
    return None if text is None or text != text else str(text).strip().removesuffix(".0") or None


def _minor(price: float | None) -> int:
    if price is None or price != price:
        return _REFUSED
    # By way of the shortest text, as 1.005 is meant where the float says 1.00499999...
    return int((Decimal(repr(price)) * 100).to_integral_value(ROUND_HALF_EVEN))


def _opening_stock(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    for sku, quantity in zip(batch["sku"].to_pylist(), batch["quantity"].to_pylist(), strict=True):
        yield STOCK_RECEIPTS, opening_receipt(str(sku), _REFUSED if quantity is None else int(quantity))


def opening_receipt(sku: str, quantity: int, part: int = 0) -> Event:
    """Opening stock as a receipt. Its id is the SKU's: sent again it has no effect, and with another
    quantity it is refused."""
    return {
        "event_id": f"opening-stock/{sku}/{part}",
        "tenant": "default",
        "occurred_at": OPENING_AT_MS,
        "sku": sku,
        "quantity": quantity,
    }


FILES: tuple[FileSource, ...] = (
    FileSource(
        name="online-retail",
        topic=ORDER_EVENTS,
        columns=frozenset({"invoice_no", "sku", "quantity", "invoiced_at", "unit_price", "customer_id"}),
        events=_retail,
        whole="invoice_no",
    ),
    FileSource(
        name="opening-stock",
        topic=STOCK_RECEIPTS,
        columns=frozenset({"sku", "quantity"}),
        events=_opening_stock,
    ),
)
