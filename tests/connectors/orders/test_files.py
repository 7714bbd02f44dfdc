"""Orders and opening stock from files."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.files import Event, FileSource
from connectors.orders.files import FILES
from connectors.orders.opening_stock import opening_stock, receipts
from schemas.orders import ORDER_EVENTS, STOCK_RECEIPTS
from schemas.orders.limits import MAX_QUANTITY

SOURCES: dict[str, FileSource] = {source.name: source for source in FILES}
AT = datetime(2010, 12, 1, 8, 26)  # noqa: DTZ001 - the file's times have no zone


def rows(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    """Invoice, SKU, quantity, price, customer; all at the same minute."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "invoice_no": invoice,
                "sku": sku,
                "description": None,
                "quantity": quantity,
                "invoiced_at": AT,
                "unit_price": price,
                "customer_id": customer,
                "country": "United Kingdom",
            }
            for invoice, sku, quantity, price, customer in rows
        ],
        schema=pa.schema(
            {
                "invoice_no": pa.large_string(),
                "sku": pa.large_string(),
                "description": pa.large_string(),
                "quantity": pa.int32(),
                "invoiced_at": pa.timestamp("us"),
                "unit_price": pa.float64(),
                "customer_id": pa.large_string(),
                "country": pa.large_string(),
            }
        ),
    )


def events(source: str, batch: pa.RecordBatch, first_row: int = 0) -> list[Event]:
    return [event for _, event in SOURCES[source].events(batch, first_row)]


def test_consecutive_rows_of_an_invoice_are_one_order() -> None:
    """Money becomes minor units, the customer loses the .0 that a table of floats gave it."""
    [first, second] = events(
        "online-retail",
        rows(
            ("536365", "85123A", 6, 2.55, "17850.0"),
            ("536365", "71053", 1, 1.005, None),
            ("2", "x", 1, 0.0, None),
        ),
        first_row=100,
    )
    assert first == {
        "event_id": "online-retail/536365/100",
        "tenant": "default",
        "occurred_at": 1_291_191_960_000,
        "order_id": "536365",
        "kind": "placed",
        "customer_id": "17850",
        "currency": "GBP",
        "lines": [
            {"sku": "85123A", "quantity": 6, "unit_price_minor": 255},
            {"sku": "71053", "quantity": 1, "unit_price_minor": 100},
        ],
    }
    assert (second["event_id"], second["customer_id"]) == ("online-retail/2/102", None)


def test_an_invoice_of_negative_quantities_is_a_return() -> None:
    """Its quantities are turned round; one that mixes both is left for the intake to refuse."""
    returned, mixed = events(
        "online-retail",
        rows(
            ("C1", "a", -2, 1.0, None),
            ("C1", "b", -1, 1.0, None),
            ("3", "a", 1, 1.0, None),
            ("3", "b", -1, 1.0, None),
        ),
    )
    assert (returned["kind"], [line["quantity"] for line in returned["lines"]]) == ("returned", [2, 1])
    assert (mixed["kind"], [line["quantity"] for line in mixed["lines"]]) == ("placed", [1, -1])


def test_missing_values_are_sent_to_be_refused() -> None:
    """Nothing is dropped or invented: a row without SKU, quantity or price fails the intake's checks."""
    [event] = events("online-retail", rows(("1", None, None, None, None)))
    assert event["lines"] == [{"sku": "", "quantity": -1, "unit_price_minor": -1}]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.data())
def test_where_batches_are_cut_changes_nothing(sizes: list[int], data: st.DataObject) -> None:
    """Cut between any two invoices, the file gives the same events with the same ids."""
    lines = [(f"i{n}", f"s{k}", 1, 1.0, None) for n, size in enumerate(sizes) for k in range(size)]
    whole = rows(*lines)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)))))
    starts = [0, *(sum(sizes[:cut]) for cut in cuts)]
    ends = [*starts[1:], len(lines)]
    parts = [
        event
        for start, end in zip(starts, ends, strict=True)
        for event in events("online-retail", whole.slice(start, end - start), start)
    ]
    assert parts == events("online-retail", whole)


def test_opening_stock_from_a_file() -> None:
    """One receipt per row, with an id that is the SKU's."""
    batch = pa.RecordBatch.from_pylist([{"sku": "a", "quantity": 5}, {"sku": "b", "quantity": None}])
    assert [topic for topic, _ in SOURCES["opening-stock"].events(batch, 0)] == [STOCK_RECEIPTS] * 2
    first, second = events("opening-stock", batch)
    assert (first["event_id"], first["quantity"]) == ("opening-stock/a/0", 5)
    assert second["quantity"] == -1


@pytest.mark.parametrize(("share", "wanted"), [("0.5", {"a": 3, "b": 1}), ("1/3", {"a": 2}), ("0", {})])
def test_a_share_of_the_demand(share: str, wanted: dict[str, int]) -> None:
    """The share is exact, rounded down, of positive quantities alone; nothing is no stock."""
    batches = [
        pa.RecordBatch.from_pydict({"sku": ["a", "b", "a"], "quantity": [4, 2, 3]}),
        pa.RecordBatch.from_pydict({"sku": ["a", "c"], "quantity": pa.array([-9, None], pa.int64())}),
    ]
    assert opening_stock(batches, Fraction(share)) == wanted


def test_large_opening_stock_comes_in_parts() -> None:
    """What one receipt cannot hold is several, each with its id."""
    parts = list(receipts({"a": 2 * MAX_QUANTITY + 1}))
    assert [p["quantity"] for p in parts] == [MAX_QUANTITY, MAX_QUANTITY, 1]
    assert len({p["event_id"] for p in parts}) == 3


def test_sources_name_their_topics() -> None:
    """Orders go to order-events with invoices kept whole, opening stock to stock-receipts."""
    assert (SOURCES["online-retail"].topic, SOURCES["online-retail"].whole) == (ORDER_EVENTS, "invoice_no")
    assert SOURCES["opening-stock"].topic is STOCK_RECEIPTS
