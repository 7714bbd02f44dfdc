"""What all benchmarks measure by: a slice of a real process."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.harness import Slice, SubjectFailed

BURST_SECONDS = 1.5


def bursts() -> int:
    """A thousand units every one and a half seconds."""
    return 1_000 * int(time.monotonic() / BURST_SECONDS)


def a_slice(command: str, total: int) -> Slice:
    begun = bursts()
    return Slice(
        name="test-of-the-harness",
        command=["sh", "-c", command],
        environ=dict(os.environ),
        progress=lambda: bursts() - begun,
        total=total,
        seconds=4.0,
    )


def test_output_in_bursts_is_counted_from_burst_to_burst() -> None:
    """Where a slice begins and ends between two bursts changes no rate."""
    measured = a_slice("sleep 60", 1_000_000).run()
    assert measured.units == 2_000
    assert measured.seconds == pytest.approx(2 * BURST_SECONDS, abs=0.5)


def test_a_subject_that_ends_fails_with_its_last_words() -> None:
    """A process that ended before its input did is no result, and says why."""
    with pytest.raises(SubjectFailed, match="ended with code 3: no broker"):
        a_slice("echo no broker; exit 3", 1_000_000).run()
