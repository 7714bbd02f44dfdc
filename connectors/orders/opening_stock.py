"""Opening stock derived from a file of orders: a share of what it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import pyarrow as pa

from connectors.files import Event
from connectors.orders.files import opening_receipt
from schemas.orders.limits import MAX_QUANTITY


def opening_stock(batches: Iterable[pa.RecordBatch], share: Fraction) -> dict[str, int]:
    """Units per SKU: `share` of the sum of its positive quantities, rounded down; SKUs with none left out.

    The batches have the columns `sku` and `quantity`.
    """
    demand: dict[str, int] = {}
    for batch in batches:
        for sku, quantity in zip(batch["sku"].to_pylist(), batch["quantity"].to_pylist(), strict=True):
            if quantity is not None and quantity > 0:
                demand[sku.strip()] = demand.get(sku.strip(), 0) + quantity
    stock = {sku: units * share.numerator // share.denominator for sku, units in sorted(demand.items())}
    return {sku: units for sku, units in stock.items() if units}


def receipts(stock: dict[str, int]) -> Iterator[Event]:
    """The events of `stock-receipts` that book `stock`, in parts where one receipt cannot hold it."""
    for sku, units in stock.items():
        for part, start in enumerate(range(0, units, MAX_QUANTITY)):
            yield opening_receipt(sku, min(MAX_QUANTITY, units - start), part)
