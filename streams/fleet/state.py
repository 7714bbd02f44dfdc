"""What a partition remembers of its trucks: a small value each, and the fixes applied lately."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from streams.fleet.overheat import Heat
from streams.fleet.stays import Stay

DUPLICATE_HORIZON_MS = 15 * 60 * 1000
"""How far behind a truck's newest fix an event id is known again.

A fix that comes again later than that is taken for a late one: it moves no state either, and the table
drops its row by key; only its answer says late where the first said not.
"""


class Truck(msgspec.Struct, array_like=True):
    """One truck: its newest fix's time, the fences' version that decided it, its stays, its engine."""

    newest_ms: int
    fences_version: int
    stays: dict[str, Stay]
    heat: Heat | None = None


class Applied(msgspec.Struct, array_like=True, frozen=True):
    """A fix that was answered: what identifies its content, and what of the answer was decided."""

    occurred_at: int
    sequence: int
    latitude: float
    longitude: float
    fences: tuple[str, ...]
    is_late: bool
    duplicate_of: str | None
    code_version: int
    fences_version: int


class _Chunk(msgspec.Struct, array_like=True):
    trucks: dict[str, Truck]
    applied: list[tuple[str, str, Applied]]


class FleetState:
    """Trucks by `tenant/truck_id`. The fixes applied lately are written once each, not with every delta."""

    def __init__(self, chunk_trucks: int = 200) -> None:
        self._trucks: dict[str, Truck] = {}
        self._applied: dict[str, dict[str, Applied]] = {}
        self._by_sequence: dict[str, dict[tuple[int, int], str]] = {}
        self._changed: set[str] = set()
        self._added: list[tuple[str, str, Applied]] = []
        self._chunk_trucks = chunk_trucks
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(_Chunk)

    def truck(self, key: str) -> Truck | None:
        """The truck, or None before its first fix. Call `put` after a change."""
        return self._trucks.get(key)

    def put(self, key: str, truck: Truck) -> None:
        self._trucks[key] = truck
        self._changed.add(key)

    def applied(self, key: str, event_id: str) -> Applied | None:
        """The fix applied under `event_id`, if it lies within the horizon."""
        fix = self._applied.get(key, {}).get(event_id)
        return fix if fix is not None and self._remembered(key, fix) else None

    def applied_as(self, key: str, sequence: int, occurred_at: int) -> str | None:
        """The event id under which the fix with that counter and time was applied first."""
        event_id = self._by_sequence.get(key, {}).get((sequence, occurred_at))
        return event_id if event_id is not None and self.applied(key, event_id) is not None else None

    def add(self, key: str, event_id: str, fix: Applied) -> None:
        """Remember an applied fix; call it after the truck's newest time was put."""
        if self._remembered(key, fix):
            self._added.append((key, event_id, fix))
            self._remember(key, event_id, fix)

    def delta(self) -> bytes | None:
        if not self._changed and not self._added:
            return None
        chunk = _Chunk({key: self._trucks[key] for key in sorted(self._changed)}, self._added)
        self._changed, self._added = set(), []
        return self._encoder.encode(chunk)

    def snapshot(self) -> Iterator[bytes]:
        keys = sorted(self._trucks)
        for start in range(0, len(keys), self._chunk_trucks):
            some = keys[start : start + self._chunk_trucks]
            yield self._encoder.encode(
                _Chunk(
                    {key: self._trucks[key] for key in some},
                    [
                        (key, event_id, fix)
                        for key in some
                        for event_id, fix in self._applied.get(key, {}).items()
                        if self._remembered(key, fix)
                    ],
                )
            )

    def load(self, chunk: bytes) -> None:
        loaded = self._decoder.decode(chunk)
        self._trucks.update(loaded.trucks)
        for key, event_id, fix in loaded.applied:
            # A delta holds what was applied since the one before, and its truck's newest time as of its end:
            # after a pause its first fixes may be forgotten already.
            if self._remembered(key, fix):
                self._remember(key, event_id, fix)

    def _remembered(self, key: str, fix: Applied) -> bool:
        # The one rule of expiry, applied on reading: when memory is freed cannot change an answer.
        return fix.occurred_at >= self._trucks[key].newest_ms - DUPLICATE_HORIZON_MS

    def _remember(self, key: str, event_id: str, fix: Applied) -> None:
        fixes = self._applied.setdefault(key, {})
        sequences = self._by_sequence.setdefault(key, {})
        self._forget(fixes, sequences, event_id)
        fixes[event_id] = fix
        sequences.setdefault((fix.sequence, fix.occurred_at), event_id)
        while not self._remembered(key, fixes[oldest := next(iter(fixes))]):
            self._forget(fixes, sequences, oldest)

    @staticmethod
    def _forget(fixes: dict[str, Applied], sequences: dict[tuple[int, int], str], event_id: str) -> None:
        gone = fixes.pop(event_id, None)
        if gone is not None and sequences.get((gone.sequence, gone.occurred_at)) == event_id:
            del sequences[(gone.sequence, gone.occurred_at)]
