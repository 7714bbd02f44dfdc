"""The open loop: a schedule that waits for nobody, and what is reckoned from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.arrivals import Arrivals, Positions, Waits, holds
from benchmarks.open_loop import TICK_NS, Schedule, due_ns, pace, read, write

SECOND_NS = 1_000_000_000


class Clock:
    """Moves only when somebody sleeps, or when sending takes time."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_records_are_due_at_an_even_rate() -> None:
    """Record k is due k / rate seconds after the beginning, also at rates that do not divide a second."""
    assert due_ns(4, 1_000).tolist() == [0, 1_000_000, 2_000_000, 3_000_000]
    due = due_ns(90_001, 30_000)
    assert due[-1] == 3 * SECOND_NS
    assert set(np.diff(due)) == {33_333, 33_334}


def test_the_warm_up_is_sent_and_not_measured() -> None:
    """A stretch goes on where the one before it ended, and says which of its records count."""
    schedule = Schedule(first=500, rate=2_000, warm_seconds=0.5, seconds=1.5)
    assert (schedule.warm, schedule.records, schedule.end) == (1_000, 4_000, 4_500)
    assert len(schedule.due_ns()) == 4_000


def test_a_sender_that_can_is_a_tick_late_at_most() -> None:
    """Every record goes out once, in order, after it was due and within a tick."""
    clock, out = Clock(), list[str]()
    due = due_ns(1_000, 10_000)
    sent = pace(
        ((str(n), b"") for n in range(1_000)), due, lambda key, _: out.append(key), clock, clock.sleep
    )
    assert out == [str(n) for n in range(1_000)]
    assert ((sent >= due) & (sent <= due + TICK_NS + 100_000)).all()


def test_a_sender_that_was_held_up_moves_no_record() -> None:
    """After a stall all that fell due goes out at once, and its lateness counts from when it was due."""
    clock = Clock()
    due = due_ns(1_000, 1_000)

    def send(key: str, _: bytes) -> None:
        if key == "100":
            clock.now_ns += SECOND_NS // 2

    sent = pace(((str(n), b"") for n in range(1_000)), due, send, clock, clock.sleep)
    late = sent - due
    assert late[100:600].max() > SECOND_NS // 2 - TICK_NS
    assert late[700:].max() <= TICK_NS
    assert sent[-1] <= due[-1] + TICK_NS


def test_records_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    """What the sender reads is what was encoded, in the same order."""
    rows = [(f"card-{n % 7}", b"\0" + str(n).encode()) for n in range(5_000)]
    halves = (rows[:3_000], rows[3_000:])
    write(tmp_path / "records", (([k for k, _ in half], [v for _, v in half]) for half in halves))
    assert list(read(tmp_path / "records")) == rows


def test_percentiles_are_waits_that_there_were() -> None:
    """No percentile lies between two waits, and the largest is not rounded away."""
    waits = Waits.of(np.arange(1, 1_001) * 1_000_000)
    assert (waits.p50, waits.p95, waits.p99, waits.max) == (501.0, 951.0, 991.0, 1_000.0)
    assert Waits.of(np.array([1_000_000, 3_000_000])).p50 == 3.0


def arrivals(*numbers: int) -> Arrivals:
    """Answers that came one after the other, each at ten times its place in the row."""
    n = np.arange(len(numbers))
    return Arrivals(np.array(numbers), n % 2, n // 2, n * 10)


def test_the_first_answer_counts() -> None:
    """An answer that comes again is not taken for the one that was waited for."""
    found = arrivals(3, 1, 2, 1, 9).first_of(1, 4)
    assert found.number.tolist() == [1, 2, 3]
    assert found.at_ns.tolist() == [10, 20, 0]


def test_an_answer_that_never_came_is_no_figure() -> None:
    """Percentiles of those that came would hide the one that did not."""
    with pytest.raises(LookupError, match="1 transactions have no answer, 2 is one"):
        arrivals(1, 3).first_of(1, 4)


def test_a_row_is_readable_once_its_position_is_passed() -> None:
    """A position at an answer's own offset does not tell of its row; the next one beyond it does."""
    answers = Arrivals(np.array([1, 2, 3]), np.array([0, 0, 1]), np.array([4, 5, 0]), np.zeros(3, np.int64))
    looks = [(0, 4, 10), (1, 0, 10), (0, 5, 20), (0, 9, 30), (1, 1, 40)]
    positions = Positions(*(np.array(column) for column in zip(*looks, strict=True)))
    assert positions.stored_ns(answers).tolist() == [20, 30, 40]


def test_a_row_that_was_not_seen_is_no_figure() -> None:
    """A sink that has not come past an answer leaves nothing to reckon with."""
    answers = Arrivals(*(np.array([n]) for n in (1, 0, 7, 0)))
    with pytest.raises(LookupError, match="1 rows"):
        Positions(np.array([0]), np.array([7]), np.array([5])).stored_ns(answers)


@pytest.mark.parametrize(
    ("waits", "held"),
    [
        (np.full(40_000, 0.4), True),
        (np.full(40_000, 1.9), True),
        (np.linspace(0.0, 3.0, 40_000), False),
        (np.full(40_000, 2.5), False),
        (np.where(np.arange(40_000) % 4_000 < 400, 0.8, 0.1), True),
    ],
    ids=["soon", "late, but steadily", "later and later", "too much at the end", "stalls that are made good"],
)
def test_a_rate_is_held_while_what_waits_does_not_grow(waits: np.ndarray, held: bool) -> None:
    """A backlog that grows, or that is too large at the end, is no rate that a subject holds."""
    due = due_ns(40_000, 2_000)
    assert holds(due, due + (waits * 1e9).astype(np.int64), 2_000) is held
