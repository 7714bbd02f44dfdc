"""Fixes and fences for the tests of the fleet's decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.fleet import TRUCK_ALERTS, TRUCK_POSITIONS
from streams.decide import Event, Outcomes, Record
from streams.fleet.fences import Fences, read_fences
from streams.fleet.geofencing import Geofencing
from streams.fleet.state import FleetState

START_MS = 1_767_258_000_000


def fix(n: int, longitude: float = 0.0, latitude: float = 0.0, **values: Any) -> Event:
    """The n-th fix of truck-1, one every 10 s unless `occurred_at` says otherwise."""
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": START_MS + 10_000 * n,
        "truck_id": "truck-1",
        "sequence": n,
        "latitude": latitude,
        "longitude": longitude,
        "speed_kmh": None,
        "heading_deg": None,
        "accuracy_m": None,
        "engine_temperature_c": None,
        "odometer_m": None,
        "fuel_pct": None,
        "load_kg": None,
        "fleet_id": None,
        **values,
    }


def feature(identity: str, geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "id": identity, "geometry": geometry, "properties": properties}


def square(identity: str, west: float, south: float, side: float = 1.0, **properties: Any) -> dict[str, Any]:
    """A square fence; its longitudes may pass 180."""
    ring = [
        [west, south],
        [west + side, south],
        [west + side, south + side],
        [west, south + side],
        [west, south],
    ]
    coordinates = [[(x + 180) % 360 - 180, y] for x, y in ring]
    return feature(identity, {"type": "Polygon", "coordinates": [coordinates]}, **properties)


def circle(identity: str, longitude: float, latitude: float, radius_m: float, **properties: Any) -> Any:
    return feature(
        identity, {"type": "Point", "coordinates": [longitude, latitude]}, radius_m=radius_m, **properties
    )


def collection(*features: dict[str, Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features)}


def fences(*features: dict[str, Any], version: int = 1) -> Fences:
    return read_fences(version, collection(*features))


def records(events: Sequence[Event]) -> list[Record]:
    return [Record("truck-telemetry", 0, n, e["occurred_at"], e) for n, e in enumerate(events)]


def decide(
    events: Sequence[Event],
    in_force: Fences | None = None,
    state: FleetState | None = None,
    batch: int = 1_000_000,
) -> Outcomes:
    """The outcomes of the events, cut into batches of `batch`."""
    logic, out, log = Geofencing(), Outcomes(), records(events)
    state = state if state is not None else logic.new_state()
    for start in range(0, len(log), batch):
        logic.decide(state, log[start : start + batch], {"fences": in_force} if in_force else {}, out)
    return out


def alerts(out: Outcomes) -> list[Event]:
    return [event for topic, event in out.emitted if topic is TRUCK_ALERTS]


def positions(out: Outcomes) -> list[Event]:
    return [event for topic, event in out.emitted if topic is TRUCK_POSITIONS]
