"""Positions and alerts: what each order of fixes comes to."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.fleet.limits import LIMITS
from streams.decide import Event
from streams.fleet.fences import Fences, read_fences, written_fences
from streams.fleet.geodesy import metres_per_degree, wrapped
from streams.fleet.geofencing import Geofencing
from streams.fleet.state import DUPLICATE_HORIZON_MS, FleetState
from tests.streams.fleet.fixes import (
    START_MS,
    alerts,
    circle,
    collection,
    decide,
    fences,
    fix,
    positions,
    square,
)

FAR, IN = 5.0, 0.5
UNIT = square("unit", 0.0, 0.0, name="Unit", buffer_m=50)
METRE = 1 / metres_per_degree(0.5)[0]


def told(out: Any) -> list[tuple[str, str | None, int, int]]:
    """Kind, fence, and the numbers of the fixes that it happened and was confirmed at."""
    n = lambda at: (at - START_MS) // 10_000  # noqa: E731
    return [(a["kind"], a["fence_id"], n(a["occurred_at"]), n(a["confirmed_at"])) for a in alerts(out)]


def drive(*longitudes: float, **values: Any) -> list[Event]:
    return [fix(n, x, 0.5, **values) for n, x in enumerate(longitudes)]


def test_enter_and_exit_need_two_fixes() -> None:
    """One fix inside or outside tells nothing; two do, with the time and place of the first."""
    out = decide(drive(FAR, IN, FAR, FAR, IN, 0.6, FAR, IN, FAR, 4.0, 3.0), fences(UNIT))
    assert told(out) == [
        ("geofence_outside", None, 0, 0),
        ("geofence_enter", "unit", 4, 5),
        ("geofence_exit", "unit", 8, 9),
    ]
    outside, enter, exit_ = alerts(out)
    assert (enter["longitude"], enter["input_id"], enter["cause"], enter["fence_name"]) == (
        IN,
        "e5",
        "fixes",
        "Unit",
    )
    assert (exit_["started_by"], exit_["started_at"]) == (enter["event_id"], enter["occurred_at"])
    assert enter["event_id"] == f"default/truck-1/unit/geofence_enter/{START_MS + 40_000}"
    assert outside["event_id"] == f"default/truck-1/fences/geofence_outside/{START_MS}"


def test_first_fix_inside() -> None:
    """A truck first seen in a fence gets an inside at once, and its exit refers to it."""
    out = decide(drive(IN, FAR, FAR), fences(UNIT))
    assert told(out) == [("geofence_inside", "unit", 0, 0), ("geofence_exit", "unit", 1, 2)]
    assert alerts(out)[1]["started_by"] == alerts(out)[0]["event_id"]


@pytest.mark.parametrize(
    ("metres", "accuracy_m", "leaves"), [(69, 20, False), (71, 20, True), (51, None, True)]
)
def test_exit_hysteresis(metres: float, accuracy_m: float | None, leaves: bool) -> None:
    """A truck has left only beyond the edge by more than its accuracy plus the fence's buffer."""
    edge = 1.0 + metres * METRE
    out = decide(drive(IN, edge, edge, edge, accuracy_m=accuracy_m), fences(UNIT))
    assert ("geofence_exit" in [kind for kind, *_ in told(out)]) is leaves


def test_exit_withdrawn_within_hysteresis() -> None:
    """A fix within the buffer between two beyond it withdraws the exit that the first had begun."""
    near = 1.0 + 10 * METRE
    assert told(decide(drive(IN, FAR, near, FAR, near, FAR, IN, FAR, FAR), fences(UNIT)))[1:] == [
        ("geofence_exit", "unit", 7, 8)
    ]


def test_exits_come_before_enters() -> None:
    """When one fix settles both, the fence that was left is told before the one that was entered."""
    out = decide(drive(0.5, 3.5, 3.5), fences(square("z", 0, 0), square("a", 3, 0), square("b", 3, 0)))
    assert told(out)[1:] == [
        ("geofence_exit", "z", 1, 2),
        ("geofence_enter", "a", 1, 2),
        ("geofence_enter", "b", 1, 2),
    ]


def test_late_fix_moves_nothing() -> None:
    """A fix that is not newer than its truck's newest is stored as late and tells and changes nothing."""
    events = drive(FAR, IN, FAR, FAR)
    late = [
        fix(8, IN, 0.5, occurred_at=START_MS + 11_000),
        fix(9, IN, 0.5, occurred_at=START_MS + 30_000),
    ]
    out = decide([*events, *late], fences(UNIT))
    assert told(out) == [("geofence_outside", None, 0, 0)]
    assert [p["is_late"] for p in positions(out)] == [False] * 4 + [True] * 2
    assert positions(out)[4]["fences"] == ["unit"]


