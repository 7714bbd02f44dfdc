"""Processor and sink die; what they had promised holds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from infra.codec import Codec
from infra.settings import Settings
from tests.faults.conftest import Services
from tests.faults.rig import pipeline

SINK_PLACES = (
    "before-transaction:2",
    "after-rows:3",
    "after-commit:2",
    "in-rebalance:1",
    "dead-letter-sent:1",
)
MOST_SECONDS = 200
PROCESSOR_PLACES = ("applied:2", "outputs-acknowledged:2", "state-written:2", "claimed:1")


@pytest.mark.short_faults
@pytest.mark.timeout(300)
def test_deaths_at_every_place(database: Settings, codec: Codec, tmp_path: Path, seed: int) -> None:
    """Killed at each place between reading and committing, one after another, nothing is lost or doubled."""
    with pipeline(database, codec, "places", tmp_path) as rig:
        processor = rig.start("processor", places=PROCESSOR_PLACES)
        sink = rig.start("sink", places=SINK_PLACES)
        rounds = []
        end = time.monotonic() + MOST_SECONDS
        while len(processor.exits) < len(PROCESSOR_PLACES) or len(sink.exits) < len(SINK_PLACES):
            assert time.monotonic() < end, f"died {processor.exits} and {sink.exits}"
            rounds.append(rig.traffic(seed * 1000 + len(rounds), events_total=300, seconds=2))
            rounds[-1].finish()
        rig.drain()
        checked = rig.check(rounds)
        assert processor.exits == [-signal.SIGKILL] * len(PROCESSOR_PLACES)
        assert sink.exits == [-signal.SIGKILL] * len(SINK_PLACES)
    print(f"killed {len(PROCESSOR_PLACES)} + {len(SINK_PLACES)} times; {checked}")


@pytest.mark.faults
@pytest.mark.parametrize("role", ["processor", "sink"])
def test_deaths_during_traffic(faulty: Services, tmp_path: Path, seed: int, role: str) -> None:
    """Killed when 20, 40 and 60 % are sent, the output is that of an undisturbed run, byte for byte."""
    with pipeline(faulty.settings, faulty.codec, f"during-{role}", tmp_path) as rig:
        processes = {r: rig.start(r) for r in ("processor", "sink")}
        traffic = rig.traffic(seed, seconds=15)
        for share in (0.2, 0.4, 0.6):
            traffic.reach(share)
            processes[role].kill()
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert processes[role].exits == [-signal.SIGKILL] * 3
    print(f"drained {healed:.1f} s after the last record; {checked}")
