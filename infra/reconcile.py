"""Does the promise hold? Every acknowledged event is in the sink or among the dead letters, exactly once.

Counted anew from the input topics and the database, in distinct input event ids: what processes say of
themselves is not asked. An event's identity is its tenant and its own id; bytes that are no event are
counted by their place.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from psycopg import sql

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, IsTick, Undecodable
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from schemas.declare import Evidence, Pipeline, Topic

Ids = npt.NDArray[np.int64]
"""Ids as 64-bit hashes: that any two of 2 million share one has a chance of about 1 in 10 million."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """A pipeline's inputs, accounted for. All but `records` and `decided` are distinct input events.

    `decided` counts the input records that lie below every processor's position; `unaccounted` and
    `in_both` break the promise, and `problems` then names the first record of each kind.
    """

    records: int
    acknowledged: int
    duplicates: int
    decided: int
    in_sink: int
    dead_letters: int
    unaccounted: int
    in_both: int
    problems: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        return not self.problems and self.acknowledged == self.in_sink + self.dead_letters


def reconcile(settings: Settings, pipeline: Pipeline) -> Account:
    """Account for every record of the pipeline's input topics.

    Meant for a pipeline that stands still and has no lag: what is still on its way counts as unaccounted.
    Raises `infra.topic_log.LogUnreadable`, `psycopg.Error`, `infra.codec.RegistryUnavailable`.
    """
    with (
        connect(settings.database_url, "millrace-reconcile") as connection,
        closing(Codec(settings.schema_registry_url)) as codec,
    ):
        accounts = [_reconcile(settings, connection, codec, pipeline, topic) for topic in pipeline.inputs]
    return Account(
        records=sum(a.records for a in accounts),
        acknowledged=sum(a.acknowledged for a in accounts),
        duplicates=sum(a.duplicates for a in accounts),
        decided=sum(a.decided for a in accounts),
        in_sink=sum(a.in_sink for a in accounts),
        dead_letters=sum(a.dead_letters for a in accounts),
        unaccounted=sum(a.unaccounted for a in accounts),
        in_both=sum(a.in_both for a in accounts),
        problems=tuple(p for a in accounts for p in a.problems),
    )


def _reconcile(
    settings: Settings, connection: Connection, codec: Codec, pipeline: Pipeline, topic: Topic
) -> Account:
    evidence = [e for e in pipeline.evidence if e.topic.name == topic.name]
    tables = {t.name: t for t in pipeline.tables}
    # A table without a tenant cannot tell two tenants' equal ids apart; then the id alone is the identity.
    by_tenant = all("tenant" in tables[e.table].columns for e in evidence)
    refused = _refused_places(connection, topic)
    log = _read_ids(settings, codec, topic, refused, by_tenant=by_tenant)
    stored = _stored_ids(connection, evidence, by_tenant=by_tenant)
    refused_later = _refused_answers(connection, pipeline, topic, by_tenant=by_tenant)

    distinct, of_record = np.unique(log.ids, return_inverse=True)
    in_sink = np.isin(distinct, stored)
    answer_refused = np.isin(distinct, refused_later)
    records_each = np.bincount(of_record, minlength=len(distinct))
    refused_each = np.bincount(of_record, weights=log.refused, minlength=len(distinct)).astype(np.int64)
    dead = (refused_each > 0) | answer_refused
    unaccounted = ~in_sink & ~dead
    # One id sent again with other content is refused, though the first one is stored: that is a duplicate.
    # Only where no record is left that could have been stored does the event stand in both.
    in_both = in_sink & ((refused_each == records_each) | answer_refused)

    where = " or ".join(f"{e.table}.{e.column}" for e in evidence)
    problems = []
    for wrong, sentence in (
        (unaccounted, f"is neither in {where} nor among the dead letters"),
        (in_both, f"is in {where} and among the dead letters as well"),
    ):
        if wrong.any():
            first = _first(settings, codec, topic, log, wrong[of_record])
            problems.append(f"{int(wrong.sum())} of {topic.name}: the first, {first}, {sentence}")
    return Account(
        records=len(log.ids),
        acknowledged=len(distinct),
        duplicates=len(log.ids) - len(distinct),
        decided=_decided(connection, pipeline, topic, log),
        in_sink=int(in_sink.sum()),
        dead_letters=int((dead & ~in_sink).sum()),
        unaccounted=int(unaccounted.sum()),
        in_both=int(in_both.sum()),
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Log:
    """An input topic: each record's id, place, and whether a dead letter names that place."""

    ids: Ids
    partitions: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    refused: npt.NDArray[np.bool_]


