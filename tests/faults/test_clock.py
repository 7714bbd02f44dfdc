"""Clocks are wrong; what is decided and stored is not."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.faults.conftest import Services
from tests.faults.rig import Process, pipeline, until


@pytest.mark.faults
@pytest.mark.parametrize(("processor", "sink"), [(1, -1), (-1, 1)], ids=["ahead", "behind"])
def test_clocks_are_an_hour_apart(
    faulty: Services, tmp_path: Path, seed: int, processor: int, sink: int
) -> None:
    """With processor and sink an hour before and behind the broker, outputs are those of the right time."""
    with pipeline(faulty.settings, faulty.codec, f"clock{processor}", tmp_path) as rig:
        started = [
            rig.start(role, CLOCK_SHIFT_S=str(hours * 3600))
            for role, hours in (("processor", processor), ("sink", sink))
        ]
        for process, hours in zip(started, (processor, sink), strict=True):
            until(lambda p=process, h=hours: _hours_ahead(p) == h, 60, f"its clock is {hours} h off")  # type: ignore[misc]
        traffic = rig.traffic(seed, seconds=8)
        for share in (0.3, 0.6):
            traffic.reach(share)
            for process in started:
                process.kill()
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert [p.exits for p in started] == [[-signal.SIGKILL] * 2] * 2
    print(f"drained {healed:.1f} s after the last record; {checked}")


def _hours_ahead(process: Process) -> int | None:
    """By how much the time in the process's first log line is ahead; None before there is one."""
    for line in process.log.read_text().splitlines():
        if line.startswith("{"):
            said = datetime.fromisoformat(json.loads(line)["time"])
            return round((said - datetime.now(UTC)).total_seconds() / 3600)
    return None
