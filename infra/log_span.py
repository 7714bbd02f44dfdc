"""A stretch of topics between two bounds, each an offset or a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka.admin import AdminClient, OffsetSpec

from infra.checkpoints import TopicPartition
from infra.topic_log import list_offsets


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
    lower = _offsets(admin, starts, ends, first) if first else dict(starts)
    upper = _offsets(admin, starts, ends, last) if last else dict(ends)
    found = {}
    for at, end in ends.items():
        begin = min(max(lower[at], starts[at]), end)
        found[at] = (begin, max(begin, min(upper[at], end)))
    return found


def _offsets(
    admin: AdminClient, starts: Iterable[TopicPartition], ends: Mapping[TopicPartition, int], bound: Bound
) -> dict[TopicPartition, int]:
    if bound.time_ms is None:
        return dict.fromkeys(starts, bound.offset or 0)
    found = list_offsets(admin, starts, OffsetSpec.for_timestamp(bound.time_ms))
    # Nothing was appended at that time or later: it is the end.
    return {at: ends[at] if offset < 0 else offset for at, offset in found.items()}
