"""Which records a replay reads: per partition, from where the state is warmed up, from where rows count, and
up to where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka.admin import AdminClient

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, Undecodable
from infra.moments import MomentError, moment_or_offset
from infra.settings import Settings
from infra.topic_log import at_time, ends, partitions, read, starts
from schemas.declare import FUTURE_MS, Pipeline, Topic
from schemas.replayed import deciding_anew

WARM_UP_MIN_MS = 3_600_000
"""Even processors without memory read this much before the range: what was answered late is told apart so."""

Bound = datetime | int | None
"""A time, an offset for every partition, or nothing: the beginning, or where live stands."""


class RangeRefused(ValueError):
    """A range that cannot be replayed; the message names the option, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Place:
    """A partition's part of a replay: offsets. `last` is None where the replay follows live."""

    start: int
    warm: int
    first: int
    last: int | None


@dataclass(frozen=True)
class Places:
    """What a replay reads, and where the answers to it begin in the live result topics."""

    sources: Mapping[TopicPartition, Place]
    results: Mapping[TopicPartition, int]
    """Live results below these offsets answer records before the range."""
    incomplete: tuple[str, ...]
    """Topics that no longer hold all the records that the state depends on."""

    @property
    def partial(self) -> bool:
        """Whether rows of earlier records exist that this replay does not renew."""
        return any(p.first > p.start for p in self.sources.values())

    @property
    def bounded(self) -> bool:
        """Whether the replay ends before live does."""
        return any(p.last is not None for p in self.sources.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "sources": [
                [at.topic, at.partition, p.start, p.warm, p.first, p.last] for at, p in self.sources.items()
            ],
            "results": [[at.topic, at.partition, offset] for at, offset in self.results.items()],
            "incomplete": list(self.incomplete),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Places:
        return cls(
            {TopicPartition(t, n): Place(*place) for t, n, *place in stored["sources"]},
            {TopicPartition(t, n): offset for t, n, offset in stored["results"]},
            tuple(stored["incomplete"]),
        )


def bound(text: str | None, option: str) -> Bound:
    """What an operator wrote as --from or --to. Raises `RangeRefused`."""
    if text is None:
        return None
    try:
        return moment_or_offset(text)
    except MomentError as error:
        raise RangeRefused(f"{option}: {error}") from None


def source_topics(pipeline: Pipeline, *, in_place: bool) -> list[Topic]:
    """The live topics that a replay of the pipeline reads. `pipeline` as declared."""
    if in_place:
        return list(pipeline.sink_topics)
    found = {t.name: t for p in deciding_anew(pipeline) for t in p.sources}
    written = {o.name for p in pipeline.processors for o in p.outputs}
    found |= {t.name: t for t in pipeline.sink_topics if t.name not in written}
    return list(found.values())


def resolve(
    settings: Settings,
    codec: Codec,
    pipeline: Pipeline,
    since: Bound,
    until: Bound,
    *,
    event_time: bool = False,
    in_place: bool = False,
) -> Places:
    """Find the range's offsets. Raises `RangeRefused`, `LogUnreadable`, `RegistryUnavailable`.

    A time is the append time; with `event_time`, the range reaches from the first record of that event time
    or later to the last one before the other, with whatever lies between.
    """
    topics = source_topics(pipeline, in_place=in_place)
    wanted = partitions(topics)
    client = admin(settings.kafka)
    start, end = starts(client, wanted), ends(client, wanted)
    if event_time:
        first, last = _by_event_time(settings, client, codec, topics, since, until, start, end)
    else:
        first = _at(client, since, start, end, otherwise=start)
        last = None if until is None else _at(client, until, start, end, otherwise=end)
    for at in wanted:
        if last is not None and last[at] < first[at]:
            raise RangeRefused(f"--to lies before --from in {at} ({last[at]}, {first[at]}); exchange them")
    first_ms = _append_times(settings, first, end)
    memory = memories(pipeline, in_place=in_place)
    places, incomplete = {}, set()
    for at in wanted:
        warm = first[at]
        if first[at] > start[at]:
            needed = memory[at.topic]
            if needed is None:
                warm = start[at]
            elif first_ms.get(at) is not None:
                reach = first_ms[at] - max(needed, WARM_UP_MIN_MS if not in_place else 0)
                warm = min(first[at], at_time(client, [at], reach)[at])
        if warm == start[at] > 0 and memory[at.topic] != 0:
            incomplete.add(at.topic)
        places[at] = Place(start[at], warm, first[at], None if last is None else last[at])
    results = partitions(pipeline.sink_topics)
    partial_from = min((ms for at, ms in first_ms.items() if first[at] > start[at]), default=None)
    if any(first[at] > start[at] for at in wanted) and partial_from is not None:
        result_from = at_time(client, results, partial_from)
    elif any(first[at] > start[at] for at in wanted):
        result_from = ends(client, results)  # the range is empty as yet
    else:
        result_from = dict.fromkeys(results, 0)
    return Places(places, result_from, tuple(sorted(incomplete)))


def memories(pipeline: Pipeline, *, in_place: bool) -> dict[str, int | None]:
    """Per source topic: how far back its processors remember, in append time; None: everything."""
    found: dict[str, int | None] = {}
    for topic in source_topics(pipeline, in_place=in_place):
        needed = [p.warm_up_ms for p in deciding_anew(pipeline) if topic in p.sources and not in_place]
        found[topic.name] = None if None in needed else max((n for n in needed if n), default=0)
    return found


def _at(
    client: AdminClient,
    bound: Bound,
    start: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
    otherwise: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    if bound is None:
        return dict(otherwise)
    if isinstance(bound, int):
        return {at: min(max(bound, start[at]), end[at]) for at in start}
    return at_time(client, start, epoch_ms(bound))


def epoch_ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _by_event_time(
    settings: Settings,
    client: AdminClient,
    codec: Codec,
    topics: Iterable[Topic],
    since: Bound,
    until: Bound,
    start: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int] | None]:
    if isinstance(since, int) or isinstance(until, int):
        raise RangeRefused("--event-time needs times for --from and --to, not offsets; give times")
    by_name = {t.name: t for t in topics}
    since_ms = None if since is None else epoch_ms(since)
    until_ms = None if until is None else epoch_ms(until)
    # No event time lies further beyond its append time: what was appended earlier need not be read.
    scan = dict(start) if since_ms is None else at_time(client, start, since_ms - FUTURE_MS)
    first = dict(start) if since_ms is None else dict(end)
    last = dict(scan)
    for messages in read(settings.kafka, scan, end):
        for message in messages:
            at = TopicPartition(str(message.topic()), int(message.partition() or 0))
            offset, topic = int(message.offset() or 0), by_name[at.topic]
            try:
                event = codec.decode(topic, message.value()).event
            except Undecodable:
                continue
            event_ms = event[topic.event_time] // topic.event_time_unit_per_ms
            if since_ms is not None and event_ms >= since_ms:
                first[at] = min(first[at], offset)
            if until_ms is not None and event_ms < until_ms:
                last[at] = max(last[at], offset + 1)
    if until_ms is None:
        return first, None
    return first, {at: max(last[at], first[at]) for at in last}


def _append_times(
    settings: Settings, offsets: Mapping[TopicPartition, int], end: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """The append time of the record at each offset; nothing for a partition that ends there."""
    found: dict[TopicPartition, int] = {}
    wanted = {at: offset for at, offset in offsets.items() if offset < end[at]}
    for messages in read(settings.kafka, wanted, {at: offset + 1 for at, offset in wanted.items()}):
        for message in messages:
            at = TopicPartition(str(message.topic()), int(message.partition() or 0))
            found[at] = message.timestamp()[1]
    return found
