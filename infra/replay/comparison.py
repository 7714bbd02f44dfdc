"""What a replay would change: its tables beside the live ones, row by row, at the same place in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.generations import home, same_columns
from infra.postgres import Connection
from infra.replay.places import Places
from infra.replay.runs import Run, RunRefused
from infra.settings import Settings
from infra.topic_log import at_time, ends, read
from schemas.declare import Pipeline, Table

COMPARISON = "comparison_"
"""Before a ledger's name: the run's table of what differs, which stays until the run is aborted."""


@dataclass(frozen=True)
class Difference:
    """One table's differences. `later` are live rows that newer records have written or renewed: they can be
    compared when the replay has come as far. `columns`: in how many of the changed rows each column differs.

    Samples are rows as they are replayed (`added`), live (`gone`), or both (`changed`: column to the two
    values, with the key).
    """

    table: str
    append_only: bool
    live: int
    replayed: int
    same: int
    added: int
    changed: int
    gone: int
    later: int
    columns: Mapping[str, int]
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    comparison_table: str | None = None

    @property
    def empty(self) -> bool:
        return self.added == self.changed == self.gone == 0


def compare(
    settings: Settings,
    connection: Connection,
    run: Run,
    declared: Pipeline,
    *,
    samples: int = 5,
    ignored: Sequence[str] = (),
    store: bool = True,
) -> list[Difference]:
    """Compare every table of the run with the live one, as of one moment.

    Only rows that the replay has come to are compared: what live traffic has added since is left out.
    `store` writes what differs in an append-only table into a table of the run's own.
    Raises `RunRefused`, `LogUnreadable`, `psycopg.Error`.
    """
    refuse_migrated(connection, run, declared)
    found = []
    with connection.transaction():
        # One snapshot for all: the live tables go on changing.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reached = _reached(settings, connection, run, declared)
        for table in declared.tables:
            found.append(_compare(connection, run, table, reached, samples, ignored, store))
    return found


def refuse_migrated(connection: Connection, run: Run, declared: Pipeline) -> None:
    """Raise `RunRefused` where a table in force has other columns than when the run began."""
    for table in declared.tables:
        if not same_columns(connection, table.name, run.schema):
            raise RunRefused(
                f"{table.name} was migrated since replay {run.run_id} began; abort it and begin a new one"
            )


def _reached(
    settings: Settings, connection: Connection, run: Run, declared: Pipeline
) -> dict[TopicPartition, int]:
    """Per live result partition: results below answer records that the replay has read."""
    behind = {
        TopicPartition(str(topic), int(str(partition))): int(str(position))
        for topic, partition, position in connection.execute(
            sql.SQL(
                "SELECT topic, partition, min(next_offset) FROM {}.checkpoints GROUP BY topic, partition"
            ).format(sql.Identifier(run.schema))
        )
    }
    client = admin(settings.kafka)
    results = [TopicPartition(t.name, n) for t in declared.sink_topics for n in range(t.partitions)]
    # Asked after the snapshot was taken: what it shows lies below.
    result_ends = ends(client, results)
    next_ones = {at: behind[at] for at in run.places.sources if at in behind}
    source_ends = ends(client, next_ones)
    unread = {at: position for at, position in next_ones.items() if position < source_ends[at]}
    if not unread:
        return result_ends
    first_ms = None
    for messages in read(settings.kafka, unread, {at: offset + 1 for at, offset in unread.items()}):
        for message in messages:
            ms = message.timestamp()[1]
            first_ms = ms if first_ms is None else min(first_ms, ms)
    if first_ms is None:
        return result_ends
    # An answer is appended after its question: what was appended earlier answers what was read.
    return at_time(client, results, first_ms)


def _compare(
    connection: Connection,
    run: Run,
    table: Table,
    reached: Mapping[TopicPartition, int],
    samples: int,
    ignored: Sequence[str],
    store: bool,
) -> Difference:
    live, shadow = (
        sql.Identifier(home(connection, table.name), table.name),
        sql.Identifier(run.schema, table.name),
    )
    # Personal columns are no answers, and may have been erased from the live table.
    untold = {*table.key, *table.personal, *ignored}
    values = [c for c in table.columns if c not in untold]
    differs = (
        sql.SQL(" OR ").join(
            sql.SQL("l.{c} IS DISTINCT FROM r.{c}").format(c=sql.Identifier(c)) for c in values
        )
        if values
        else sql.SQL("false")
    )
    joined = sql.SQL("{l} l FULL JOIN {r} r USING ({key})").format(
        l=_within(table, live, run, reached, connection),
        r=shadow,
        key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
    )
    # Rows of the warm-up are no answer: they only tell what was answered late from what is gone.
    warm = _warm(run, table)
    kind = sql.SQL(
        "CASE WHEN l.source_offset IS NULL THEN CASE WHEN {warm} THEN 'warm' ELSE 'added' END"
        " WHEN r.source_offset IS NULL THEN CASE WHEN l.compared THEN 'gone' ELSE 'later' END"
        " WHEN {warm} THEN 'warm' WHEN NOT l.compared THEN 'later'"
        " WHEN {differs} THEN 'changed' ELSE 'same' END"
    ).format(warm=warm, differs=differs)
    counts = {
        str(name): int(str(n))
        for name, n in connection.execute(
            sql.SQL(
                "SELECT kind, count(*) FROM (SELECT {kind} AS kind FROM {joined}) k GROUP BY kind"
            ).format(kind=kind, joined=joined)
        )
    }
    changed = sql.SQL("FROM {joined} WHERE ({kind}) = 'changed'").format(joined=joined, kind=kind)
    columns: dict[str, int] = {}
    if counts.get("changed"):
        row = connection.execute(
            sql.SQL("SELECT {} {}").format(
                sql.SQL(", ").join(
                    sql.SQL("count(*) FILTER (WHERE l.{c} IS DISTINCT FROM r.{c})").format(
                        c=sql.Identifier(c)
                    )
                    for c in values
                ),
                changed,
            )
        ).fetchone()
        assert row is not None
        columns = {c: int(str(n)) for c, n in zip(values, row, strict=True) if n}
    shown = {
        name: _samples(connection, table, values, joined, kind, name, samples)
        for name in ("added", "changed", "gone")
        if counts.get(name) and samples
    }
    comparison = None
    if table.append_only and store and not connection.read_only:
        comparison = _store(connection, run, table, joined, kind)
    return Difference(
        table=table.name,
        append_only=table.append_only,
        live=sum(counts.get(k, 0) for k in ("same", "changed", "gone")),
        replayed=sum(counts.get(k, 0) for k in ("same", "changed", "added")),
        same=counts.get("same", 0),
        added=counts.get("added", 0),
        changed=counts.get("changed", 0),
        gone=counts.get("gone", 0),
        later=counts.get("later", 0),
        columns=dict(sorted(columns.items(), key=lambda c: -c[1])),
        samples=shown,
        comparison_table=comparison,
    )


def _within(
    table: Table,
    live: sql.Identifier,
    run: Run,
    reached: Mapping[TopicPartition, int],
    connection: Connection,
) -> sql.Composable:
    """The live table with a column `compared`: whether the row answers a record of the replay's range."""
    topic = table.topic.name
    bounds = sql.SQL(", ").join(
        sql.SQL("({}, {}, {})").format(
            sql.Literal(at.partition), sql.Literal(run.places.results.get(at, 0)), sql.Literal(offset)
        )
        for at, offset in sorted(reached.items())
        if at.topic == topic
    )
    # A negative offset: the row was brought by an earlier replay, before anything live traffic adds now.
    in_range = sql.SQL("source_offset >= first") if run.places.partial else sql.SQL("true")
    return sql.SQL(
        "(SELECT t.*, coalesce(({} AND source_offset < last), false) AS compared FROM {} t"
        " LEFT JOIN (VALUES {}) AS b (part, first, last) ON b.part = t.source_partition)"
    ).format(in_range, live, bounds)


