"""Clocks are wrong; what is decided and stored is not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Services
from tests.faults.rig import pipeline

HOUR_AHEAD, HOUR_BEHIND = ("faketime", "-f", "+1h"), ("faketime", "-f", "-1h")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("processor", "sink"), [(HOUR_AHEAD, HOUR_BEHIND), (HOUR_BEHIND, HOUR_AHEAD)], ids=["ahead", "behind"]
)
def test_clocks_are_an_hour_apart(
    faulty: Services, tmp_path: Path, seed: int, processor: tuple[str, ...], sink: tuple[str, ...]
) -> None:
    """With processor and sink an hour before and behind the broker, outputs are those of the right time."""
    with pipeline(faulty.settings, faulty.codec, f"clock-{processor[-1][0] == '+'}".lower(), tmp_path) as rig:
        # A wrapper that faketime forked would outlive a kill; it replaces itself.
        started = [rig.start("processor", wrapper=processor), rig.start("sink", wrapper=sink)]
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
