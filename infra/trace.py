"""From a row back to the record that gave it, and from a record on to what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient
from psycopg import sql
from psycopg.rows import dict_row

from infra.broker import ADMIN_SECONDS, admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, Event, Undecodable
from infra.kafka_access import KafkaAccess
from infra.log_span import Bound, stretch
from infra.postgres import Connection
from infra.topic_log import ends, partitions, read, starts
from infra.verification import Place
from schemas.declare import Pipeline, Pipelines, Table, Topic
from schemas.replayed import run_topic_name

MOST_ROWS = 20
WINDOW_RECORDS = 20_000
"""How many records of a partition the search for an input reads at first; then twice as many, and so on."""


class TraceError(LookupError):
    """What was asked for does not exist or is not named well enough; the message says what to write."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A record as the log has it. `schema_version` is its number under the topic's subject."""

    place: Place
    append_time: datetime
    subject: str
    schema_id: int | None
    schema_version: int | None
    tenant: str | None = None
    event_id: str | None = None
    undecodable: str | None = None
    versions: dict[str, int] = field(default_factory=dict)
    event: Event | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A row with all that decided it. `record` is None where retention has deleted it from the log.

    `versions` are those named by the row or its record, by kind ('code', 'rules', 'model'); `published`
    tells of each when and by whom it was published. `committed` is the sink's range record.
    """

    table: str
    row: dict[str, Any]
    place: Place
    record: Origin | None
    processor: str | None
    versions: dict[str, int]
    published: dict[str, str]
    committed: dict[str, Any] | None
    inputs: tuple[Origin, ...]


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A record with the rows that name it or its id, and its dead letters."""

    record: Origin
    rows: tuple[tuple[str, dict[str, Any]], ...]
    dead_letters: tuple[dict[str, Any], ...]


