"""Engines that stay too hot for five minutes of event time."""

from __future__ import annotations

from typing import Any

import pytest

from streams.decide import Event
from tests.streams.fleet.fixes import START_MS, alerts, decide, fix


def samples(*readings: tuple[float, float | None]) -> list[Event]:
    """Fixes from (second, temperature)."""
    return [
        fix(n, occurred_at=START_MS + round(second * 1000), engine_temperature_c=temperature)
        for n, (second, temperature) in enumerate(readings)
    ]


def steady(first: int, last: int, temperature: float, step: int = 30) -> list[tuple[float, float | None]]:
    return [(second, temperature) for second in [*range(first, last, step), last]]


RAISED, CLEARED = "engine_overheat_raised", "engine_overheat_cleared"


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param(steady(0, 299, 105), [], id="299 s are too short"),
        pytest.param(steady(0, 300, 105), [(RAISED, 0, 300)], id="300 s are enough"),
        pytest.param(steady(0, 600, 105), [(RAISED, 0, 300)], id="one alert an episode"),
        pytest.param(steady(0, 600, 100), [], id="100 degrees is not above"),
        pytest.param([*steady(0, 240, 105), (250, 100.0), *steady(260, 500, 105)], [], id="one cool sample"),
        pytest.param([*steady(0, 240, 105), *steady(301, 540, 105)], [], id="a gap of 61 s"),
        pytest.param([*steady(0, 240, 105), *steady(300, 540, 105)], [(RAISED, 0, 300)], id="a gap of 60 s"),
        pytest.param([(0, 105), (300, 105)], [], id="two samples are no proof"),
        pytest.param(
            [*steady(0, 240, 105), (250, None), (299, None), (301, 105)], [], id="no reading, no sample"
        ),
        pytest.param(
            [*steady(0, 300, 105), (310, 99), *steady(320, 700, 105), (710, 97.9), *steady(720, 1020, 101)],
            [(RAISED, 0, 300), (CLEARED, 710, 710), (RAISED, 720, 1020)],
            id="99 degrees does not clear, below 98 does",
        ),
        pytest.param([*steady(0, 300, 105), (310, 98)], [(RAISED, 0, 300)], id="98 degrees does not clear"),
        pytest.param(
            [*steady(0, 300, 105), *steady(9_000, 9_600, 105), (9_610, 20)],
            [(RAISED, 0, 300), (CLEARED, 9_610, 9_610)],
            id="a gap after the alert neither clears nor raises again",
        ),
        pytest.param([(0, 20), (10, 90)], [], id="nothing to clear"),
    ],
)
def test_episode(readings: list[tuple[float, float | None]], expected: list[tuple[str, int, int]]) -> None:
    """Five minutes above 100 °C without a gap over a minute raise one alert; below 98 °C clears it."""
    for batch in (1, 1_000):
        found = alerts(decide(samples(*readings), batch=batch))
        assert [
            (a["kind"], (a["occurred_at"] - START_MS) // 1000, (a["confirmed_at"] - START_MS) // 1000)
            for a in found
        ] == expected


def test_alert_names_its_evidence() -> None:
    """A raised alert names the sample that settled it, and the cleared one names the raised."""
    raised, cleared = alerts(decide(samples(*steady(0, 300, 105), (310, 90))))
    assert raised["event_id"] == f"default/truck-1/engine/{RAISED}/{START_MS}"
    assert (raised["input_id"], raised["engine_temperature_c"]) == ("e10", 105)
    assert (cleared["started_by"], cleared["started_at"]) == (raised["event_id"], raised["occurred_at"])
    assert (cleared["input_id"], cleared["engine_temperature_c"]) == ("e11", 90)


def test_late_sample_is_left_out() -> None:
    """A cool sample that comes late does not undo a run (a later step replays the segment)."""
    events = samples(*steady(0, 270, 105))
    late: Any = fix(99, occurred_at=START_MS + 15_000, engine_temperature_c=20.0)
    assert [a["kind"] for a in alerts(decide([*events, late, *samples_at(300)]))] == [RAISED]


def samples_at(second: int) -> list[Event]:
    return [fix(50, occurred_at=START_MS + second * 1000, engine_temperature_c=105.0)]
