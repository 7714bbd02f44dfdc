"""The search for the highest rate, the peers' ladder, and the middle of several rounds."""

from __future__ import annotations

import pytest

from benchmarks.arrivals import Waits
from benchmarks.harness import Check, SubjectFailed
from benchmarks.latency import LADDER, SEARCH_P99_MS, SEARCH_UP, AtWork, Times, climb, search
from benchmarks.latency_report import Measured, entry, median
from benchmarks.open_loop import Schedule
from benchmarks.stretches import SENDER_LATE_MS, Load, Stretch

TIMES = Times(warm_seconds=5.0, seconds=15.0)


def stretch(rate: int, p99: float, *, held: bool = True, late: float = 1.0) -> Stretch:
    waits, sender = Waits(1.0, 2.0, p99, p99 + 1), Waits(0.5, 1.0, late, late)
    return Stretch(rate, waits, None, sender, held, {"processor": 0.5}, 15.0)


def test_the_search_closes_in_from_both_sides() -> None:
    """It goes up until a rate is too much, then between the last good one and that."""
    tried = [s.rate for s in search(lambda rate: stretch(rate, 100 if rate <= 50_000 else 900), 30_000)]
    assert tried[:3] == [36_000, 43_200, 51_840]
    assert all(43_200 < rate < 51_840 for rate in tried[3:])
    assert max(rate for rate in tried if rate <= 50_000) > 48_000


def test_the_search_ends_where_nothing_is_too_much() -> None:
    """It is bounded: a machine that holds everything does not keep it for ever."""
    assert len(search(lambda rate: stretch(rate, 10), 30_000)) == SEARCH_UP


def test_a_rate_that_is_not_held_is_not_good() -> None:
    """A low p99 before a backlog shows does not count."""
    tried = search(lambda rate: stretch(rate, SEARCH_P99_MS, held=rate < 36_000), 30_000)
    assert [s.rate for s in tried] == [36_000, 33_000, 34_500]


def test_a_sender_that_was_late_is_told() -> None:
    """A stretch whose sender did not keep its schedule is marked in what is printed."""
    assert "THE SENDER WAS LATE" in stretch(5_000, 20, late=SENDER_LATE_MS + 1).line()
    assert "LATE" not in stretch(5_000, 20, late=SENDER_LATE_MS).line()


def test_the_median_is_of_each_percentile() -> None:
    """One round with a stall does not make the figure, and one lucky round neither."""
    rounds = [Waits(5, 9, 20, 900), Waits(6, 8, 30, 50), Waits(4, 10, 25, 60)]
    assert median(rounds) == Waits(5, 9, 25, 60)


class Subject:
    """Holds what it holds: so much for a probe, so much for a whole stretch."""

    def __init__(self, briefly: int, for_long: int) -> None:
        self.briefly, self.for_long = briefly, for_long
        self.asked: list[tuple[int, float]] = []
        self.load = Load(*[None] * 5)  # type: ignore[arg-type]

    def measure(self, schedule: Schedule) -> Stretch:
        self.asked.append((schedule.rate, schedule.seconds))
        most = self.for_long if schedule.seconds == TIMES.seconds else self.briefly
        return stretch(schedule.rate, 20, held=schedule.rate <= most)

    def at_work(self) -> AtWork:
        return AtWork(self.load, self.measure, lambda: Check(True, {}, "", ""))


def test_a_peer_is_measured_at_the_highest_rung_that_it_holds() -> None:
    """Up to the first rung that is too much, then down to one that is held for the whole time."""
    subject = Subject(briefly=10_000, for_long=5_000)
    assert [s.rate for s in climb(subject.at_work(), TIMES)] == [5_000]
    assert [rate for rate, _ in subject.asked] == [*LADDER[:6], 10_000, 5_000]


def test_a_peer_that_holds_nothing_is_a_failure() -> None:
    """A rate that is not held is no figure."""
    with pytest.raises(SubjectFailed):
        climb(Subject(briefly=400, for_long=400).at_work(), TIMES)


def test_a_round_that_failed_is_not_hidden_by_those_that_did_not() -> None:
    """A figure with a failed check, a failed round or a late sender says so."""
    good, bad = Check(True, {}, "1", "1"), Check(False, {"wrong": 1}, "1", "2")
    fine = [stretch(5_000, 20), stretch(5_000, 30), stretch(5_000, 40)]
    assert entry("millrace", 5_000, Measured(fine, [good] * 3))["checked"]
    assert entry("millrace", 5_000, Measured(fine, [good] * 3))["value"] == 30
    assert not entry("millrace", 5_000, Measured(fine, [good, bad, good]))["checked"]
    assert not entry("millrace", 5_000, Measured(fine[:2], [good] * 2, ["it ended"]))["checked"]
    assert not entry("millrace", 5_000, Measured(failures=["it ended"]))["checked"]
    late = [*fine[:2], stretch(5_000, 20, late=99)]
    assert entry("millrace", 5_000, Measured(late, [good] * 3))["sender_late"]
