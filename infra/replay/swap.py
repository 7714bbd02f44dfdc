"""Puts a replay in force: live tables, state and positions change hands in one transaction.

For a moment the live processors are held: they commit, and give their partitions up at offsets N. The
replay reads up to the same N, the live sink stores the results there are, and then both sides stand at one
place in every log. The transaction points the tables' names to the replay's tables and exchanges the
processors' state; when the hold is over, the processors claim their partitions again, at N, with that state.
What live traffic brought meanwhile was read by the replay too, or waits in the topic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from infra import dead_letters
from infra.checkpoints import TopicPartition
from infra.generations import LIVE, home, point_to
from infra.postgres import Connection
from infra.replay.comparison import compare, refuse_migrated
from infra.replay.engine import Engine
from infra.replay.live import Live
from infra.replay.runs import Run, RunRefused, became
from infra.replay.work import wait_settled
from infra.settings import Settings
from schemas.declare import Pipeline

HOLD_SECONDS = 15
"""A hold is renewed while its swap lives, and is over this long after the swap was killed."""
GIVE_UP_SECONDS = 10.0
DRAIN_SECONDS = 20.0
NEAR_RECORDS = 200
NEAR_SECONDS = 1.0
"""The live processors are held when the replay is no further behind than this, or catches up this fast."""
CATCH_UP_ROUNDS = 20
LOCK_MS = (400, 1_500, 400, 1_500, 400, 1_500)
"""How long each attempt waits for readers. Less than deadlock_timeout: of a swap and a reader that wait for
one another, the swap gives way. In turn with more: an autovacuum gives way only after that time."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Swapped:
    """What a swap did: the tables that changed hands, and for how long live processors stood still."""

    tables: tuple[str, ...]
    held_s: float
    positions: Mapping[TopicPartition, int]


def refuse_unswappable(
    settings: Settings, connection: Connection, run: Run, declared: Pipeline, *, incomplete: bool
) -> list[str]:
    """The tables to swap. Raises `RunRefused` with the reason where this run may not be put in force."""
    if run.in_place:
        raise RunRefused(f"replay {run.run_id} wrote in place: live reads its rows already")
    if run.status != "ready":
        raise RunRefused(
            f"replay {run.run_id} is {run.status}; only a ready one can be swapped"
            + (f": `millrace replay run --resume {run.run_id}`" if run.status == "running" else "")
        )
    if run.places.bounded:
        raise RunRefused(
            f"replay {run.run_id} ends before live does (--to), so state and tables would stand at different"
            " places; compare it, or run one without --to"
        )
    if run.places.incomplete and not incomplete:
        raise RunRefused(
            f"{', '.join(run.places.incomplete)} no longer holds all the records that the state depends on;"
            " with --incomplete the state is put in force as it could be rebuilt"
        )
    sources = [t.name for p in run.of(declared).processors for t in p.sources]
    shared = sorted({name for name in sources if sources.count(name) > 1})
    if shared:
        raise RunRefused(
            f"several processors read {shared[0]}, each from its own place: a swap needs one; compare the run"
        )
    tables = [t for t in declared.tables if not t.append_only]
    if not tables:
        raise RunRefused(
            f"{declared.name} has append-only tables alone: they are never swapped; `millrace replay diff"
            f" {run.run_id}` writes what differs into {run.schema}"
        )
    refuse_migrated(connection, run, declared)
    for table in tables:
        if run.places.partial and home(connection, table.name) == LIVE:
            raise RunRefused(
                f"{table.name} holds rows of an earlier replay, of which it cannot be told which lie before"
                " this range; replay the whole topic instead"
            )
    ledgers = [t for t in declared.tables if t.append_only]
    if ledgers:
        for found in compare(settings, connection, run, declared, samples=0, store=False):
            if found.append_only and not found.empty:
                raise RunRefused(
                    f"the replay disagrees with {found.table} ({found.added} added, {found.changed} changed,"
                    f" {found.gone} gone), which is append-only: state and ledger would tell two stories;"
                    " correct it by new events instead"
                )
    return [t.name for t in tables]


