"""What a replay would read and could change, before it is run. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, Undecodable
from infra.generations import home
from infra.postgres import Connection
from infra.replay.places import Places, memories, source_topics
from infra.settings import Settings
from infra.topic_log import at_time, ends, read
from schemas.declare import Pipeline
from schemas.replayed import held_back

NO_END = 1 << 62
SAMPLE_RECORDS = 500
"""Records read at the beginning of each partition's part, for sizes and event times."""


@dataclass(frozen=True)
class TopicPlan:
    """One topic's part. Sizes and event times are of a sample at both ends of every partition's part."""

    topic: str
    partitions: int
    records: int
    warm_up_records: int
    bytes_about: int
    append_from_ms: int | None
    append_to_ms: int | None
    event_from_ms: int | None
    event_to_ms: int | None
    memory_ms: int | None


@dataclass(frozen=True)
class TablePlan:
    """One table: `rows` that it has now, and how many of them answer records of the range."""

    table: str
    rows: int
    in_reach: int
    append_only: bool


@dataclass(frozen=True)
class Plan:
    """A replay's preview. `held_back`: outputs that are decided anew but not written, per processor;
    `effects`: what outside the platform followed from the range and does not follow again."""

    pipeline: str
    topics: tuple[TopicPlan, ...]
    tables: tuple[TablePlan, ...]
    held_back: Mapping[str, tuple[str, ...]]
    effects: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def plan(
    settings: Settings,
    connection: Connection,
    codec: Codec,
    declared: Pipeline,
    places: Places,
    *,
    in_place: bool = False,
) -> Plan:
    """Look ahead. Raises `LogUnreadable`, `RegistryUnavailable`, `psycopg.Error`."""
    client = admin(settings.kafka)
    end = ends(client, places.sources)
    last = {at: end[at] if p.last is None else p.last for at, p in places.sources.items()}
    remembered = memories(declared, in_place=in_place)
    spans = _spans(settings, codec, declared, places, last, in_place=in_place)
    topics = []
    for topic in source_topics(declared, in_place=in_place):
        mine = {at: p for at, p in places.sources.items() if at.topic == topic.name}
        found = [spans[at] for at in mine if at in spans]
        records = sum(max(0, last[at] - p.first) for at, p in mine.items())
        sampled = sum(s.records for s in found)
        topics.append(
            TopicPlan(
                topic=topic.name,
                partitions=sum(last[at] > p.first for at, p in mine.items()),
                records=records,
                warm_up_records=sum(min(p.first, last[at]) - min(p.warm, last[at]) for at, p in mine.items()),
                bytes_about=round(sum(s.size for s in found) / sampled * records) if sampled else 0,
                append_from_ms=min((s.append_ms[0] for s in found), default=None),
                append_to_ms=max((s.append_ms[1] for s in found), default=None),
                event_from_ms=min((s.event_ms[0] for s in found if s.event_ms), default=None),
                event_to_ms=max((s.event_ms[1] for s in found if s.event_ms), default=None),
                memory_ms=remembered[topic.name],
            )
        )
    append_to = _result_ends(client, declared, places, topics)
    back = {} if in_place else {n: tuple(sorted(o)) for n, o in held_back(declared).items() if o}
    return Plan(
        pipeline=declared.name,
        topics=tuple(topics),
        tables=tuple(_tables(connection, declared, places, append_to)),
        held_back=back,
        effects=tuple(_effects(client, declared, topics)) if not in_place else (),
        warnings=tuple(
            f"{topic} no longer holds all the records that the state depends on: answers near the beginning"
            " may differ for want of them, and a swap asks for --incomplete"
            for topic in places.incomplete
        ),
    )


@dataclass
class _Span:
    records: int = 0
    size: int = 0
    append_ms: tuple[int, int] = (1 << 62, 0)
    event_ms: tuple[int, int] | None = None


def _spans(
    settings: Settings,
    codec: Codec,
    declared: Pipeline,
    places: Places,
    last: Mapping[TopicPartition, int],
    *,
    in_place: bool,
) -> dict[TopicPartition, _Span]:
    topics = {t.name: t for t in source_topics(declared, in_place=in_place)}
    found: dict[TopicPartition, _Span] = {}
    parts = []
    for at, place in places.sources.items():
        head = min(place.first + SAMPLE_RECORDS, last[at])
        parts.append((at, place.first, head))
        parts.append((at, max(head, last[at] - SAMPLE_RECORDS), last[at]))
    for heads in (parts[::2], parts[1::2]):
        wanted = {at: (first, until) for at, first, until in heads if first < until}
        for messages in read(
            settings.kafka,
            {at: first for at, (first, _) in wanted.items()},
            {at: until for at, (_, until) in wanted.items()},
        ):
            for message in messages:
                at = TopicPartition(str(message.topic()), int(message.partition() or 0))
                span = found.setdefault(at, _Span())
                span.records += 1
                span.size += len(message.value() or b"") + len(message.key() or b"")
                ms = message.timestamp()[1]
                span.append_ms = (min(span.append_ms[0], ms), max(span.append_ms[1], ms))
                topic = topics[at.topic]
                try:
                    event = codec.decode(topic, message.value()).event
                except Undecodable:
                    continue
                event_ms = event[topic.event_time] // topic.event_time_unit_per_ms
                low, high = span.event_ms or (event_ms, event_ms)
                span.event_ms = (min(low, event_ms), max(high, event_ms))
    return found


def _result_ends(
    client: Any, declared: Pipeline, places: Places, topics: list[TopicPlan]
) -> dict[TopicPartition, int]:
    """Results below these offsets may answer records of the range."""
    results = list(places.results)
    until = [t.append_to_ms for t in topics if t.append_to_ms is not None]
    if not places.bounded or not until:
        return dict.fromkeys(results, NO_END)  # what live adds meanwhile is read too
    # An answer follows its question; how late is not known before the replay, so a minute is allowed for.
    return at_time(client, results, max(until) + 60_000)


def _tables(
    connection: Connection, declared: Pipeline, places: Places, until: Mapping[TopicPartition, int]
) -> list[TablePlan]:
    found = []
    for table in declared.tables:
        parts = sql.SQL(" OR ").join(
            sql.SQL("(source_partition = {} AND source_offset >= {} AND source_offset < {})").format(
                sql.Literal(at.partition), sql.Literal(first), sql.Literal(until[at])
            )
            for at, first in places.results.items()
            if at.topic == table.topic.name
        )
        if not places.partial:
            parts = sql.SQL("source_offset < 0 OR {}").format(parts)
        row = connection.execute(
            sql.SQL("SELECT count(*), count(*) FILTER (WHERE {}) FROM {}").format(
                parts, sql.Identifier(home(connection, table.name), table.name)
            )
        ).fetchone()
        assert row is not None
        found.append(TablePlan(table.name, int(str(row[0])), int(str(row[1])), table.append_only))
    return found


def _effects(client: Any, declared: Pipeline, topics: list[TopicPlan]) -> list[dict[str, Any]]:
    since = [t.append_from_ms for t in topics if t.append_from_ms is not None]
    found = []
    for processor in declared.processors:
        for effect in processor.effects:
            at = [TopicPartition(effect.topic.name, n) for n in range(effect.topic.partitions)]
            first, end = at_time(client, at, min(since, default=0)), ends(client, at)
            found.append(
                {
                    "effect": effect.name,
                    "about": effect.about,
                    "processor": processor.name,
                    "topic": effect.topic.name,
                    "requests": sum(end[p] - first[p] for p in at),
                }
            )
    return found
