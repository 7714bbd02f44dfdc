"""What is known of a replay's run, and all that belongs to it: a row, a schema, topics of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from psycopg import sql
from psycopg.types.json import Jsonb

from infra.broker import ADMIN_SECONDS, TopicSpec, admin, ensure_topics, topic_ids
from infra.checkpoints import TopicPartition
from infra.generations import create_like, retired_schema, run_schema
from infra.postgres import Connection
from infra.replay.places import Places
from infra.settings import Settings
from schemas.declare import Pipeline
from schemas.replayed import own_topics, replayed, sink_in_place

PLATFORM_TABLES = (
    "checkpoints",
    "state_chunks",
    "range_records",
    "dead_letters",
    "version_activations",
    "holds",
)
"""What a run has of its own in any case. Its versions are the live ones."""
RUN_LOCK = 0x7265706C
"""First key of the advisory lock that the process of a run holds; the second is the run's id."""

CURRENT, AS_DECIDED = "current", "as-decided"


class RunRefused(RuntimeError):
    """The run cannot do what is asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """A replay, as its row tells."""

    run_id: int
    pipeline: str
    in_place: bool
    status: str
    options: Mapping[str, Any]
    places: Places
    warm_ends: Mapping[TopicPartition, int] | None
    records_done: int
    records_all: int
    started_by: str
    started_at: datetime
    updated_at: datetime

    @property
    def schema(self) -> str:
        return run_schema(self.run_id)

    def of(self, declared: Pipeline) -> Pipeline:
        """The declared pipeline as this run runs it."""
        return (sink_in_place if self.in_place else replayed)(declared, self.run_id)


_COLUMNS = (
    "run_id, pipeline, in_place, status, options, places, warm_ends, records_done, records_all, started_by,"
    " started_at, updated_at"
)


def _run(row: tuple[Any, ...]) -> Run:
    run = Run(*row)
    return replace(
        run,
        places=Places.from_json(row[5]),
        warm_ends=None if row[6] is None else {TopicPartition(t, n): o for t, n, o in row[6]},
    )


def find(connection: Connection, run_id: int) -> Run:
    """The run. Raises `RunRefused` where there is none of this number."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM replay_runs WHERE run_id = %s",  # noqa: S608 -- a constant list
        (run_id,),
    ).fetchone()
    if row is None:
        raise RunRefused(f"there is no replay {run_id}; `millrace replay list` shows those there are")
    return _run(row)


def listed(connection: Connection) -> list[Run]:
    """All runs, the newest first."""
    rows = connection.execute(f"SELECT {_COLUMNS} FROM replay_runs ORDER BY run_id DESC")  # noqa: S608 -- likewise
    return [_run(row) for row in rows]


@contextmanager
def alone(connection: Connection, run_id: int) -> Iterator[None]:
    """Be the only process that works on the run. Raises `RunRefused` where another one does.

    The lock goes with the connection: a killed process leaves none.
    """
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (RUN_LOCK, run_id)).fetchone()
    if row != (True,):
        raise RunRefused(f"another process works on replay {run_id}; wait for it, or end it")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, %s)", (RUN_LOCK, run_id))