def swap(
    settings: Settings,
    connection: Connection,
    run: Run,
    declared: Pipeline,
    engine: Engine,
    live: Live,
    look: Callable[[], float],
    *,
    stopped: bool = False,
    incomplete: bool = False,
    say: Say = lambda _: None,
) -> Swapped:
    """Put a ready run in force. `engine` is open; `look` watches live traffic and returns its lag.

    With `stopped`, processors that do not answer are taken for dead: they are fenced. Raises `RunRefused`
    with everything as it was, `psycopg.Error`, `LogUnreadable`.
    """
    tables = refuse_unswappable(settings, connection, run, declared, incomplete=incomplete)
    consumers = [p.name for p in run.of(declared).processors]
    say("catching up with live traffic")
    _catch_up(connection, engine, live, look)
    began = time.monotonic()
    with _holding(connection, run, consumers) as renew:
        say(f"holding {', '.join(consumers) or 'nobody'}")
        at = _given_up(connection, run, consumers, live, renew, stopped=stopped)

        def renewing() -> float:
            renew()
            return look()

        say(f"{time.monotonic() - began:.1f} s: all partitions are given up; reading to where they stand")
        engine.run_until(lambda: at, renewing, patient=False)
        _drain(connection, live, renew)
        say(f"{time.monotonic() - began:.1f} s: the live sink has stored what there is; exchanging")
        for n, lock_ms in enumerate(LOCK_MS, start=1):
            renew()
            try:
                _commit(connection, run, declared, tables, consumers, at, lock_ms)
                break
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                if n == len(LOCK_MS):
                    raise RunRefused(
                        f"somebody has been reading {', '.join(tables)} in one transaction for too long; end"
                        " it (pg_stat_activity), then swap again"
                    ) from error
                time.sleep(0.1)
    return Swapped(tuple(tables), time.monotonic() - began, at)


def _catch_up(connection: Connection, engine: Engine, live: Live, look: Callable[[], float]) -> None:
    for _ in range(CATCH_UP_ROUNDS):
        goal = wait_settled(connection, live, look)
        began = time.monotonic()
        engine.run_until(lambda goal=goal: goal, look)  # type: ignore[misc]
        fast = time.monotonic() - began <= NEAR_SECONDS
        ahead = live.positions(connection)
        behind = sum(max(0, ahead.get(p, 0) - o) for p, o in engine.positions.items())
        if fast or behind <= NEAR_RECORDS:
            return
    raise RunRefused(
        "the replay does not catch up with live traffic; give it a higher --rate, or swap in a quieter hour"
    )


@contextmanager
def _holding(connection: Connection, run: Run, consumers: list[str]) -> Iterator[Callable[[], None]]:
    def renew() -> None:
        connection.execute(
            "INSERT INTO holds (consumer, run_id, expires_at)"
            " SELECT c, %s, clock_timestamp() + make_interval(secs => %s) FROM unnest(%s::text[]) AS c"
            " ON CONFLICT (consumer) DO UPDATE"
            " SET expires_at = excluded.expires_at, run_id = excluded.run_id",
            (run.run_id, HOLD_SECONDS, consumers),
        )

    renew()
    try:
        yield renew
    finally:
        if not connection.closed:
            connection.execute("DELETE FROM holds WHERE run_id = %s", (run.run_id,))


def _given_up(
    connection: Connection,
    run: Run,
    consumers: list[str],
    live: Live,
    renew: Callable[[], None],
    *,
    stopped: bool,
) -> dict[TopicPartition, int]:
    """Where the held processors stand, once each has given up all its partitions."""
    if stopped:
        connection.execute(
            "UPDATE public.checkpoints SET epoch = epoch + 1, held_by = %s WHERE consumer = ANY(%s)",
            (run.run_id, consumers),
        )
    end = time.monotonic() + GIVE_UP_SECONDS
    while True:
        waiting = connection.execute(
            "SELECT consumer, topic, partition FROM public.checkpoints"
            " WHERE consumer = ANY(%s) AND held_by IS DISTINCT FROM %s LIMIT 1",
            (consumers, run.run_id),
        ).fetchone()
        if waiting is None:
            break
        if time.monotonic() > end:
            raise RunRefused(
                f"{waiting[0]} has not given up {waiting[1]}/{waiting[2]} within {GIVE_UP_SECONDS:.0f} s;"
                " if it runs, swap again; if it was stopped, swap with --stopped"
            )
        renew()
        time.sleep(0.05)
    found = live.positions(connection)
    return {at: found.get(at, 0) for at in run.places.sources}


