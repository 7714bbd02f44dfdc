"""Telemetry from files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from connectors.fleet.files import FILES
from infra.codec import without_logical_types
from schemas.fleet import TRUCK_TELEMETRY

SOURCES = {source.name: source for source in FILES}
FOLDERS = [Path(__file__).parents[n] / "shared/data/fleet" for n in (4, 5)]


def events(name: str, table: pa.Table, rows: int = 1_000_000) -> list[dict[str, Any]]:
    """The events of a table cut into batches of `rows`, each checked against the topic's schema."""
    schema = fastavro.parse_schema(without_logical_types(TRUCK_TELEMETRY.schema))
    found, first = [], 0
    for batch in table.to_batches(rows):
        for topic, event in SOURCES[name].events(batch, first):
            assert topic is TRUCK_TELEMETRY
            assert fastavro.validate(event, schema, strict=True)
            found.append(event)
        first += batch.num_rows
    return found


def test_own_field_names_from_csv(tmp_path: Path) -> None:
    """A CSV with our field names gives its events; what it leaves out is null, and ids are made of it."""
    path = tmp_path / "telemetry.csv"
    path.write_text(
        "truck_id,occurred_at,latitude,longitude,fuel_pct,note\n"
        "7,2026-01-01T09:00:00Z,51,4.5,,x\n7,2026-01-01T09:00:10Z,51.1,4.6,40,y\n"
    )
    table = pyarrow.csv.read_csv(path)
    assert SOURCES["telemetry"].columns <= set(table.schema.names)
    first, second = events("telemetry", table)
    assert (first["event_id"], first["truck_id"], first["occurred_at"]) == (
        "7/0/1767258000000",
        "7",
        1767258000000,
    )
    assert (first["tenant"], first["fuel_pct"], second["fuel_pct"], second["sequence"]) == (
        "default",
        None,
        40.0,
        1,
    )
    assert events("telemetry", table, rows=1) == [first, second]


def test_own_event_ids_are_kept() -> None:
    """Event ids, sequences and tenants that a file has are those of its events."""
    table = pa.table(
        {
            "event_id": ["a"],
            "tenant": ["acme"],
            "truck_id": ["t"],
            "sequence": [9],
            "occurred_at": [datetime(2026, 1, 1, 9, tzinfo=UTC)],
            "latitude": [1.0],
            "longitude": [2.0],
        }
    )
    (event,) = events("telemetry", table)
    assert (event["event_id"], event["tenant"], event["sequence"]) == ("a", "acme", 9)


def test_bus_trace() -> None:
    """The Limerick bus's file gives one event a row, with the same ids however it is cut."""
    folder = next((f for f in FOLDERS if f.exists()), None)
    if folder is None:
        pytest.skip("the traces are not beside the project (shared/data/fleet)")
    table = pyarrow.parquet.read_table(folder / "limerick-bus-304.parquet")
    assert SOURCES["trace"].columns <= set(table.schema.names)
    assert not SOURCES["telemetry"].columns <= set(table.schema.names)
    found = events("trace", table)
    assert len({e["event_id"] for e in found}) == table.num_rows == 2_144
    assert events("trace", table, rows=500) == found
