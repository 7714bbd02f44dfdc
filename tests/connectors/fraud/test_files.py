"""Rows of files become card transactions, the same ones each time."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from connectors.files import FileSource
from connectors.fraud.files import FILES
from infra.columns import arrow_schema
from schemas.fraud import CARD_TRANSACTIONS
from streams.fraud.faults import fault

HANDBOOK = (
    Path(__file__).parents[4] / "shared/data/fraud/handbook-2018-04-01-to-09-04.parquet",
    Path(__file__).parents[5] / "shared/data/fraud/handbook-2018-04-01-to-09-04.parquet",
)
SCHEMA = fastavro.parse_schema(dict(CARD_TRANSACTIONS.schema))


def source_of(names: list[str]) -> FileSource:
    """The one source that recognises a file by its columns."""
    (found,) = [f for f in FILES if f.columns <= set(names)]
    return found


def events_of(batch: pa.RecordBatch, first_row: int = 0) -> list[dict[str, Any]]:
    found = list(source_of(batch.schema.names).events(batch, first_row))
    assert all(topic is CARD_TRANSACTIONS for topic, _ in found)
    for _, event in found:
        fastavro.schemaless_writer(io.BytesIO(), SCHEMA, event, strict=True)
    return [event for _, event in found]


def handbook(amounts: list[float]) -> pa.RecordBatch:
    count = len(amounts)
    return pa.RecordBatch.from_pydict(
        {
            "transaction_id": pa.array(range(7, 7 + count), pa.int32()),
            "occurred_at": pa.array([1_522_540_831_000] * count, pa.timestamp("ms")),
            "customer_id": pa.array([596] * count, pa.int32()),
            "terminal_id": pa.array([3156] * count, pa.int32()),
            "amount": pa.array(amounts, pa.float64()),
            "is_fraud": pa.array([1] * count, pa.int8()),
            "fraud_scenario": pa.array([2] * count, pa.int8()),
        }
    )


def test_the_handbooks_rows_are_transactions() -> None:
    """A row of the handbook gives id, card, terminal and minor units; its labels stay out of the event."""
    events = events_of(handbook([57.16, 0.0, 1.005, 0.29, 1234567.89]))
    assert events[0] == {
        "event_id": "handbook-7",
        "tenant": "default",
        "occurred_at": 1_522_540_831_000,
        "card_id": "handbook-card-596",
        "amount_minor": 5716,
        "currency": "EUR",
        "customer_id": "596",
        "merchant_id": None,
        "terminal_id": "3156",
        "country": None,
        "home_country": None,
        "mcc": None,
        "channel": "UNKNOWN",
    }
    assert [e["amount_minor"] for e in events] == [5716, 0, 100, 29, 123456789]


def test_the_handbooks_columns_are_its_events() -> None:
    """By column as by row: the same transactions, to the minor unit; rows that have no column go by row."""
    random = np.random.default_rng(5)
    amounts = [*np.round(random.gamma(2.0, 60.0, 3_000), 2).tolist(), 1.005, 0.285, 1e9]
    batch = handbook(amounts)
    made = FILES[0].event_columns
    assert made is not None
    columns = made(batch, 0)
    assert columns is not None
    assert columns.schema == arrow_schema(CARD_TRANSACTIONS)
    assert columns.to_pylist() == events_of(batch)
    for name in ("transaction_id", "customer_id", "terminal_id", "occurred_at", "amount"):
        place = batch.schema.get_field_index(name)
        gap = pa.array([None, *batch[name].to_pylist()[1:]], batch[name].type)
        assert made(batch.set_column(place, name, gap), 0) is None
    place = batch.schema.get_field_index("customer_id")
    assert made(batch.set_column(place, "customer_id", batch["customer_id"].cast(pa.float64())), 0) is None


def test_a_second_reading_gives_the_same_events() -> None:
    """Events depend on the row alone, however the file is cut into batches."""
    batch = handbook([1.0, 2.0, 3.0])
    pieces = [events_of(batch.slice(n, 1), n)[0] for n in range(3)]
    assert pieces == events_of(batch)


def test_our_own_columns_from_csv() -> None:
    """CSV with our field names fits, also with columns left out or empty and codes that look like numbers."""
    text = (
        b"event_id,occurred_at,card_id,amount_minor,currency,mcc,country,ignored\n"
        b"1,2025-11-03T11:00:00Z,42,1999,EUR,0742,IE,x\n"
        b"2,2025-11-03T11:00:01.500Z,42,5,EUR,,,y\n"
    )
    table = pyarrow.csv.read_csv(io.BytesIO(text))
    first, second = events_of(table.to_batches()[0])
    assert first == {
        "event_id": "1",
        "tenant": "default",
        "occurred_at": 1_762_167_600_000,
        "card_id": "42",
        "amount_minor": 1999,
        "currency": "EUR",
        "customer_id": None,
        "merchant_id": None,
        "terminal_id": None,
        "country": "IE",
        "home_country": None,
        "mcc": "0742",
        "channel": "UNKNOWN",
    }
    assert (second["occurred_at"], second["mcc"], second["country"]) == (1_762_167_601_500, None, None)


@pytest.mark.parametrize(
    "value",
    ["2025-11-03T11:00:00+00:00", "2025-11-03T12:00:00+01:00", "2025-11-03T11:00:00", 1_762_167_600_000],
)
def test_times_are_read_as_milliseconds(value: Any) -> None:
    """ISO 8601 text with or without a zone (then UTC) and integers of milliseconds mean the same time."""
    row = {"event_id": "e", "occurred_at": value, "card_id": "c", "amount_minor": 1, "currency": "EUR"}
    assert events_of(pa.RecordBatch.from_pylist([row]))[0]["occurred_at"] == 1_762_167_600_000


def test_rows_of_the_real_handbook() -> None:
    """The real file's first rows are valid transactions in the order of their times."""
    path = next((p for p in HANDBOOK if p.exists()), None)
    if path is None:
        pytest.skip("the handbook's Parquet file is not beside the project (shared/data/fraud)")
    batch = next(pq.ParquetFile(path).iter_batches(batch_size=500))
    events = events_of(batch)
    assert [e["event_id"] for e in events] == [f"handbook-{n}" for n in batch["transaction_id"].to_pylist()]
    assert all(fault(e) is None for e in events)
    assert [e["occurred_at"] for e in events] == sorted(e["occurred_at"] for e in events)
    assert all(
        abs(e["amount_minor"] - amount * 100) < 0.51
        for e, amount in zip(events, batch["amount"].to_pylist(), strict=True)
    )