def _warm(run: Run, table: Table) -> sql.Composable:
    """Whether the replayed row `r` comes from the warm-up (or was copied beside it), not from the range."""
    if not run.places.partial:
        return sql.SQL("false")
    listed = [
        (at.partition, offset)
        for at, offset in (run.warm_ends or {}).items()
        if at.topic.startswith(f"{table.topic.name}-replay-")
    ]
    cases = sql.SQL(" ").join(
        sql.SQL("WHEN {} THEN r.source_offset >= {}").format(sql.Literal(p), sql.Literal(-offset))
        for p, offset in listed
    )
    return sql.SQL("CASE r.source_partition {} ELSE false END").format(cases) if listed else sql.SQL("false")


def _samples(
    connection: Connection,
    table: Table,
    values: Sequence[str],
    joined: sql.Composable,
    kind: sql.Composable,
    name: str,
    most: int,
) -> list[dict[str, Any]]:
    key = sql.SQL(", ").join(map(sql.Identifier, table.key))
    chosen: sql.Composable
    if name == "changed":
        chosen = sql.SQL("to_jsonb(l) AS live, to_jsonb(r) AS replayed")
    else:
        chosen = sql.SQL("to_jsonb({}) AS one").format(sql.SQL("r" if name == "added" else "l"))
    keys = sql.SQL("to_jsonb((SELECT k FROM (SELECT {}) k)) AS key").format(key)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT {keys}, {chosen} FROM {joined} WHERE ({kind}) = {name} ORDER BY {key} LIMIT {most}"
            ).format(
                keys=keys,
                chosen=chosen,
                joined=joined,
                kind=kind,
                name=sql.Literal(name),
                key=key,
                most=sql.Literal(most),
            )
        )
        rows = cursor.fetchall()
    if name != "changed":
        return [
            {c: v for c, v in ({**row["one"], **row["key"]}).items() if c in table.columns} for row in rows
        ]
    return [
        {
            **row["key"],
            **{
                c: {"live": row["live"][c], "replayed": row["replayed"][c]}
                for c in values
                if row["live"][c] != row["replayed"][c]
            },
        }
        for row in rows
    ]


