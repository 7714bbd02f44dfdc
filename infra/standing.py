"""Where a pipeline stands, as of one moment: positions and dead letters in Postgres, the broker's bounds.

Read it first in a REPEATABLE READ transaction: whatever is read later in the same transaction, then, belongs
to the same moment, however much goes on meanwhile. The broker's ends are asked afterwards. As a processor's
outputs are acknowledged before its position is committed, no answer to a record below a position lies beyond
those ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from confluent_kafka import KafkaException

from infra.broker import admin, topic_ids
from infra.checkpoints import TopicPartition
from infra.kafka_access import KafkaAccess
from infra.log_span import Bound, stretch
from infra.postgres import Connection
from infra.topic_log import LogUnreadable, ends, partitions, starts
from infra.verification import Check
from schemas.declare import Pipeline, Topic


class Letter(NamedTuple):
    """Which record a dead letter is about."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Standing:
    """Positions by consumer, dead letters (each with those who refused), and the log's bounds.

    `span` is what is to be verified of each partition: from one offset up to, not including, another.
    """

    positions: dict[tuple[str, TopicPartition], int]
    letters: dict[Letter, frozenset[str]]
    starts: dict[TopicPartition, int]
    ends: dict[TopicPartition, int]
    span: dict[TopicPartition, tuple[int, int]]
    is_whole: bool

    def position(self, readers: Iterable[str], at: TopicPartition) -> int:
        """Below it all of these consumers have handled everything; the log's start before they claimed it."""
        return min(self.positions.get((r, at), self.starts[at]) for r in readers)

    def spans(self, topic: Topic) -> dict[TopicPartition, tuple[int, int]]:
        """The topic's part of `span`."""
        return {at: self.span[at] for at in partitions([topic])}


def readers(pipeline: Pipeline, topic: Topic) -> list[str]:
    """Who reads a topic: processors, and the sink where it feeds a table or is a dead letter topic."""
    found = [p.name for p in pipeline.processors if topic.name in {t.name for t in p.sources}]
    if topic.name in {t.name for t in (*pipeline.sink_topics, *(x.dlq for x in pipeline.topics))}:
        found.append(pipeline.sink_name)
    return found


def stand(
    connection: Connection,
    access: KafkaAccess,
    pipeline: Pipeline,
    first: Bound | None,
    last: Bound | None,
    check: Check,
) -> Standing:
    """Read where the pipeline stands; `check` takes note of positions that do not fit their topic.

    Raises `infra.topic_log.LogUnreadable`, `psycopg.Error`.
    """
    topics = [*pipeline.topics, *(t.dlq for t in pipeline.topics)]
    names = [t.name for t in topics]
    known = {(r, t.name) for t in topics for r in readers(pipeline, t)}
    positions: dict[tuple[str, TopicPartition], int] = {}
    ids: dict[tuple[str, TopicPartition], str] = {}
    for consumer, topic, partition, topic_id, position in connection.execute(
        "SELECT consumer, topic, partition, topic_id, next_offset FROM checkpoints WHERE topic = ANY(%s)",
        (names,),
    ):
        reader = (str(consumer), TopicPartition(str(topic), int(str(partition))))
        if (reader[0], reader[1].topic) in known:
            positions[reader], ids[reader] = int(str(position)), str(topic_id)
    letters: dict[Letter, frozenset[str]] = {}
    for topic, partition, offset, by in connection.execute(
        'SELECT topic, partition, "offset", array_agg(consumer) FROM dead_letters WHERE topic = ANY(%s)'
        " GROUP BY 1, 2, 3",
        (names,),
    ):
        letters[Letter(str(topic), int(str(partition)), int(str(offset)))] = frozenset(by)  # type: ignore[call-overload]

    client, wanted = admin(access), partitions(topics)
    try:
        current = topic_ids(access, names)
    except KafkaException as error:
        raise LogUnreadable(f"the broker does not tell its topics: {error}; see `millrace status`") from error
    first_offsets, end_offsets = starts(client, wanted), ends(client, wanted)
    check.compared, check.unit = len(positions), "positions"
    for (consumer, at), position in positions.items():
        if ids[(consumer, at)] != current[at.topic]:
            check.fails(
                f"{consumer} has read {at} of a topic that was deleted and created anew since; restore the"
                " topic, or the database that belongs to it",
                at,
            )
        elif not first_offsets[at] <= position <= end_offsets[at]:
            check.fails(
                f"{consumer} stands at {position} in {at}, whose log reaches from {first_offsets[at]} to"
                f" {end_offsets[at]}; restore the topic, or the database that belongs to it",
                at,
            )
    return Standing(
        positions,
        letters,
        first_offsets,
        end_offsets,
        stretch(client, first_offsets, end_offsets, first, last),
        first is None and last is None,
    )
