"""Simulated trucks that drive through the first version's fences, with all that radio does to their messages.

Trucks drive loops round the harbour, one crosses 180° on Taveuni, and now and then one that had been out of
reach for ten minutes sends its history at once; its engine had been too hot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, pairwise
from math import hypot
from random import Random
from typing import Any

from connectors.traffic import Http, Mqtt, Raw, Step
from schemas.fleet import TRUCK_TELEMETRY

STEPS_PER_SECOND = 60.0
TENANT = "default"
Route = tuple[tuple[float, float], ...]

EAST: Route = ((4.434, 51.8835), (4.470, 51.8835), (4.470, 51.8855), (4.434, 51.8855), (4.434, 51.8835))
WEST: Route = ((4.384, 51.8835), (4.428, 51.8835), (4.428, 51.8875), (4.384, 51.8875), (4.384, 51.8835))
TAVEUNI: Route = ((179.993, -16.8), (180.007, -16.8), (179.993, -16.8))

TRUCKS = ((EAST, 9), (WEST, 8), (TAVEUNI, 1))
OVERTAKEN_SPEED = 1.6
"""Simulated trucks drive this much faster than their speed says: a minute must show something."""

HISTORY_SECONDS = 600
HISTORY_STEP_SECONDS = 10
HISTORY_TRUCKS = 40
HISTORY_EVERY_MS = 45_000
"""Forty trucks in turn: each has been silent for longer than its history is when its turn comes again."""

DUPLICATES = 0.03
HELD_BACK = 0.02
INVALID_EVERY = 150
"""Steps. Counted, not drawn: the shortest demo shall meet some."""
OVER_HTTP = 0.2


@dataclass
class _Truck:
    truck_id: str
    route: Route
    driven_m: float
    speed_kmh: float
    odometer_m: float
    sequence: int = 0
    at_ms: int = 0
    temperature_c: float = 88.0
    fuel_pct: float = 80.0
    lengths_m: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # 68.9 and 111.3 km a degree at the harbour; it need not be exact elsewhere.
        self.lengths_m = [
            hypot((b[0] - a[0]) * 68_900, (b[1] - a[1]) * 111_300) for a, b in pairwise(self.route)
        ]

    def place(self) -> tuple[float, float]:
        """Longitude and latitude; the longitude may lie beyond 180."""
        along = self.driven_m % sum(self.lengths_m)
        for (a, b), length in zip(pairwise(self.route), self.lengths_m, strict=True):
            if along <= length:
                share = along / length
                return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
            along -= length
        return self.route[-1]

    def fix(self, rng: Random, at_ms: int, temperature_c: float | None = None) -> dict[str, Any]:
        """The truck moved on to `at_ms`, and what it sends there."""
        seconds = (at_ms - self.at_ms) / 1000 if self.at_ms else 0.0
        self.at_ms = at_ms
        self.sequence += 1
        self.speed_kmh = min(90.0, max(40.0, self.speed_kmh + rng.gauss(0, 2)))
        metres = self.speed_kmh / 3.6 * OVERTAKEN_SPEED * min(seconds, 10.0)
        self.driven_m += metres
        self.odometer_m += metres
        self.temperature_c = min(95.0, max(82.0, self.temperature_c + rng.gauss(0, 0.4)))
        self.fuel_pct = max(5.0, self.fuel_pct - metres * 3e-6)
        longitude, latitude = self.place()
        longitude += rng.gauss(0, 4e-5)
        return {
            "event_id": f"{self.truck_id}-{at_ms}-{self.sequence}",
            "truck_id": self.truck_id,
            "occurred_at": at_ms,
            "sequence": self.sequence,
            "latitude": round(latitude + rng.gauss(0, 2.5e-5), 7),
            "longitude": round(longitude if longitude < 180 else longitude - 360, 7),
            "speed_kmh": round(self.speed_kmh, 1),
            "accuracy_m": round(rng.uniform(3, 9), 1),
            "engine_temperature_c": round(self.temperature_c if temperature_c is None else temperature_c, 1),
            "odometer_m": round(self.odometer_m, 1),
            "fuel_pct": round(self.fuel_pct, 2),
        }


def steps(rng: Random, now_ms: Callable[[], int]) -> Iterator[Step]:
    """Endless traffic. About 3 % come twice, 2 % late and out of order, one in 150 is invalid."""
    trucks = [
        _Truck(f"truck-{n}", route, 400.0 * i, rng.uniform(50, 80), rng.uniform(1e7, 4e8))
        for n, (route, i) in enumerate(((r, i) for r, several in TRUCKS for i in range(several)), start=1)
    ]
    histories = _histories(rng)
    history = next(histories)(now_ms())
    history_at = now_ms()
    held: list[tuple[int, Step]] = []
    for n in count():
        now = now_ms()
        if now - history_at >= HISTORY_EVERY_MS:
            history, history_at = next(histories)(now), now
        # Two fixes of a history for each of the others: even slow traffic shows its alert within a minute.
        old = next(history, None) if n % 3 else None
        if old is not None:
            yield old
        else:
            truck = min(trucks, key=lambda t: t.at_ms)
            step = _sent(rng, truck.fix(rng, max(now, truck.at_ms + 1)))
            if rng.random() < HELD_BACK:
                held.append((n + rng.randint(len(trucks), 4 * len(trucks)), step))
            else:
                yield step
                if rng.random() < DUPLICATES:
                    yield step
        while held and held[0][0] <= n:
            yield held.pop(0)[1]
        if n % INVALID_EVERY == INVALID_EVERY - 1:
            yield _invalid(rng, n, now)


def _sent(rng: Random, fix: dict[str, Any]) -> Step:
    if rng.random() < OVER_HTTP:
        return Http("POST", "/v1/telemetry", json=fix)
    return Mqtt(f"telemetry/{TENANT}/{fix['truck_id']}", json.dumps(fix).encode())


def _histories(rng: Random) -> Iterator[Callable[[int], Iterator[Step]]]:
    """Trucks that come back into reach, in turn, each with the ten minutes before."""
    trucks = [
        _Truck(f"truck-far-{n}", EAST, rng.uniform(0, 5_000), 60.0, rng.uniform(1e7, 4e8))
        for n in range(1, HISTORY_TRUCKS + 1)
    ]
    for n in count():
        truck = trucks[n % len(trucks)]

        def history(now: int, truck: _Truck = truck) -> Iterator[Step]:
            for seconds in range(0, HISTORY_SECONDS + 1, HISTORY_STEP_SECONDS):
                # Too hot from the second to the ninth minute; at the end the engine is cool again.
                hot = 103.0 + rng.random() * 4 if 60 <= seconds < 480 else 90.0 + rng.random() * 4
                yield Mqtt(
                    f"telemetry/{TENANT}/{truck.truck_id}",
                    json.dumps(truck.fix(rng, now - (HISTORY_SECONDS - seconds) * 1000, hot)).encode(),
                )

        yield history


def _invalid(rng: Random, n: int, now: int) -> Step:
    truck_id = f"truck-broken-{rng.randint(1, 3)}"
    fix = {
        "event_id": f"{truck_id}-{now}-{n}-{rng.getrandbits(32)}",
        "occurred_at": now,
        "sequence": n,
        "latitude": 51.9,
        "longitude": 4.4,
    }
    topic = f"telemetry/{TENANT}/{truck_id}"
    match rng.randint(0, 4):
        case 0:
            return Raw(TRUCK_TELEMETRY, truck_id.encode(), rng.randbytes(rng.randint(1, 80)))
        case 1:
            return Raw(TRUCK_TELEMETRY, truck_id.encode(), b"\0\x7f\xff\xff\xff" + rng.randbytes(20))
        case 2:
            return Mqtt(topic, b"$GPRMC,081836,A,5154.0,N,00424.0,E,000.0,360.0,130998,011.3,E*62")
        case 3:
            return Mqtt(topic, json.dumps(fix | {"latitude": "51.9 N"}).encode())
    return Mqtt(topic, json.dumps(fix | {"latitude": 951.9}).encode())
