"""Windows of event time over one partition, by column: cells in open panes, and which windows are over.

A partition's watermark is its own: its newest event time less the lateness, or what a tick says. A window
is over when the watermark has passed its end, and from the stream's beginning on each window is, also one
without any event: whoever puts the partitions' answers together then knows when it has all. A cell is a
line of integers: the end of its pane (panes are as long as windows lie apart), what it is of, and last its
value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from streams.event_time import BoundedLateness

Ints = npt.NDArray[np.int64]

LATENESS = BoundedLateness(1_000)


@dataclass(frozen=True, slots=True)
class Hopping:
    """Windows of `length` ms, one in each `hop` ms, from `begins_ms` on, of which a hop is a divisor."""

    length: int
    hop: int
    begins_ms: int

    def pane_ends(self, at_ms: Ints) -> Ints:
        """The end of the pane in which each of these times lies."""
        ends: Ints = at_ms - at_ms % self.hop + self.hop
        return ends


class Cells:
    """One partition's state: how far it is, and the cells of panes that are still open."""

    def __init__(self, windows: Hopping, width: int) -> None:
        self._windows = windows
        self._newest_ms = self._over_ms = windows.begins_ms
        self._rows: Ints = np.empty((0, width), np.int64)
        self._changed = False

    def in_time(self, at_ms: Ints) -> npt.NDArray[np.bool_]:
        """Which of these events, each after those before it in the log, are not late."""
        in_time, self._newest_ms = LATENESS.in_time(at_ms, self._newest_ms)
        self._changed = True
        return in_time

    def reach(self, now_ms: int) -> None:
        """A tick: this time has come, whatever comes of it or of earlier times is late."""
        self._newest_ms = max(self._newest_ms, now_ms + LATENESS.allowed_ms)
        self._changed = True

    def add(self, cells: Ints, fold: Callable[[Ints], Ints]) -> None:
        """Add cells of events that are in time; `fold` makes all of them as few as can be."""
        self._rows = fold(np.concatenate((self._rows, cells)))

    def over(self) -> Iterator[tuple[int, Ints]]:
        """The windows that have ended since the last call: the end of each, and its cells.

        Once all are handed out, cells that no later window has are forgotten.
        """
        # An event at the watermark would be late: a window's last millisecond may lie there.
        passed_ms = LATENESS.watermark(self._newest_ms) + 1
        length, hop = self._windows.length, self._windows.hop
        panes = self._rows[:, 0]
        while self._over_ms + hop <= passed_ms:
            self._over_ms = end = self._over_ms + hop
            yield end, self._rows[(panes > end - length) & (panes <= end)]
        self._rows = self._rows[panes > self._over_ms + hop - length]

    # State. Its deltas are the whole of it, which is no more than a few open windows.

    def delta(self) -> bytes | None:
        changed, self._changed = self._changed, False
        return next(self.snapshot()) if changed else None

    def snapshot(self) -> Iterator[bytes]:
        rows = self._rows.astype("<i8").tobytes()
        yield msgspec.msgpack.encode((self._newest_ms, self._over_ms, rows))

    def load(self, chunk: bytes) -> None:
        self._newest_ms, self._over_ms, rows = msgspec.msgpack.decode(chunk, type=tuple[int, int, bytes])
        self._rows = np.frombuffer(rows, "<i8").astype(np.int64).reshape(-1, self._rows.shape[1])


def summed(cells: Ints) -> Ints:
    """One cell for all that differ in their values alone, with the values' sum."""
    if not len(cells):
        return cells
    ordered = cells[np.lexsort(cells[:, -2::-1].T)]
    differs = (ordered[1:, :-1] != ordered[:-1, :-1]).any(axis=1)
    first = np.flatnonzero(np.concatenate(([True], differs)))
    sums: Ints = ordered[first]
    sums[:, -1] = np.add.reduceat(ordered[:, -1], first)
    return sums


def highest(cells: Ints) -> Ints:
    """Of each pane the cells with its highest value."""
    if not len(cells):
        return cells
    ordered = cells[np.argsort(cells[:, 0], kind="stable")]
    first = np.flatnonzero(np.diff(ordered[:, 0], prepend=ordered[0, 0] - 1))
    most = np.maximum.reduceat(ordered[:, -1], first)
    kept: Ints = ordered[ordered[:, -1] == np.repeat(most, np.diff(first, append=len(ordered)))]
    return kept