def worked_on(connection: Connection, run_id: int) -> bool:
    """Whether some process works on the run now."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        " AND objsubid = 2 AND granted AND database = (SELECT oid FROM pg_database"
        " WHERE datname = current_database()))",
        (RUN_LOCK, run_id),
    ).fetchone()
    return row == (True,)


def create(
    settings: Settings,
    connection: Connection,
    declared: Pipeline,
    places: Places,
    options: Mapping[str, Any],
    *,
    in_place: bool,
    by: str | None = None,
) -> Run:
    """Write the run down with its empty tables, first positions and topics.

    Raises `RunRefused` where another run of the pipeline is open: their swaps would undo each other.
    """
    with connection.transaction():
        connection.execute("LOCK TABLE replay_runs IN SHARE ROW EXCLUSIVE MODE")
        other = connection.execute(
            "SELECT run_id FROM replay_runs WHERE pipeline = %s"
            " AND status IN ('running', 'ready', 'aborting')",
            (declared.name,),
        ).fetchone()
        if other is not None:
            raise RunRefused(
                f"replay {other[0]} of {declared.name} is open; swap it, or delete it:"
                f" `millrace replay abort {other[0]}`"
            )
        row = connection.execute(
            "INSERT INTO replay_runs (pipeline, in_place, status, options, places, started_by)"
            " VALUES (%s, %s, 'running', %s, %s, coalesce(%s, current_user)) RETURNING run_id",
            (declared.name, in_place, Jsonb(dict(options)), Jsonb(places.to_json()), by),
        ).fetchone()
        assert row is not None
        run_id = int(str(row[0]))
        schema = sql.Identifier(run_schema(run_id))
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        # Analysts may compare too.
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO millrace_reader").format(schema))
        connection.execute(
            sql.SQL("ALTER DEFAULT PRIVILEGES IN SCHEMA {} GRANT SELECT ON TABLES TO millrace_reader").format(
                schema
            )
        )
        tables = PLATFORM_TABLES if in_place else (*PLATFORM_TABLES, *(t.name for t in declared.tables))
        for name in tables:
            create_like(connection, name, run_schema(run_id))
        run = find(connection, run_id)
        _first_positions(settings, connection, run, declared)
        if options.get("versions") == AS_DECIDED:
            connection.execute(
                sql.SQL(
                    "INSERT INTO {}.version_activations SELECT * FROM public.version_activations"
                    " WHERE consumer = ANY(%s)"
                ).format(schema),
                ([p.name for p in declared.processors],),
            )
    # After the commit: should they fail, the run is there to be resumed or aborted.
    prepare_topics(settings, run, declared)
    return run


def prepare_topics(settings: Settings, run: Run, declared: Pipeline) -> None:
    """Create those of the run's own topics that are missing."""
    ensure_topics(settings.kafka, map(TopicSpec.of, own_topics(run.of(declared))))


def _first_positions(settings: Settings, connection: Connection, run: Run, declared: Pipeline) -> None:
    pipeline = run.of(declared)
    readers = [(p.name, t.name) for p in pipeline.processors for t in p.sources]
    read_by_sink = {t.name for t in pipeline.sink_topics}
    readers += [(pipeline.sink_name, t.name) for t in pipeline.inputs if t.name in read_by_sink]
    ids = topic_ids(settings.kafka, {topic for _, topic in readers})
    with connection.cursor() as cursor:
        cursor.executemany(
            sql.SQL(
                "INSERT INTO {}.checkpoints (consumer, topic, partition, topic_id, epoch, next_offset)"
                " VALUES (%s, %s, %s, %s, 0, %s)"
            ).format(sql.Identifier(run.schema)),
            [
                (consumer, at.topic, at.partition, ids[at.topic], place.warm)
                for consumer, topic in readers
                for at, place in run.places.sources.items()
                if at.topic == topic
            ],
        )


def progress(connection: Connection, run_id: int, done: int, all_: int) -> None:
    """Note how far a run is, for `millrace replay list`."""
    connection.execute(
        "UPDATE replay_runs SET records_done = %s, records_all = %s, updated_at = now() WHERE run_id = %s",
        (done, all_, run_id),
    )


def became(connection: Connection, run_id: int, status: str) -> None:
    """Note the run's new status."""
    connection.execute(
        "UPDATE replay_runs SET status = %s, updated_at = now(),"
        " swapped_at = CASE WHEN %s = 'swapped' THEN now() ELSE swapped_at END WHERE run_id = %s",
        (status, status, run_id),
    )


def abort(settings: Settings, connection: Connection, run: Run, declared: Pipeline) -> list[str]:
    """Delete all that belongs to the run; returns what was deleted. Of a swapped run, this is what the swap
    retired, and the run's own topics. Killed in between, it can be repeated.
    """
    gone = []
    if run.status != "swapped":
        became(connection, run.run_id, "aborting")
    with connection.transaction():
        connection.execute("DELETE FROM holds WHERE run_id = %s", (run.run_id,))
        for schema in (run.schema, retired_schema(run.run_id)):
            if connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() != (None,):
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
                gone.append(f"schema {schema}")
    client = admin(settings.kafka)
    known = client.list_topics(timeout=ADMIN_SECONDS).topics
    names = [t.name for t in own_topics(run.of(declared)) if t.name in known]
    if names:
        for name, deleted in client.delete_topics(names, operation_timeout=ADMIN_SECONDS).items():
            try:
                deleted.result(timeout=ADMIN_SECONDS)
            except KafkaException as error:
                reason = error.args[0]
                if not (isinstance(reason, KafkaError) and reason.code() == KafkaError.UNKNOWN_TOPIC_OR_PART):
                    raise
            gone.append(f"topic {name}")
    if run.status != "swapped":
        became(connection, run.run_id, "aborted")
    return gone
