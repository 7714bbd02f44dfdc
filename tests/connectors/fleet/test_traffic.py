"""Simulated trucks."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from connectors.fleet.telemetry import CheckedTelemetry
from connectors.fleet.traffic import steps
from connectors.traffic import Http, Mqtt, Raw, Step
from streams.fleet.fences import read_fences
from tests.streams.fleet.fixes import alerts, decide, positions

MIGRATION = Path(__file__).parents[3] / "infra/migrations/0020_fleet.sql"
MINUTE_MS = 60_000


def minute(steps_a_second: int, seed: int = 1) -> list[Step]:
    """A minute of traffic at an even rate."""
    clock = iter(range(1_767_258_000_000, 1_767_258_000_000 + 10 * MINUTE_MS, 1000 // steps_a_second))
    now = [next(clock)]
    made = []
    for step in islice(steps(random.Random(seed), lambda: now[0]), 60 * steps_a_second):
        made.append(step)
        now[0] = next(clock)
    return made


def sent(found: list[Step]) -> list[dict[str, Any]]:
    """What a connector would accept of it, in order."""
    bodies = []
    for step in found:
        if isinstance(step, Http):
            bodies.append(step.json)
        elif isinstance(step, Mqtt) and step.payload.startswith(b"{"):
            bodies.append(json.loads(step.payload) | {"truck_id": step.topic.split("/")[2]})
    events = []
    for body in bodies:
        if isinstance(body["latitude"], float) and body["latitude"] < 90:
            fix = CheckedTelemetry.model_validate(body)
            events.append(fix.event(event_id="", tenant="default", truck_id=""))
    return events


def test_a_minute_shows_everything() -> None:
    """A minute at 20 steps a second has stays that begin and end, a stay over 180°, an overheated engine."""
    body = re.search(r"\$fences\$(.*)\$fences\$", MIGRATION.read_text(), re.DOTALL)
    assert body is not None
    in_force = read_fences(1, json.loads(body.group(1)))
    for seed in range(3):
        out = decide(sent(minute(20, seed)), in_force)
        assert out.dead == []
        kinds = Counter(a["kind"] for a in alerts(out))
        assert kinds["geofence_enter"] >= 3 and kinds["geofence_exit"] >= 3
        assert kinds["engine_overheat_raised"] >= 1
        assert kinds["engine_overheat_raised"] == kinds["engine_overheat_cleared"]
        fences = {a["fence_id"] for a in alerts(out)}
        assert fences >= {"waalhaven-depot", "charlois-customer", "taveuni-yard"}
        assert out.duplicates_total > 0
        assert any(p["is_late"] for p in positions(out))


def test_share_of_disturbances() -> None:
    """Some per cent come twice, some late, some are invalid, by MQTT, HTTP and past both."""
    found = minute(100)
    ids = Counter(e["event_id"] for e in sent(found))
    twice = sum(n > 1 for n in ids.values())
    assert 0.01 < twice / len(ids) < 0.05
    assert max(ids.values()) <= 2
    invalid = [s for s in found if isinstance(s, Raw)] + [
        s for s in found if isinstance(s, Mqtt) and "broken" in s.topic
    ]
    assert 0.002 < len(invalid) / len(found) < 0.012
    assert {type(s) for s in found} == {Http, Mqtt, Raw}


def test_same_seed_same_traffic() -> None:
    """The same seed and clock give the same steps."""
    assert minute(20, 4) == minute(20, 4) != minute(20, 5)
