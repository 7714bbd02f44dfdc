"""Telemetry from files: with our own field names, or a bare trace of one vehicle."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from connectors.files import Event, FileSource
from connectors.fleet.telemetry import milliseconds
from schemas.declare import Topic
from schemas.fleet import TRUCK_TELEMETRY

TRACE_TRUCK = "trace"
"""The truck that a trace without a name belongs to."""

_DEFAULTS: Event = {f["name"]: f.get("default") for f in TRUCK_TELEMETRY.schema["fields"]}
_TEXTS = ("event_id", "tenant", "truck_id")
_NUMBERS = tuple(n for n in _DEFAULTS if n not in (*_TEXTS, "fleet_id", "occurred_at", "sequence"))


def _own(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    """Our field names. Where there is no event_id, truck, sequence and time make one."""
    given = [name for name in _DEFAULTS if name in batch.schema.names]
    for number, row in enumerate(batch.select(given).to_pylist(), start=first_row):
        event = _DEFAULTS | {name: value for name, value in row.items() if value not in (None, "")}
        event["occurred_at"] = _milliseconds(event["occurred_at"])
        if event["sequence"] is None:
            event["sequence"] = number
        # A CSV reader takes ids made of digits for numbers.
        event["truck_id"] = str(event["truck_id"])
        if event["event_id"] is None:
            event["event_id"] = f"{event['truck_id']}/{event['sequence']}/{event['occurred_at']}"
        for name in _TEXTS:
            event[name] = str(event[name])
        event["fleet_id"] = None if event["fleet_id"] is None else str(event["fleet_id"])
        for name in _NUMBERS:
            event[name] = None if event[name] is None else float(event[name])
        yield TRUCK_TELEMETRY, event


def _trace(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    """Places and times of one vehicle, as a logger writes them; a row's number is its sequence."""
    rows = batch.select(["latitude", "longitude", "occurred_at"]).to_pylist()
    for number, row in enumerate(rows, start=first_row):
        at_ms = _milliseconds(row["occurred_at"])
        yield (
            TRUCK_TELEMETRY,
            _DEFAULTS
            | {
                "event_id": f"{TRACE_TRUCK}/{number}/{at_ms}",
                "occurred_at": at_ms,
                "truck_id": TRACE_TRUCK,
                "sequence": number,
                "latitude": row["latitude"],
                "longitude": row["longitude"],
            },
        )


def _milliseconds(value: Any) -> int:
    """As `milliseconds`; a datetime or text without a zone is UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return milliseconds(value)


FILES: tuple[FileSource, ...] = (
    FileSource(
        name="telemetry",
        topic=TRUCK_TELEMETRY,
        columns=frozenset({"truck_id", "occurred_at", "latitude", "longitude"}),
        events=_own,
    ),
    FileSource(
        name="trace",
        topic=TRUCK_TELEMETRY,
        columns=frozenset({"occurred_at", "latitude", "longitude"}),
        events=_trace,
    ),
)