def _drain(connection: Connection, live: Live, renew: Callable[[], None]) -> None:
    """Wait until the live sink has stored every result: from then on, results belong to the new tables."""
    end = time.monotonic() + DRAIN_SECONDS
    while not live.drained(connection):
        if time.monotonic() > end:
            raise RunRefused(
                f"the live sink has not stored all results within {DRAIN_SECONDS:.0f} s; see `millrace ps`"
            )
        renew()
        time.sleep(0.05)


def _commit(
    connection: Connection,
    run: Run,
    declared: Pipeline,
    tables: list[str],
    consumers: list[str],
    at: Mapping[TopicPartition, int],
    lock_ms: int,
) -> None:
    with connection.transaction():
        connection.execute("SET LOCAL search_path TO public")
        connection.execute(sql.SQL("SET LOCAL lock_timeout TO {}").format(sql.Literal(f"{lock_ms}ms")))
        _verify(connection, run, declared, consumers, at)
        for name in tables:
            point_to(connection, name, run.run_id)
        schema = sql.Identifier(run.schema)
        connection.execute("DELETE FROM state_chunks WHERE consumer = ANY(%s)", (consumers,))
        connection.execute(
            sql.SQL("INSERT INTO state_chunks SELECT * FROM {}.state_chunks WHERE consumer = ANY(%s)").format(
                schema
            ),
            (consumers,),
        )
        _exchange_activations(connection, run, consumers)
        _exchange_letters(connection, run, declared, consumers, at)
        connection.execute("DELETE FROM holds WHERE run_id = %s", (run.run_id,))
        became(connection, run.run_id, "swapped")


def _verify(
    connection: Connection,
    run: Run,
    declared: Pipeline,
    consumers: list[str],
    at: Mapping[TopicPartition, int],
) -> None:
    """Lock every position and make sure that each is where the swap left it."""
    held = connection.execute(
        "SELECT count(*) FROM (SELECT FROM holds WHERE run_id = %s AND consumer = ANY(%s)"
        " AND expires_at > clock_timestamp() FOR UPDATE) h",
        (run.run_id, consumers),
    ).fetchone()
    live_rows = connection.execute(
        "SELECT topic, partition, next_offset, held_by FROM checkpoints WHERE consumer = ANY(%s)"
        " ORDER BY consumer, topic, partition FOR UPDATE",
        (consumers,),
    ).fetchall()
    # The sink may go on afterwards, but not commit meanwhile into a table that is changing hands.
    connection.execute(
        "SELECT FROM checkpoints WHERE consumer = %s ORDER BY consumer, topic, partition FOR UPDATE",
        (declared.sink_name,),
    )
    own = connection.execute(
        sql.SQL("SELECT topic, partition, next_offset FROM {}.checkpoints WHERE consumer = ANY(%s)").format(
            sql.Identifier(run.schema)
        ),
        (consumers,),
    ).fetchall()
    as_left = (
        held == (len(consumers),)
        and all(by == run.run_id for *_, by in live_rows)
        and all(at[TopicPartition(str(t), int(str(p)))] == o for t, p, o, _ in live_rows)
        and all(at[TopicPartition(str(t), int(str(p)))] == o for t, p, o in own)
    )
    if not as_left:
        raise RunRefused("live traffic went on while the swap stood still; nothing was changed: swap again")


