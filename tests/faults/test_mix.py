"""All faults of a seeded schedule upon one another."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Services
from tests.faults.rig import Process, pipeline, until

FAULTS = 14
SECONDS = 60.0
PAUSE_SECONDS = 3.0


def _pause(process: Process) -> None:
    process.kill(signal.SIGSTOP)
    time.sleep(PAUSE_SECONDS)
    process.kill(signal.SIGCONT)


def _outage(faulty: Services, name: str) -> None:
    faulty.kill(name)
    time.sleep(PAUSE_SECONDS)
    faulty.heal()


def _full(faulty: Services, name: str) -> None:
    with faulty.full(name):
        if name == "kafka":
            broker = next(c for c in faulty.native.components if c.name == name)
            until(lambda: faulty.native.process(broker).pid() is None, 60, "the broker has ended")
        else:
            time.sleep(PAUSE_SECONDS)
    faulty.heal()


@pytest.mark.faults
@pytest.mark.timeout(400)  # a schedule may start the broker six times
def test_a_random_mix(faulty: Services, tmp_path: Path, seed: int) -> None:
    """Kills, pauses, outages and full disks in an order and at moments of the seed: everything holds."""
    rng = random.Random(seed)
    with pipeline(faulty.settings, faulty.codec, "mix", tmp_path) as rig:
        processes = [
            rig.start(role, instance=str(n), CLOCK_SHIFT_S=rng.choice(("0", "3600", "-3600")))
            for role in ("processor", "sink")
            for n in range(2)
        ]
        acts: dict[str, Callable[[], None]] = {
            "kill": lambda: rng.choice(processes).kill(),
            "kill all": lambda: [p.kill() for p in processes] and None,
            "pause": lambda: _pause(rng.choice(processes)),
            "broker killed": lambda: _outage(faulty, "kafka"),
            "postgres killed": lambda: _outage(faulty, "postgres"),
            "broker's disk full": lambda: _full(faulty, "kafka"),
            "postgres' disk full": lambda: _full(faulty, "postgres"),
        }
        schedule = sorted((rng.uniform(0.05, 0.95), rng.choice(sorted(acts))) for _ in range(FAULTS))
        print(f"seed {seed}: " + ", ".join(f"{share * SECONDS:.1f} s {what}" for share, what in schedule))
        traffic = rig.traffic(seed, events_total=20_000, seconds=SECONDS, resent=0.15)
        for share, what in schedule:
            traffic.reach(share)
            acts[what]()
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert not any(p.resting for p in processes)
    print(f"drained {healed:.1f} s after the last record; {checked}")
