"""A fix in JSON."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from connectors.fleet.telemetry import CheckedTelemetry, Telemetry
from schemas.fleet import TRUCK_TELEMETRY

FIX: dict[str, Any] = {
    "truck_id": "truck-1",
    "occurred_at": "2026-01-01T09:00:00.250Z",
    "sequence": 1,
    "latitude": 51.9,
    "longitude": 4,
}


@pytest.mark.parametrize(
    "occurred_at", [1767258000250, "2026-01-01T09:00:00.250Z", "2026-01-01T10:00:00.250+01:00"]
)
def test_event(occurred_at: int | str) -> None:
    """A fix becomes an event with every field of the topic, its time in milliseconds, absent values null."""
    event = Telemetry.model_validate(FIX | {"occurred_at": occurred_at}).event(
        event_id="made", tenant="acme", truck_id="other"
    )
    assert event.keys() == TRUCK_TELEMETRY.fields.keys()
    assert (event["event_id"], event["tenant"], event["truck_id"]) == ("made", "acme", "truck-1")
    assert event["occurred_at"] == 1767258000250
    assert event["engine_temperature_c"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"latitude": "51.9"}, "latitude"),
        ({"latitude": True}, "latitude"),
        ({"sequence": 1.5}, "sequence"),
        ({"sequence": 2**63}, "sequence"),
        ({"occurred_at": "2026-01-01T09:00:00"}, "occurred_at"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"occurred_at": 1.5}, "occurred_at"),
        ({"lattitude": 51.9}, "lattitude"),
        ({"tenant": 7}, "tenant"),
    ],
)
def test_wrong_fields(change: dict[str, Any], field: str) -> None:
    """A value of the wrong kind, a time without a zone or an unknown field is refused by name."""
    with pytest.raises(ValidationError) as refusal:
        Telemetry.model_validate(FIX | change)
    assert [e["loc"] for e in refusal.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"latitude": 90.001}, "latitude"),
        ({"longitude": float("nan")}, "longitude"),
        ({"speed_kmh": -1}, "speed_kmh"),
        ({"engine_temperature_c": 900}, "engine_temperature_c"),
        ({"occurred_at": 1}, "occurred_at"),
        ({"truck_id": "a/b"}, "truck_id"),
        ({"tenant": ""}, "tenant"),
        ({"event_id": ""}, "event_id"),
    ],
)
def test_checked_values(change: dict[str, Any], field: str) -> None:
    """Over HTTP a value out of range is refused with field, reason and remedy; over MQTT it goes on."""
    Telemetry.model_validate(FIX | change)
    with pytest.raises(ValidationError) as refusal:
        CheckedTelemetry.model_validate(FIX | change)
    (error,) = refusal.value.errors()
    assert error["loc"] == (field,)
    assert ";" in error["msg"]
