"""Two processes that both think a partition theirs: one's work takes effect, and the other one says so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from infra import exit_codes
from tests.faults.conftest import Services
from tests.faults.rig import Process, pipeline, until

TAKEN_OVER_SECONDS = 60
TAKEN_OVER = "was taken over"
"""What a commit with an old epoch is refused with."""
ENDED_FROM_OUTSIDE = "waiting for a service"
"""What follows where the database ended the transaction: there is nothing left to commit."""


def stopped(process: Process) -> bool:
    """Whether the process stands still (SIGSTOP)."""
    state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("role", "place", "told"),
    [
        ("sink", "before-transaction:1:STOP", TAKEN_OVER),
        ("sink", "after-rows:1:STOP", ENDED_FROM_OUTSIDE),
        ("processor", "outputs-acknowledged:1:STOP", TAKEN_OVER),
        ("processor", "state-written:1:STOP", ENDED_FROM_OUTSIDE),
    ],
)
def test_a_zombie_changes_nothing(
    faulty: Services, tmp_path: Path, seed: int, role: str, place: str, told: str
) -> None:
    """Stopped in mid-commit until another one has taken over, it changes nothing when it wakes up and says
    so; it stays down, or joins again if it first heard from the broker that its partitions are lost."""
    name = f"zombie-{role}-{place.partition(':')[0]}"
    with pipeline(faulty.settings, faulty.codec, name, tmp_path) as rig:
        other = {"processor": "sink", "sink": "processor"}[role]
        rig.start(other)
        zombie = rig.start(role, instance="0", places=[place])
        first = rig.traffic(seed * 1000, events_total=1_000, seconds=4)
        until(lambda: stopped(zombie), 30, "the process stands still")
        heir = rig.start(role, instance="1")
        first.finish()
        rig.drain(TAKEN_OVER_SECONDS)
        zombie.kill(signal.SIGCONT)
        until(lambda: told in zombie.log.read_text(), 30, "the zombie has noticed")
        second = rig.traffic(seed * 1000 + 1, events_total=300, seconds=2)
        second.finish()
        rig.drain()
        checked = rig.check([first, second])
        assert zombie.exits in ([], [exit_codes.FENCED])
        assert heir.exits == []
    print(checked)


@pytest.mark.faults
@pytest.mark.parametrize("role", ["processor", "sink"])
def test_a_stolen_identity(faulty: Services, tmp_path: Path, seed: int, role: str) -> None:
    """Of two processes with one group and one instance id the older is fenced, says so, and stays down."""
    with pipeline(faulty.settings, faulty.codec, f"stolen-{role}", tmp_path) as rig:
        rig.start({"processor": "sink", "sink": "processor"}[role])
        robbed = rig.start(role)
        traffic = rig.traffic(seed, events_total=1_500, seconds=8)
        traffic.reach(0.3)
        thief = rig.start(role)
        until(lambda: robbed.resting or thief.resting, 60, "one of the two is fenced")
        traffic.finish()
        rig.drain()
        checked = rig.check([traffic])
        assert sorted([robbed.exits, thief.exits]) == [[], [exit_codes.FENCED]]
        assert "another process" in (robbed if robbed.exits else thief).log.read_text()
    print(checked)
