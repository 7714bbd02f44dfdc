"""A stretch of topics between two bounds, each an offset or a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka.admin import AdminClient

from infra.checkpoints import TopicPartition
from infra.topic_log import at_time


class BoundError(ValueError):
    """A bound that is neither an offset nor a time; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where a stretch begins or ends: an offset in each partition, or the append time `time_ms` (UTC)."""

    offset: int | None = None
    time_ms: int | None = None

    @classmethod
    def parse(cls, text: str) -> Bound:
        """A whole number is an offset; anything else a time in ISO 8601, UTC where it names no zone."""
        if text.isascii() and text.isdigit():
            return cls(offset=int(text))
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise BoundError(
                f"{text!r} is neither an offset nor a time; write 1200, or 2026-03-01T12:00:00Z"
            ) from None
        return cls(time_ms=round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000))


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
