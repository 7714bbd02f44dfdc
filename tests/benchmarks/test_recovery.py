"""What the log says of a kill: when results came again, and when they followed closely."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.recovery import Recovered, recovered

STEADY, KILLED, BACK = 1_000, 10_000, 10_300
APPENDED = np.arange(0, 20_000, 10)


def results(delay_ms: int, stalled_until_ms: int) -> npt.NDArray[np.int64]:
    """First results, `delay_ms` late each; those due after the kill not before `stalled_until_ms`."""
    due = APPENDED + delay_ms
    return np.where(due >= KILLED, np.maximum(due, stalled_until_ms), due)


def test_the_time_is_from_the_kill_to_the_last_late_result() -> None:
    """Results that come 4 s late at first and then on time: caught up where the last late one came."""
    first = results(100, 14_000)
    found = recovered(APPENDED, first, STEADY, KILLED, BACK)
    assert found == Recovered(new_s=4.0, caught_up_s=4.0)
    backlog = first.copy()
    backlog[(APPENDED >= 9_900) & (APPENDED < 15_000)] += 2_000  # worked off slowly
    assert recovered(APPENDED, backlog, STEADY, KILLED, BACK) == Recovered(5.1, 7.09)


def test_a_subject_that_is_always_late_is_compared_with_itself() -> None:
    """Where results came 3 s late before the kill, as late ones after it are none to wait for."""
    found = recovered(APPENDED, results(3_000, 13_000), STEADY, KILLED, BACK)
    assert found == Recovered(3.0, 3.0)


def test_what_a_dying_process_still_sent_is_not_its_return() -> None:
    """Results between the kill and the next start do not count as new ones."""
    first = results(100, 14_000)
    first[np.flatnonzero(first >= KILLED)[0]] = KILLED + 5
    assert recovered(APPENDED, first, STEADY, KILLED, BACK).new_s == 4.0


def test_it_has_never_caught_up_where_a_result_is_missing() -> None:
    """A transaction without a result: results flow again, but never is everything there."""
    first = results(100, 12_000)
    first[1_500] = -1
    assert recovered(APPENDED, first, STEADY, KILLED, BACK) == Recovered(2.0, None)
    assert recovered(APPENDED, np.full(len(APPENDED), -1), STEADY, KILLED, BACK) == Recovered(None, None)
