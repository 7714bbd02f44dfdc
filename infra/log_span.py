"""A stretch of topics between two bounds, each an offset or a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka.admin import AdminClient

from infra.checkpoints import TopicPartition
from infra.moments import moment_or_offset
from infra.topic_log import at_time


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a stretch begins or ends: an offset in each partition, or the append time `time_ms` (UTC)."""

    offset: int | None = None
    time_ms: int | None = None

    @classmethod
    def parse(cls, text: str) -> Bound:
        """What an operator wrote: see `infra.moments`. Raises `MomentError`."""
        at = moment_or_offset(text)
        return cls(offset=at) if isinstance(at, int) else cls(time_ms=round(at.timestamp() * 1000))


def stretch(
    admin: AdminClient,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    first: Bound | None,
    last: Bound | None,
) -> dict[TopicPartition, tuple[int, int]]:
    """For each partition the offsets from `first` up to, not including, `last`, within `starts` and `ends`.

    Times are append times. Raises `infra.topic_log.LogUnreadable`.
    """
    lower = _offsets(admin, starts, first) if first else dict(starts)
    upper = _offsets(admin, starts, last) if last else dict(ends)
    found = {}
    for at, end in ends.items():
        begin = min(max(lower[at], starts[at]), end)
        found[at] = (begin, max(begin, min(upper[at], end)))
    return found


def _offsets(admin: AdminClient, wanted: Iterable[TopicPartition], bound: Bound) -> dict[TopicPartition, int]:
    if bound.time_ms is not None:
        return at_time(admin, wanted, bound.time_ms)
    return dict.fromkeys(wanted, bound.offset or 0)