def _identity(tenant: object, event_id: object, *, by_tenant: bool) -> int:
    return hash((tenant, event_id) if by_tenant else event_id)


def _read_ids(
    settings: Settings, codec: Codec, topic: Topic, refused: set[tuple[int, int]], *, by_tenant: bool
) -> _Log:
    client, wanted = admin(settings.kafka), partitions([topic])
    ids, parts, offsets, marks = array("q"), array("i"), array("q"), array("b")
    for messages in read(settings.kafka, starts(client, wanted), ends(client, wanted)):
        for message in messages:
            partition, offset = int(message.partition() or 0), int(message.offset() or 0)
            try:
                event = codec.decode(topic, message.value()).event
                ids.append(_identity(event["tenant"], event[topic.event_id], by_tenant=by_tenant))
            except IsTick:
                continue  # nobody's event
            except Undecodable:
                ids.append(hash((topic.name, partition, offset)))
            parts.append(partition)
            offsets.append(offset)
            marks.append((partition, offset) in refused)
    return _Log(
        np.array(ids, dtype=np.int64),
        np.array(parts, dtype=np.int32),
        np.array(offsets, dtype=np.int64),
        np.array(marks, dtype=np.bool_),
    )


def _stored_ids(connection: Connection, evidence: Iterable[Evidence], *, by_tenant: bool) -> Ids:
    ids = array("q")
    for e in evidence:
        tenant = sql.SQL("tenant" if by_tenant else "NULL::text")
        query = sql.SQL("COPY (SELECT {}, {}::text FROM {} WHERE {} IS NOT NULL) TO STDOUT").format(
            tenant, sql.Identifier(e.column), sql.Identifier(e.table), sql.Identifier(e.column)
        )
        with connection.cursor() as cursor, cursor.copy(query) as copy:
            copy.set_types(["text", "text"])
            for tenant_value, event_id in copy.rows():
                ids.append(_identity(tenant_value, event_id, by_tenant=by_tenant))
    return np.unique(np.array(ids, dtype=np.int64))


def _refused_places(connection: Connection, topic: Topic) -> set[tuple[int, int]]:
    """Places of the topic's records that some consumer refused."""
    rows = connection.execute('SELECT partition, "offset" FROM dead_letters WHERE topic = %s', (topic.name,))
    return {(int(str(partition)), int(str(offset))) for partition, offset in rows}


def _refused_answers(connection: Connection, pipeline: Pipeline, topic: Topic, *, by_tenant: bool) -> Ids:
    """Ids of the inputs whose answer was refused further down: on a topic that is no input."""
    inputs = [t.name for t in pipeline.inputs]
    rows = connection.execute(
        "SELECT tenant, input_id FROM dead_letters"
        " WHERE pipeline = %s AND topic <> ALL(%s) AND input_id IS NOT NULL"
        # A redriven answer is on its topic again: stored by now, or refused anew as another letter.
        " AND status <> 'redriven'",
        (pipeline.name, inputs),
    )
    found = [_identity(tenant, event_id, by_tenant=by_tenant) for tenant, event_id in rows]
    return np.array(found, dtype=np.int64)


def _decided(connection: Connection, pipeline: Pipeline, topic: Topic, log: _Log) -> int:
    """How many of the topic's records lie below the position of every processor that reads it."""
    readers = [p.name for p in pipeline.processors if topic in p.sources] or [pipeline.sink_name]
    positions = np.zeros(topic.partitions, dtype=np.int64)
    for partition, position in connection.execute(
        "SELECT partition, min(next_offset) FROM checkpoints WHERE consumer = ANY(%s) AND topic = %s"
        " GROUP BY partition HAVING count(*) = %s",
        (readers, topic.name, len(readers)),
    ):
        positions[int(str(partition))] = int(str(position))
    return int((log.offsets < positions[log.partitions]).sum())


def _first(settings: Settings, codec: Codec, topic: Topic, log: _Log, wrong: npt.NDArray[np.bool_]) -> str:
    """The first record at fault, by partition and offset, with its id."""
    places = np.flatnonzero(wrong)
    n = places[np.lexsort((log.offsets[places], log.partitions[places]))[0]]
    at, offset = TopicPartition(topic.name, int(log.partitions[n])), int(log.offsets[n])
    place = f"{at} offset {offset}"
    for messages in read(settings.kafka, {at: offset}, {at: offset + 1}):
        for message in messages:
            try:
                event = codec.decode(topic, message.value()).event
            except Undecodable as error:
                return f"{place} (undecodable: {error.reason})"
            return f"{place} (tenant {event['tenant']}, id {event[topic.event_id]})"
    return place