def _store(
    connection: Connection, run: Run, table: Table, joined: sql.Composable, kind: sql.Composable
) -> str:
    name = f"{COMPARISON}{table.name}"
    target = sql.Identifier(run.schema, name)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(target))
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} AS SELECT {}, {} AS difference, to_jsonb(l) AS live, to_jsonb(r) AS replayed"
            " FROM {} WHERE ({}) IN ('added', 'changed', 'gone')"
        ).format(target, sql.SQL(", ").join(map(sql.Identifier, table.key)), kind, joined, kind)
    )
    return f"{run.schema}.{name}"


@dataclass(frozen=True)
class Refusals:
    """How many records of the range one consumer refuses with one reason, live and in the replay."""

    consumer: str
    error_class: str
    field: str | None
    live: int
    replayed: int
    example: str


def refusals(connection: Connection, run: Run, declared: Pipeline) -> list[Refusals]:
    """Dead letters of the processors in the range, where live and replay differ in number."""
    consumers = [p.name for p in run.of(declared).processors]
    bounds = sql.SQL(", ").join(
        sql.SQL("({}, {}, {}::bigint)").format(*map(sql.Literal, (at.topic, at.partition, place.first)))
        for at, place in run.places.sources.items()
    )
    query = sql.SQL(
        "WITH reached AS (SELECT consumer, topic, partition, next_offset FROM {schema}.checkpoints),"
        " first (topic, partition, first_offset) AS (VALUES {bounds}),"
        ' letters AS (SELECT 1 AS live, 0 AS replayed, * FROM (SELECT consumer, topic, partition, "offset",'
        " error_class, field, error FROM public.dead_letters) l"
        ' UNION ALL SELECT 0, 1, consumer, topic, partition, "offset", error_class, field, error'
        " FROM {schema}.dead_letters)"
        " SELECT consumer, error_class, field, sum(live), sum(replayed), min(error) FROM letters"
        " JOIN reached USING (consumer, topic, partition) JOIN first USING (topic, partition)"
        ' WHERE consumer = ANY(%s) AND "offset" >= first_offset AND "offset" < next_offset'
        " GROUP BY 1, 2, 3 HAVING sum(live) <> sum(replayed) ORDER BY 1, 2, 3"
    ).format(schema=sql.Identifier(run.schema), bounds=bounds)
    return [
        Refusals(str(c), str(e), None if f is None else str(f), int(str(n)), int(str(m)), str(x))
        for c, e, f, n, m, x in connection.execute(query, (consumers,))
    ]


def kept(connection: Connection, run: Run, declared: Pipeline) -> None:
    """After the warm-up of a partial replay: give its tables the rows of the records before the range.

    In the transaction that notes the end of the warm-up. Where live has a row of before, it stands; where
    live has none at all, the warm-up's is no answer either.
    """
    places: Places = run.places
    if not places.partial:
        return
    for table in declared.tables:
        live = sql.Identifier(home(connection, table.name), table.name)
        shadow = sql.Identifier(run.schema, table.name)
        same = sql.SQL(" AND ").join(sql.SQL("l.{c} = r.{c}").format(c=sql.Identifier(c)) for c in table.key)
        before = sql.SQL(" OR ").join(
            sql.SQL("(l.source_partition = {} AND l.source_offset < {})").format(
                sql.Literal(at.partition), sql.Literal(offset)
            )
            for at, offset in places.results.items()
            if at.topic == table.topic.name
        )
        connection.execute(
            sql.SQL(
                "DELETE FROM {shadow} r WHERE NOT EXISTS"
                " (SELECT FROM {live} l WHERE {same} AND NOT ({before}))"
            ).format(shadow=shadow, live=live, same=same, before=before)
        )
        if table.append_only:
            continue
        if table.time is not None:
            _partitions_for(connection, run, table, live, before)
        listed = sql.SQL(", ").join(
            map(sql.Identifier, (*table.columns, "source_partition", "source_offset"))
        )
        connection.execute(
            sql.SQL(
                "INSERT INTO {shadow} ({listed}) SELECT {listed} FROM {live} l WHERE {before}"
                " ON CONFLICT DO NOTHING"
            ).format(shadow=shadow, live=live, listed=listed, before=before)
        )


def _partitions_for(
    connection: Connection, run: Run, table: Table, live: sql.Identifier, before: sql.Composable
) -> None:
    assert table.time is not None
    time = sql.Identifier(table.time)
    connection.execute(sql.SQL("SET LOCAL search_path TO {}, public").format(sql.Identifier(run.schema)))
    connection.execute(
        sql.SQL(
            "SELECT millrace_ensure_partitions({name}, span.hour, span.hour) FROM"
            " (SELECT DISTINCT to_timestamp(floor(extract(epoch FROM l.{time}) / 3600) * 3600) AS hour"
            " FROM {live} l WHERE {before}) span"
        ).format(name=sql.Literal(table.name), time=time, live=live, before=before)
    )
    connection.execute("SET LOCAL search_path TO public")
