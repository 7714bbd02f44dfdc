"""Real vehicles: a bus that calls at its stops, and engines that never overheat."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from streams.decide import Event
from streams.fleet.fences import Fences
from tests.streams.fleet.fixes import START_MS, alerts, circle, decide, fences, fix

FOLDERS = [Path(__file__).parents[n] / "shared/data/fleet" for n in (4, 5)]
DATA = next((folder for folder in FOLDERS if folder.exists()), FOLDERS[0])

needs_data = pytest.mark.skipif(
    not DATA.exists(), reason="the traces are not beside the project (shared/data/fleet)"
)

Visit = tuple[str, int, int | None]
"""Stop, event time of the first fix inside, event time of the first fix beyond it (None: still there)."""


def rows(name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(DATA / name).to_pylist())


def chord_m(lat_1: float, lon_1: float, lat_2: float, lon_2: float) -> float:
    """The straight line between two points of WGS 84 in space: within a millimetre of the geodesic at 1 km.

    Another formula than the fences' own.
    """

    def in_space(lat: float, lon: float) -> tuple[float, float, float]:
        phi, lam = math.radians(lat), math.radians(lon)
        n = 6_378_137.0 / math.sqrt(1 - 0.00669437999014 * math.sin(phi) ** 2)
        return (
            n * math.cos(phi) * math.cos(lam),
            n * math.cos(phi) * math.sin(lam),
            n * (1 - 0.00669437999014) * math.sin(phi),
        )

    return math.dist(in_space(lat_1, lon_1), in_space(lat_2, lon_2))


def scanned(bus: list[Event], stop: dict[str, Any], radius_m: float, buffer_m: float) -> list[Visit]:
    """The visits to a stop, by looking at the whole trace at once.

    A visit runs from the first of two consecutive fixes within the radius to the first of two consecutive
    fixes beyond radius and buffer, and then the next visit is looked for.
    """
    far = [chord_m(e["latitude"], e["longitude"], stop["latitude"], stop["longitude"]) for e in bus]
    is_in = [d <= radius_m for d in far]
    is_out = [d > radius_m + buffer_m for d in far]
    visits: list[Visit] = []
    # A vehicle first seen inside is taken to be there.
    start = 0 if is_in[0] else _pair(is_in, 0)
    while start is not None:
        end = _pair(is_out, start)
        visits.append(
            (stop["stop_id"], bus[start]["occurred_at"], None if end is None else bus[end]["occurred_at"])
        )
        if end is None:
            break
        start = _pair(is_in, end)
    return visits


def _pair(holds: list[bool], start: int) -> int | None:
    """The first place from `start` where it holds twice in a row."""
    return next((n for n in range(start, len(holds) - 1) if holds[n] and holds[n + 1]), None)


def told(bus: list[Event], in_force: Fences, batch: int = 1_000_000) -> list[Visit]:
    """The visits in the alerts."""
    found = alerts(decide(bus, in_force, batch=batch))
    ends = {a["started_by"]: a["occurred_at"] for a in found if a["kind"] == "geofence_exit"}
    return sorted(
        (a["fence_id"], a["occurred_at"], ends.get(a["event_id"]))
        for a in found
        if a["kind"] in ("geofence_enter", "geofence_inside")
    )


@pytest.fixture(scope="module")
def bus() -> list[Event]:
    return [
        fix(n, r["longitude"], r["latitude"], occurred_at=int(r["occurred_at"].timestamp() * 1000))
        for n, r in enumerate(rows("limerick-bus-304.parquet"))
    ]


@needs_data
@pytest.mark.parametrize(("radius_m", "buffer_m"), [(20.0, 10.0), (30.0, 10.0), (50.0, 0.0)])
def test_bus_calls_at_its_stops(bus: list[Event], radius_m: float, buffer_m: float) -> None:
    """The bus's alerts are the stop visits that a scan of its whole trace finds, in any cut of the log."""
    stops = rows("limerick-bus-304-stops.parquet")
    in_force = fences(
        *(circle(s["stop_id"], s["longitude"], s["latitude"], radius_m, buffer_m=buffer_m) for s in stops)
    )
    truth = sorted(visit for stop in stops for visit in scanned(bus, stop, radius_m, buffer_m))
    assert {stop for stop, *_ in truth} == {s["stop_id"] for s in stops}
    assert told(bus, in_force) == truth
    assert told(bus, in_force, batch=7) == truth


def engine(readings: list[tuple[int, float]], drive: str) -> list[Event]:
    """Fixes of one drive from (second, coolant temperature)."""
    return [
        fix(n, truck_id=drive, occurred_at=START_MS + second * 1000, engine_temperature_c=temperature)
        for n, (second, temperature) in enumerate(readings)
    ]


def drives() -> dict[str, list[tuple[int, float]]]:
    """Each drive's coolant temperatures, one a second. (The engine's own clock starts anew within some.)"""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows("car-obd-1hz.parquet"):
        drive = found.setdefault(row["drive"], [])
        drive.append((len(drive), row["coolant_temp_c"]))
    return {drive: [(s, t) for s, t in readings if not math.isnan(t)] for drive, readings in found.items()}


@needs_data
def test_cool_engines_are_silent_and_injected_episodes_found() -> None:
    """Real engines that stay below 96 °C raise nothing; each injected episode of 300 s, and only it, does."""
    rng = random.Random(7)
    silent = injected = 0
    for drive, readings in drives().items():
        assert engine_alerts(engine(readings, drive)) == []
        silent += 1
        for length in (299, 300):
            if len(readings) < length + 2:
                continue
            start = rng.randrange(len(readings) - length - 1)
            around = range(max(0, start - 60), min(len(readings), start + length + 60))
            hot = [
                (readings[n][0], 100.5 + rng.random() * 9 if start <= n <= start + length else readings[n][1])
                for n in around
            ]
            at = readings[start][0]
            whole = readings[start + length][0] - at == length
            assert engine_alerts(engine(hot, drive)) == (
                [("engine_overheat_raised", at), ("engine_overheat_cleared", readings[start + length + 1][0])]
                if length == 300 and whole
                else []
            )
            injected += length == 300 and whole
    assert silent == 129
    assert injected >= 100


def engine_alerts(events: list[Event]) -> list[tuple[str, int]]:
    """Kind and second of each alert about the engine."""
    return [
        (a["kind"], (a["occurred_at"] - START_MS) // 1000)
        for a in alerts(decide(events))
        if a["kind"].startswith("engine")
    ]