class Tracer:
    """Looks rows and records up. Methods raise `TraceError`, `infra.topic_log.LogUnreadable`,
    `infra.codec.RegistryUnavailable` and `psycopg.Error`."""

    def __init__(
        self, connection: Connection, codec: Codec, access: KafkaAccess, pipelines: Pipelines
    ) -> None:
        self._connection = connection
        self._codec = codec
        self._access = access
        self._pipelines = pipelines
        self._admin: AdminClient = admin(access)

    def row(self, name: str) -> list[Traced]:
        """The rows that `TABLE:KEY` names (see `condition`), at most `MOST_ROWS`, each traced back."""
        table_name, _, key = name.partition(":")
        pipeline, table = self._table(table_name)
        wanted = condition(table, key)
        clauses = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(c), sql.Placeholder()) for c in wanted
        )
        query = sql.SQL("SELECT * FROM {} WHERE {} ORDER BY source_partition, source_offset LIMIT {}")
        statement = query.format(sql.Identifier(table.name), clauses, sql.Literal(MOST_ROWS))
        try:
            with self._connection.cursor(row_factory=dict_row) as cursor:
                rows = cursor.execute(statement, list(wanted.values())).fetchall()
        except psycopg.DataError as error:
            raise TraceError(f"{table.name}: {error.diag.message_primary}; correct the key") from error
        if not rows:
            named = ", ".join(f"{c}={v}" for c, v in wanted.items())
            raise TraceError(f"{table.name} has no row with {named}; its key is {', '.join(table.key)}")
        return [self._traced(pipeline, table, row) for row in rows]

    def record(self, name: str) -> Followed:
        """What became of the record `TOPIC/PARTITION/OFFSET`."""
        found = re.fullmatch(r"([^/]+)/(\d+)/(\d+)", name)
        if found is None:
            raise TraceError(
                f"{name!r} names no record; write TOPIC/PARTITION/OFFSET, as card-decisions/3/1200"
            )
        place = Place(found[1], int(found[2]), int(found[3]))
        pipeline, topic = self._topic(place.topic)
        origin = self._origin(topic, place)
        if origin is None:
            raise TraceError(f"{place} holds no record: see `millrace verify` for what the topic holds")
        rows: list[tuple[str, dict[str, Any]]] = []
        for table in pipeline.tables:
            if table.topic.name == topic.name:
                where = {"source_partition": place.partition, "source_offset": place.offset}
                rows += [(table.name, row) for row in self._rows(table, where)]
        for e in pipeline.evidence:
            if e.topic.name == topic.name and origin.event_id is not None:
                table = next(t for t in pipeline.tables if t.name == e.table)
                by_id: dict[str, Any] = {e.column: origin.event_id}
                if "tenant" in table.columns:
                    by_id["tenant"] = origin.tenant
                if e.only is not None:
                    by_id[e.only[0]] = e.only[1]
                rows += [(table.name, row) for row in self._rows(table, by_id)]
        with self._connection.cursor(row_factory=dict_row) as cursor:
            letters = cursor.execute(
                "SELECT consumer, error_class, field, error, created_at FROM dead_letters"
                ' WHERE topic = %s AND partition = %s AND "offset" = %s',
                (place.topic, place.partition, place.offset),
            ).fetchall()
        return Followed(record=origin, rows=tuple(rows), dead_letters=tuple(letters))

    def _traced(self, pipeline: Pipeline, table: Table, row: dict[str, Any]) -> Traced:
        place = self._place(table, row)
        record = self._origin(table.topic, place)
        versions = _versions(row) | (record.versions if record else {})
        return Traced(
            table=table.name,
            row=row,
            place=place,
            record=record,
            processor=next((p.name for p in pipeline.processors if table.topic in p.outputs), None),
            versions=versions,
            published=self._published(pipeline, versions),
            committed=self._committed(pipeline, place),
            inputs=self._inputs(pipeline, table, row, record),
        )

    def _place(self, table: Table, row: Mapping[str, Any]) -> Place:
        """The place that a row came from; of one that a replay brought, in the replay's own topic."""
        partition, offset = row["source_partition"], row["source_offset"]
        if offset >= 0:
            return Place(table.topic.name, partition, offset)
        found = self._connection.execute(
            "SELECT generation FROM generations WHERE name = %s", (table.name,)
        ).fetchone()
        if found is None:
            raise TraceError(
                f"{table.name}: source_offset {offset} is a replay's, but the table was never swapped;"
                " see `millrace replay list`"
            )
        topic = run_topic_name(table.topic.name, int(str(found[0])))
        if topic not in self._admin.list_topics(timeout=ADMIN_SECONDS).topics:
            raise TraceError(
                f"{table.name}: the row was brought by replay {found[0]}, whose topics"
                " `millrace replay abort` has deleted; its event id leads on, by the input it names"
            )
        return Place(topic, partition, -1 - offset)

    def _origin(self, topic: Topic, place: Place) -> Origin | None:
        client, at = self._admin, TopicPartition(place.topic, place.partition)
        if place.partition >= topic.partitions:
            raise TraceError(
                f"{topic.name} has partitions 0 to {topic.partitions - 1}, not {place.partition}"
            )
        if not starts(client, [at])[at] <= place.offset < ends(client, [at])[at]:
            return None
        for messages in read(self._access, {at: place.offset}, {at: place.offset + 1}):
            return self._of_message(topic, messages[0])
        return None

    def _of_message(self, topic: Topic, message: Message) -> Origin:
        place = Place(str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
        append_time = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
        try:
            decoded = self._codec.decode(topic, message.value())
        except Undecodable as error:
            return Origin(
                place=place,
                append_time=append_time,
                subject=topic.subject,
                schema_id=error.schema_id,
                schema_version=None,
                undecodable=error.reason,
            )
        event = decoded.event
        return Origin(
            place=place,
            append_time=append_time,
            subject=topic.subject,
            schema_id=decoded.schema_id,
            schema_version=self._codec.version(topic, decoded.schema_id),
            tenant=event["tenant"],
            event_id=event[topic.event_id],
            versions=_versions(event),
            event=event,
        )

    def _inputs(
        self, pipeline: Pipeline, table: Table, row: dict[str, Any], record: Origin | None
    ) -> tuple[Origin, ...]:
        """The records of the input topics that the row answers, found by their id."""
        event = (record.event if record else None) or row
        wanted = {str(event[n]) for n in ("input_id", table.topic.event_id) if event.get(n) is not None}
        before = Bound(time_ms=int(record.append_time.timestamp() * 1000) + 1) if record else None
        found = []
        for topic in pipeline.inputs:
            if topic.name == table.topic.name:
                continue
            everywhere = partitions([topic])
            same_key = topic.key == table.topic.key and topic.partitions == table.topic.partitions
            # With the same key the input lies in the partition of the same number.
            tries = [[everywhere[row["source_partition"]]], everywhere] if same_key else [everywhere]
            for where in tries:
                origin = self._search(topic, where, wanted, event.get("tenant"), before)
                if origin is not None:
                    found.append(origin)
                    break
        return tuple(found)

    def _search(
        self,
        topic: Topic,
        where: Sequence[TopicPartition],
        wanted: set[str],
        tenant: str | None,
        before: Bound | None,
    ) -> Origin | None:
        """The record with one of these ids, looked for from the bound backwards."""
        needles = [i.encode() for i in wanted]
        begins, upto = starts(self._admin, where), ends(self._admin, where)
        span = stretch(self._admin, begins, upto, None, before)
        end = {at: s[1] for at, s in span.items()}
        window = WINDOW_RECORDS
        while any(end[at] > begins[at] for at in where):
            first = {at: max(begins[at], end[at] - window) for at in where}
            for messages in read(self._access, first, end):
                for message in messages:
                    value = message.value() or b""
                    if any(needle in value for needle in needles):
                        origin = self._of_message(topic, message)
                        if origin.event_id in wanted and tenant in (None, origin.tenant):
                            return origin
            end, window = first, window * 2
        return None

    def _rows(self, table: Table, where: Mapping[str, Any]) -> list[dict[str, Any]]:
        clauses = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(c), sql.Placeholder()) for c in where
        )
        query = sql.SQL("SELECT * FROM {} WHERE {} LIMIT {}").format(
            sql.Identifier(table.name), clauses, sql.Literal(MOST_ROWS)
        )
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, list(where.values())).fetchall()

    def _published(self, pipeline: Pipeline, versions: Mapping[str, int]) -> dict[str, str]:
        found = {}
        for kind, version, at, author in self._connection.execute(
            "SELECT kind, version, created_at, author FROM versions WHERE pipeline = %s AND kind = ANY(%s)",
            (pipeline.name, list(versions)),
        ):
            if versions[str(kind)] == version and isinstance(at, datetime):
                found[str(kind)] = f"published {at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ} by {author}"
        return found

    def _committed(self, pipeline: Pipeline, place: Place) -> dict[str, Any] | None:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                "SELECT consumer, from_offset, to_offset, epoch, committed_at FROM range_records"
                " WHERE consumer = %s AND topic = %s AND partition = %s"
                " AND from_offset <= %s AND to_offset > %s",
                (pipeline.sink_name, place.topic, place.partition, place.offset, place.offset),
            ).fetchone()

    def _table(self, name: str) -> tuple[Pipeline, Table]:
        for pipeline in self._pipelines:
            for table in pipeline.tables:
                if table.name == name:
                    return pipeline, table
        known = ", ".join(t.name for p in self._pipelines for t in p.tables)
        raise TraceError(f"there is no table {name!r}; name one of: {known}")

    def _topic(self, name: str) -> tuple[Pipeline, Topic]:
        for pipeline in self._pipelines:
            for topic in (*pipeline.topics, *(t.dlq for t in pipeline.topics)):
                if topic.name == name:
                    return pipeline, topic
        known = ", ".join(t.name for p in self._pipelines for t in p.topics)
        raise TraceError(f"there is no topic {name!r}; name one of: {known}")


def condition(table: Table, key: str) -> dict[str, str]:
    """The columns that a key names, each with its value as text.

    Either `column=value,column=value` with any columns of the table, or the values alone, in order, of the
    key's columns without `tenant` and the table's time (which many keys hold beside an id of their own).
    """
    column = "|".join(map(re.escape, table.columns))
    if re.match(rf"(?:{column})=", key):
        pairs = re.split(rf",(?=(?:{column})=)", key)
        return dict(pair.split("=", 1) for pair in pairs)
    plain = [c for c in table.key if c not in ("tenant", table.time)]
    values = [key] if len(plain) == 1 else key.split(",")
    if not key or len(values) != len(plain):
        raise TraceError(
            f"{key!r} is no key of {table.name}; write {table.name}:{','.join(f'<{c}>' for c in plain)}, or"
            f" columns by name, as {table.name}:{table.columns[0]}=..."
        )
    return dict(zip(plain, values, strict=True))


def _versions(values: Mapping[str, Any]) -> dict[str, int]:
    """What a row or event says of the versions that decided it: 'code', 'rules', 'model', ..."""
    found = {}
    for name, value in values.items():
        if name.endswith("_version") and isinstance(value, int):
            found[name.removesuffix("_version")] = value
    return found