def test_new_version_of_the_fences() -> None:
    """A fence that is added tells inside, one that is removed tells exit; none tells a false enter."""
    logic = Geofencing()
    state = logic.new_state()
    body = written_fences(1, collection(UNIT))
    first = read_fences(1, body)
    out = decide(drive(IN, IN), first, state)
    body_2 = written_fences(2, collection(square("other", 0, 0)), body)
    second = read_fences(2, body_2)
    events = [fix(n, IN, 0.5) for n in (2, 3)]
    out = decide(events, second, state)
    assert told(out) == [("geofence_exit", "unit", 2, 2), ("geofence_inside", "other", 2, 2)]
    assert [a["cause"] for a in alerts(out)] == ["fence_removed", "fence_added"]
    assert {p["fences_version"] for p in positions(out)} == {2}
    # The same two fences again, moved: an ordinary enter, for the truck had been outside of "unit".
    third = read_fences(3, written_fences(3, collection(square("other", 0, 0, 2.0), UNIT), body_2))
    assert told(decide([fix(4, 1.5, 0.5), fix(5, 1.5, 0.5)], third, state)) == []


def test_duplicates() -> None:
    """A fix sent again gets its first answer again and moves nothing; under a new id it is named a copy."""
    events = drive(FAR, IN, IN)
    copy = {**events[1], "event_id": "again"}
    out = decide([*events, events[1], copy, copy], fences(UNIT))
    assert out.duplicates_total == 3
    assert positions(out)[3] == positions(out)[1]
    assert [(p["event_id"], p["duplicate_of"]) for p in positions(out)[4:]] == [("again", "e1")] * 2
    assert told(out)[1:] == [("geofence_enter", "unit", 1, 2)]


def test_same_id_with_other_content() -> None:
    """An event id that comes again with another time or place is a dead letter that says so."""
    out = decide([fix(1), fix(1, occurred_at=START_MS), fix(1, 0.25)])
    assert [(r.offset, field) for r, _, field, _ in out.dead] == [(1, "event_id"), (2, "event_id")]
    assert "came before with another time" in out.dead[0][3]
    assert len(positions(out)) == 1


def test_duplicate_beyond_the_horizon() -> None:
    """A fix that comes again after the horizon is a late one: it has a position, and moves nothing."""
    far = fix(5, IN, 0.5, occurred_at=START_MS + DUPLICATE_HORIZON_MS + 10_001)
    events = [*drive(IN, IN), far, fix(1, IN, 0.5), fix(0, IN, 0.5)]
    for batch in (1, 5):
        out = decide(events, fences(UNIT), batch=batch)
        assert out.duplicates_total == 0 and len(alerts(out)) == 1
        assert [p["is_late"] for p in positions(out)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e12, 1e17])
def test_value_out_of_range(field: str, value: float) -> None:
    """A value out of range, NaN among them, makes a dead letter that names field, value and remedy."""
    out = decide([fix(1, **{field: value}), fix(2)])
    ((record, error_class, at_fault, reason),) = out.dead
    assert (record.offset, error_class, at_fault) == (0, "invalid", field)
    low, high = LIMITS[field]
    assert reason == f"{field} is {value:.15g}; send a value from {low:.15g} to {high:.15g}"
    assert [p["event_id"] for p in positions(out)] == ["e2"]


@pytest.mark.parametrize(
    ("field", "value"), [("truck_id", "a/b"), ("truck_id", ""), ("tenant", "x" * 65), ("event_id", "")]
)
def test_name_out_of_form(field: str, value: str) -> None:
    """A name that an alert's id could not hold makes a dead letter."""
    assert [d[2] for d in decide([fix(1, **{field: value})]).dead] == [field]


def test_trucks_and_tenants_are_apart() -> None:
    """Two trucks, and the same truck id of two tenants, share no stay and no duplicate."""
    events = [
        fix(n, IN, 0.5, truck_id=truck, tenant=tenant)
        for n in range(2)
        for truck, tenant in (("a", "x"), ("b", "x"), ("a", "y"))
    ]
    out = decide(events, fences(UNIT))
    assert [(a["tenant"], a["truck_id"]) for a in alerts(out)] == [("x", "a"), ("x", "b"), ("y", "a")]
    assert out.duplicates_total == 0


