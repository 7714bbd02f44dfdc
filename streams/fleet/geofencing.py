"""The decision of `fleet-geofencing`: every fix becomes a position, and some settle alerts.

A fix that is not newer than its truck's newest is late: it becomes a position, marked, and moves nothing.
So a truck's stays and its engine see event time strictly rising, and an alert's id (truck, fence, kind,
event time) names one happening only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.fleet import GEOFENCING, TRUCK_ALERTS, TRUCK_POSITIONS
from schemas.fleet.limits import LIMITS, NAME, NAME_RULE, out_of_range
from streams.decide import Event, Outcomes, Record, Versions
from streams.event_time import BoundedLateness
from streams.fleet.fences import NO_FENCES, Fences, read_fences
from streams.fleet.overheat import heated
from streams.fleet.state import Applied, FleetState, Truck
from streams.fleet.stays import EXITING, IN, Spot, Stay, entered, left

IN_ORDER = BoundedLateness(0)
"""A fix moves a truck only if it is newer than all before."""

INSIDE = "geofence_inside"
OUTSIDE = "geofence_outside"
ENTER = "geofence_enter"
EXIT = "geofence_exit"
OVERHEAT_RAISED = "engine_overheat_raised"
OVERHEAT_CLEARED = "engine_overheat_cleared"

BY_FIXES = "fixes"
BY_FIRST_FIX = "first_fix"
BY_FENCE_ADDED = "fence_added"
BY_FENCE_REMOVED = "fence_removed"

_REQUIRED = ("occurred_at", "latitude", "longitude", "sequence")
_OPTIONAL = tuple(field for field in LIMITS if field not in _REQUIRED)


class Geofencing:
    """Folds a partition's fixes. See `streams.decide.Logic`."""

    version_kinds: Sequence[str] = ("fences",)

    def new_state(self) -> FleetState:
        return FleetState()

    def load_version(self, kind: str, version: int, body: Any) -> Fences:
        """The fences of a GeoJSON FeatureCollection; raises `FenceError` where one cannot be used."""
        return read_fences(version, body)

    def decide(self, state: FleetState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        fences: Fences = versions.get("fences", NO_FENCES)
        valid: list[Record] = []
        for record in records:
            fault = invalid(record.event)
            if fault is None:
                valid.append(record)
            else:
                out.dead_letter(record, *fault)
        located = fences.locate([r.event["longitude"] for r in valid], [r.event["latitude"] for r in valid])
        for record, inside in zip(valid, located, strict=True):
            _answer(state, record, inside, fences, out)


def invalid(event: Event) -> tuple[str, str] | None:
    """The field at fault and the reason, where a fix cannot be used."""
    for field in ("truck_id", "tenant"):
        if not NAME.fullmatch(event[field]):
            return field, f"{field} is {event[field]!r}; {NAME_RULE}"
    if event["fleet_id"] is not None and not NAME.fullmatch(event["fleet_id"]):
        return "fleet_id", f"fleet_id is {event['fleet_id']!r}; {NAME_RULE}"
    if not event["event_id"]:
        return "event_id", "event_id is empty; send one that is the message's own"
    for field in _REQUIRED:
        reason = out_of_range(field, event[field])
        if reason is not None:
            return field, reason
    for field in _OPTIONAL:
        if event[field] is not None:
            reason = out_of_range(field, event[field])
            if reason is not None:
                return field, reason
    return None


def _answer(state: FleetState, record: Record, inside: list[str], fences: Fences, out: Outcomes) -> None:
    event = record.event
    key = f"{event['tenant']}/{event['truck_id']}"
    event_id, occurred_at = event["event_id"], event["occurred_at"]
    before = state.applied(key, event_id)
    if before is not None:
        content = (before.occurred_at, before.sequence, before.latitude, before.longitude)
        if content == (occurred_at, event["sequence"], event["latitude"], event["longitude"]):
            out.duplicate()
            out.emit(TRUCK_POSITIONS, _position(event, before))
        else:
            out.dead_letter(
                record,
                "event_id",
                f"event_id {event_id} came before with another time, sequence or place; "
                "give each message its own",
            )
        return
    truck = state.truck(key)
    duplicate_of = state.applied_as(key, event["sequence"], occurred_at)
    is_late = IN_ORDER.is_late(occurred_at, truck.newest_ms if truck is not None else None)
    if duplicate_of is not None:
        out.duplicate()
    fix = Applied(
        occurred_at=occurred_at,
        sequence=event["sequence"],
        latitude=event["latitude"],
        longitude=event["longitude"],
        fences=tuple(inside),
        is_late=is_late,
        duplicate_of=duplicate_of,
        code_version=GEOFENCING.code_version,
        fences_version=fences.version,
    )
    out.emit(TRUCK_POSITIONS, _position(event, fix))
    if not is_late:
        truck, alerts = moved(truck, event, inside, fences)
        state.put(key, truck)
        for alert in alerts:
            out.emit(TRUCK_ALERTS, alert)
    state.add(key, event_id, fix)


def moved(truck: Truck | None, event: Event, inside: list[str], fences: Fences) -> tuple[Truck, list[Event]]:
    """The truck after a newer fix that lies in the fences `inside`, and the alerts it settles.

    Exits come before enters, each by fence id; then the engine's. `truck` is None before the first fix.
    """
    spot = Spot(event["occurred_at"], event["latitude"], event["longitude"])
    seen_version = fences.version if truck is None else truck.fences_version
    stays: dict[str, Stay] = {}
    exits: list[Event] = []
    enters: list[Event] = []

    for fence_id, stay in truck.stays.items() if truck else ():
        if fence_id in inside:
            continue
        fence = fences.by_id.get(fence_id)
        if fence is None:
            if stay.phase in (IN, EXITING):
                exits.append(_alert(event, fences, EXIT, BY_FENCE_REMOVED, spot, fence_id, stay))
            continue
        beyond = stay.phase in (IN, EXITING) and (
            fence.metres_beyond(spot.longitude, spot.latitude) > (event["accuracy_m"] or 0.0) + fence.buffer_m
        )
        after, exit_spot = left(stay, spot, beyond)
        if exit_spot is not None:
            exits.append(_alert(event, fences, EXIT, BY_FIXES, exit_spot, fence_id, stay))
        if after is not None:
            stays[fence_id] = after

    for fence_id in inside:
        stay_before = truck.stays.get(fence_id) if truck else None
        is_added = truck is not None and seen_version < fences.by_id[fence_id].since_version
        if stay_before is None and (truck is None or is_added):
            cause = BY_FIRST_FIX if truck is None else BY_FENCE_ADDED
            alert = _alert(event, fences, INSIDE, cause, spot, fence_id)
            stays[fence_id] = Stay(IN, started_by=alert["event_id"], started_at=spot.occurred_at)
            enters.append(alert)
            continue
        after_inside, enter_spot = entered(stay_before, spot)
        if enter_spot is not None:
            alert = _alert(event, fences, ENTER, BY_FIXES, enter_spot, fence_id)
            after_inside = Stay(IN, started_by=alert["event_id"], started_at=enter_spot.occurred_at)
            enters.append(alert)
        stays[fence_id] = after_inside
    if truck is None and not inside and fences.fences:
        enters.append(_alert(event, fences, OUTSIDE, BY_FIRST_FIX, spot))

    heat = truck.heat if truck else None
    engine: list[Event] = []
    temperature_c = event["engine_temperature_c"]
    if temperature_c is not None:
        heat_before = heat
        heat, is_raised, is_cleared = heated(heat, spot, temperature_c)
        if is_raised and heat is not None:
            alert = _alert(event, fences, OVERHEAT_RAISED, BY_FIXES, heat.first)
            heat = heat.raised(alert["event_id"])
            engine.append(alert)
        if is_cleared and heat_before is not None:
            alert = _alert(event, fences, OVERHEAT_CLEARED, BY_FIXES, spot)
            alert["started_by"], alert["started_at"] = heat_before.raised_by, heat_before.first.occurred_at
            engine.append(alert)
        for alert in engine:
            alert["engine_temperature_c"] = temperature_c

    after_truck = Truck(spot.occurred_at, fences.version, dict(sorted(stays.items())), heat)
    exits.sort(key=lambda a: str(a["fence_id"]))
    return after_truck, [*exits, *enters, *engine]


def _alert(
    event: Event,
    fences: Fences,
    kind: str,
    cause: str,
    spot: Spot,
    fence_id: str | None = None,
    ended: Stay | None = None,
) -> Event:
    fence = fences.by_id.get(fence_id) if fence_id is not None else None
    subject = fence_id or ("fences" if kind == OUTSIDE else "engine")
    return {
        "event_id": f"{event['tenant']}/{event['truck_id']}/{subject}/{kind}/{spot.occurred_at}",
        "tenant": event["tenant"],
        "occurred_at": spot.occurred_at,
        "truck_id": event["truck_id"],
        "kind": kind,
        "cause": cause,
        "fence_id": fence_id,
        "fence_name": fence.name if fence else None,
        "confirmed_at": event["occurred_at"],
        "started_by": ended.started_by if ended else None,
        "started_at": ended.started_at if ended else None,
        "latitude": spot.latitude,
        "longitude": spot.longitude,
        "engine_temperature_c": None,
        "fleet_id": event["fleet_id"],
        "input_id": event["event_id"],
        "is_late": False,
        "code_version": GEOFENCING.code_version,
        "fences_version": fences.version,
    }


def _position(event: Event, fix: Applied) -> Event:
    return {
        **event,
        "fences": list(fix.fences),
        "is_late": fix.is_late,
        "duplicate_of": fix.duplicate_of,
        "code_version": fix.code_version,
        "fences_version": fix.fences_version,
    }
