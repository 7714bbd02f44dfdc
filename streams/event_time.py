"""Event time per key: its watermark, what is late, and what a clock would trigger.

A key's watermark is its newest event time less the lateness that its processor allows. It never goes back.
An event at or behind it is late. No clock moves it, so the log alone decides what is late, however fast it is
read: history that is loaded beside live traffic has its own keys, or is late by its own keys' events.

What shall happen when nothing comes (an expiry, a silence) is a timer of a key, in event time. It is due once
the key's own watermark or a *tick* reaches it. A tick is a record of the source topic (`schemas.platform`)
with a place in the log like any other; a replay meets it again at the same place. A test appends one instead
of sleeping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BoundedLateness:
    """How far behind its key's newest event an event may lie without being late: less than `allowed_ms`.

    With 0 only what is newer than everything before is in time.
    """

    allowed_ms: int

    def watermark(self, newest_ms: int) -> int:
        """Event time that the key has left behind: whatever occurred then or before comes late."""
        return newest_ms - self.allowed_ms

    def is_late(self, at_ms: int, newest_ms: int | None) -> bool:
        """Whether an event at `at_ms` is late for a key with this newest event (None: it has none yet)."""
        return newest_ms is not None and at_ms <= newest_ms - self.allowed_ms

    def in_time(self, at_ms: npt.NDArray[np.int64], newest_ms: int) -> tuple[npt.NDArray[np.bool_], int]:
        """By column: which events of one key, in log order, are not late, and its newest time after them.

        The same as `is_late` says of each after all before it, however the log was cut.
        """
        newest = np.maximum.accumulate(np.concatenate(([newest_ms], at_ms)))
        return at_ms > newest[:-1] - self.allowed_ms, int(newest[-1])


class _Entry(msgspec.Struct, Generic[T], array_like=True):
    """A key: its newest event time, its timer, and what its processor keeps of it."""

    newest_ms: int
    timer_ms: int | None
    value: T | None


class EventTimeState(Generic[T]):
    """State per key with a watermark and a timer each; see `streams.decide.State`. `T` is a msgspec type.

    For each event: `advance`, and unless it is late `put` with the new value and timer; then act on `due`.
    For each tick: act on `due`.
    """

    def __init__(self, value_type: type[T], lateness: BoundedLateness, chunk_keys: int = 5_000) -> None:
        self._lateness = lateness
        self._entries: dict[str, _Entry[T]] = {}
        self._changed: set[str] = set()
        self._timers: list[tuple[int, str]] | None = []
        self._chunk_keys = chunk_keys
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(
            dict[str, _Entry[value_type] | None]  # type: ignore[valid-type]
        )

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> T | None:
        entry = self._entries.get(key)
        return entry.value if entry is not None else None

    def watermark(self, key: str) -> int | None:
        """The key's watermark; None before its first event."""
        entry = self._entries.get(key)
        return self._lateness.watermark(entry.newest_ms) if entry is not None else None

    def advance(self, key: str, at_ms: int) -> bool:
        """Take note of an event's time. Returns whether it is in time; a late one changes nothing."""
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(at_ms, None, None)
        elif self._lateness.is_late(at_ms, entry.newest_ms):
            return False
        elif at_ms <= entry.newest_ms:
            return True
        else:
            entry.newest_ms = at_ms
        self._changed.add(key)
        return True

    def put(self, key: str, value: T, timer_ms: int | None = None) -> None:
        """Keep a value for a key that `advance` has seen; `timer_ms` replaces the key's timer, or ends it."""
        entry = self._entries[key]
        entry.value = value
        if timer_ms != entry.timer_ms:
            entry.timer_ms = timer_ms
            if timer_ms is not None and self._timers is not None:
                heappush(self._timers, (timer_ms, key))
        self._changed.add(key)

    def delete(self, key: str) -> None:
        """Forget a key with its watermark; whatever comes for it next is its first event."""
        if self._entries.pop(key, None) is not None:
            self._changed.add(key)

    def due(self, reached_ms: int) -> Iterator[tuple[str, int]]:
        """Keys whose timer lies at `reached_ms` or before, each with its time; by time, then by key.

        Each timer ends as it is handed out; what is put meanwhile may be handed out as well. `reached_ms` is
        a tick's time. (A key's own watermark reaches its own timer: compare the two where that matters.)
        """
        if self._timers is None:
            self._timers = [(e.timer_ms, k) for k, e in self._entries.items() if e.timer_ms is not None]
            heapify(self._timers)
        while self._timers and self._timers[0][0] <= reached_ms:
            timer_ms, key = heappop(self._timers)
            entry = self._entries.get(key)
            if entry is None or entry.timer_ms != timer_ms:
                continue  # put off, or ended, since
            entry.timer_ms = None
            self._changed.add(key)
            yield key, timer_ms

    # State

    def delta(self) -> bytes | None:
        if not self._changed:
            return None
        out = {key: self._entries.get(key) for key in sorted(self._changed)}
        self._changed.clear()
        return self._encoder.encode(out)

    def snapshot(self) -> Iterator[bytes]:
        keys = sorted(self._entries)
        for start in range(0, len(keys), self._chunk_keys):
            yield self._encoder.encode({k: self._entries[k] for k in keys[start : start + self._chunk_keys]})

    def load(self, chunk: bytes) -> None:
        for key, entry in self._decoder.decode(chunk).items():
            if entry is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = entry
        self._timers = None