FENCES = fences(
    square("a", 0.0, 0.0, 2.0, buffer_m=0),
    square("b", 1.0, 0.0, 2.0, buffer_m=10_000),
    circle("c", 3.0, 1.0, 80_000, buffer_m=100),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Fixes of two trucks on a grid, some late, some sent again, some hot, some invalid."""
    events: list[Event] = []
    now = {"t1": START_MS, "t2": START_MS}
    for n in range(draw(st.integers(1, 40))):
        if events and draw(st.integers(0, 6)) == 0:
            events.append(draw(st.sampled_from(events)))
            continue
        truck = draw(st.sampled_from(["t1", "t2"]))
        now[truck] += draw(st.sampled_from([10_000, 50_000, 200_000, -30_000, 0]))
        events.append(
            fix(
                n,
                draw(st.integers(-2, 10)) / 2,
                draw(st.sampled_from([0.5, 1.0, 95.0])),
                truck_id=truck,
                occurred_at=now[truck],
                sequence=draw(st.sampled_from([n, 7])),
                accuracy_m=draw(st.sampled_from([None, 5.0, 60_000.0])),
                engine_temperature_c=draw(st.sampled_from([None, 90.0, 99.0, 105.0, 105.0])),
            )
        )
    return events


def whole(out: Any) -> tuple[Any, ...]:
    return out.emitted, [(r.event["event_id"], *rest) for r, *rest in out.dead], out.duplicates_total


@given(logs())
def test_cut_into_batches(events: list[Event]) -> None:
    """The same log in batches of 1, 2, 7 and 512 gives the same answers and the same state."""
    answers = []
    for batch in (1, 2, 7, 512):
        state = FleetState()
        out = decide(events, FENCES, state, batch)
        answers.append((whole(out), list(state.snapshot())))
    assert answers[1:] == answers[:-1]


@given(logs(), st.integers(0, 40), st.booleans())
def test_restored_state(events: list[Event], cut: int, by_deltas: bool) -> None:
    """A state restored from a snapshot, or from its deltas, answers as the one that never stopped."""
    undisturbed = FleetState()
    expected = whole(decide(events, FENCES, undisturbed))
    state, restored = FleetState(chunk_trucks=1), FleetState()
    parts = []
    for start in range(0, cut, 5):
        parts.append(whole(decide(events[start : min(cut, start + 5)], FENCES, state)))
        delta = state.delta()
        if delta is not None and by_deltas:
            restored.load(delta)
    if not by_deltas:
        for chunk in state.snapshot():
            restored.load(chunk)
    parts.append(whole(decide(events[cut:], FENCES, restored)))
    assert tuple(sum((p[i] for p in parts[1:]), parts[0][i]) for i in range(3)) == expected
    assert list(restored.snapshot()) == list(undisturbed.snapshot())


@pytest.mark.parametrize("by_deltas", [True, False])
def test_restored_after_a_pause(by_deltas: bool) -> None:
    """A truck that was silent for longer than the horizon within one delta: its state can be restored, and
    answers as the one that never stopped."""
    pause = DUPLICATE_HORIZON_MS + 60_000
    events = [
        fix(0),
        fix(1),
        fix(2, occurred_at=START_MS + pause),
        fix(3, occurred_at=START_MS + pause + 10_000),
    ]
    state, restored = FleetState(), FleetState()
    decide(events, state=state)
    for chunk in [state.delta() or b""] if by_deltas else state.snapshot():
        restored.load(chunk)
    more = [fix(2, occurred_at=START_MS + pause), fix(1), fix(4, occurred_at=START_MS + pause + 20_000)]
    assert whole(decide(more, state=restored)) == whole(decide(more, state=state))
    assert list(restored.snapshot()) == list(state.snapshot())


@given(logs())
def test_sent_twice(events: list[Event]) -> None:
    """A log sent twice, each event straight after itself, tells the same alerts with the same ids."""
    once = decide(events, FENCES)
    twice = decide([e for event in events for e in (event, event)], FENCES)
    assert alerts(twice) == alerts(once)
    assert {p["event_id"] for p in positions(twice)} == {p["event_id"] for p in positions(once)}


@given(logs())
def test_each_event_is_answered_once(events: list[Event]) -> None:
    """Every fix has exactly one position or one dead letter, and no two alerts share an id."""
    out = decide(events, FENCES)
    assert len(positions(out)) + len(out.dead) == len(events)
    ids = [a["event_id"] for a in alerts(out)]
    assert len(ids) == len(set(ids))


@given(logs())
def test_stays_alternate(events: list[Event]) -> None:
    """Per truck and fence a stay begins and ends in turn, and each end names its beginning."""
    open_: dict[tuple[str, str], str] = {}
    for alert in alerts(decide(events, FENCES)):
        key = (alert["truck_id"], str(alert["fence_id"]))
        if alert["kind"] in ("geofence_enter", "geofence_inside"):
            assert key not in open_
            open_[key] = alert["event_id"]
        elif alert["kind"] == "geofence_exit":
            assert open_.pop(key) == alert["started_by"]
            assert alert["occurred_at"] <= alert["confirmed_at"]


@settings(max_examples=50)
@given(logs(), st.integers(-360, 360))
def test_longitude_shift(events: list[Event], shift: int) -> None:
    """Fences and fixes shifted together in longitude, over ±180° too, give the same answers, shifted."""

    def moved(by: int) -> Fences:
        return fences(
            square("a", by + 0.0, 0.0, 2.0, buffer_m=0),
            square("b", by + 1.0, 0.0, 2.0, buffer_m=10_000),
            circle("c", wrapped(by + 3.0), 1.0, 80_000, buffer_m=100),
        )

    def told_at(by: int) -> list[Event]:
        out = decide([{**e, "longitude": wrapped(e["longitude"] + by)} for e in events], moved(by))
        return [{**e, "longitude": wrapped(e["longitude"] - by)} for _, e in out.emitted]

    assert told_at(shift) == told_at(0)