def _exchange_activations(connection: Connection, run: Run, consumers: list[str]) -> None:
    """From the range's first offset on, the versions that apply are those that the replay applied."""
    for at, place in run.places.sources.items():
        where = (consumers, at.topic, at.partition)
        connection.execute(
            "DELETE FROM version_activations WHERE consumer = ANY(%s) AND topic = %s AND partition = %s"
            " AND from_offset >= %s",
            (*where, place.first),
        )
        connection.execute(
            sql.SQL(
                "INSERT INTO version_activations (consumer, topic, partition, kind, from_offset, version)"
                " SELECT DISTINCT ON (consumer, kind, greatest(from_offset, {first}))"
                " consumer, topic, partition, kind, greatest(from_offset, {first}), version"
                " FROM {schema}.version_activations"
                " WHERE consumer = ANY(%s) AND topic = %s AND partition = %s"
                " ORDER BY consumer, kind, greatest(from_offset, {first}), from_offset DESC"
            ).format(first=sql.Literal(place.first), schema=sql.Identifier(run.schema)),
            where,
        )


def _exchange_letters(
    connection: Connection,
    run: Run,
    declared: Pipeline,
    consumers: list[str],
    at: Mapping[TopicPartition, int],
) -> None:
    """In the range, the dead letters are those of the replay; what became of one in the meantime stays."""
    schema = sql.Identifier(run.schema)
    columns = sql.SQL(", ").join(map(sql.Identifier, dead_letters.COLUMNS))
    for place_at, place in run.places.sources.items():
        again = sql.SQL(
            'EXISTS (SELECT FROM {}.dead_letters n WHERE (n.topic, n.partition, n."offset", n.consumer)'
            ' = (d.topic, d.partition, d."offset", d.consumer))'
        ).format(schema)
        _settle_letters(connection, run, consumers, place_at, place.first, at[place_at], again)
        connection.execute(
            sql.SQL(
                "INSERT INTO dead_letters ({columns}) SELECT {columns} FROM {schema}.dead_letters"
                ' WHERE topic = %s AND partition = %s AND "offset" >= %s ON CONFLICT DO NOTHING'
            ).format(columns=columns, schema=schema),
            (place_at.topic, place_at.partition, place.first),
        )
    # Refused by the sink: answers, whose topics are the run's own.
    sources = [p.topic for p in run.places.sources]
    append_only = {t.topic.name for t in declared.tables if t.append_only}
    for result, offset in run.places.results.items():
        if result.topic not in append_only:
            _settle_letters(connection, run, [declared.sink_name], result, offset, None, sql.SQL("false"))
    connection.execute(
        sql.SQL(
            "INSERT INTO dead_letters ({columns}) SELECT {columns} FROM {schema}.dead_letters"
            " WHERE NOT topic = ANY(%s) ON CONFLICT DO NOTHING"
        ).format(columns=columns, schema=schema),
        (sources,),
    )


def _settle_letters(
    connection: Connection,
    run: Run,
    consumers: list[str],
    at: TopicPartition,
    first: int,
    end: int | None,
    again: sql.Composable,
) -> None:
    """Take away the letters of a range that the replay has not refused `again`.

    One that an operator has worked on keeps its history: the replay was its redrive, in its own place.
    """
    where = sql.SQL(
        "consumer = ANY(%s) AND topic = %s AND partition = %s"
        ' AND "offset" >= %s AND (%s::bigint IS NULL OR "offset" < %s) AND NOT ({})'
    ).format(again)
    values = (consumers, at.topic, at.partition, first, end, end)
    connection.execute(
        sql.SQL(
            "DELETE FROM dead_letters d WHERE {}"
            " AND NOT EXISTS (SELECT FROM dead_letter_actions a WHERE a.letter = d.id)"
        ).format(where),
        values,
    )
    connection.execute(
        sql.SQL(
            "WITH settled AS (UPDATE dead_letters d SET status = 'redriven' WHERE {}"
            " AND status <> 'redriven' RETURNING id, topic, partition, \"offset\")"
            ' INSERT INTO dead_letter_actions (letter, action, actor, note, topic, partition, "offset")'
            " SELECT id, 'redriven', current_user, {}, topic, partition, \"offset\" FROM settled"
        ).format(where, sql.Literal(f"read again by replay {run.run_id}")),
        values,
    )
