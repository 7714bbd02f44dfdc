"""A run's way from wherever it stands to being ready, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from psycopg import sql
from psycopg.types.json import Jsonb

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.postgres import Connection
from infra.replay import comparison, runs
from infra.replay.engine import Engine
from infra.replay.live import Live
from infra.replay.runs import Run
from infra.settings import Settings
from infra.topic_log import ends, partitions
from schemas.declare import Pipeline

SETTLE_SECONDS = 20.0


class Reporter:
    """Looks at live traffic, and tells how far the run is: to the terminal and to `millrace replay list`."""

    EVERY_SECONDS = 2.0

    def __init__(
        self, connection: Connection, run: Run, engine: Engine, live: Live, say: Callable[[str], None]
    ) -> None:
        self._connection, self._run, self._engine, self._live, self._say = connection, run, engine, live, say
        self._told = 0.0
        self._before: tuple[float, int] | None = None

    def look(self) -> float:
        """One look; returns for how many seconds live traffic waits."""
        self._live.look(self._connection)
        now = time.monotonic()
        if now - self._told >= self.EVERY_SECONDS:
            done, all_ = figures(self._run, self._engine, self._live)
            runs.progress(self._connection, self._run.run_id, done, all_)
            if self._before is not None:
                rate = (done - self._before[1]) / (now - self._before[0])
                left = f", {(all_ - done) / rate:,.0f} s left" if rate > 0 and all_ > done else ""
                self._say(
                    f"{done:,} of {all_:,} records, {rate:,.0f} records/s{left};"
                    f" live lag {self._live.lag_s:.1f} s"
                )
            self._told, self._before = now, (now, done)
        return self._live.lag_s


def figures(run: Run, engine: Engine, live: Live) -> tuple[int, int]:
    """Records read, warm-up included, and those there are to read as of the last look."""
    positions, places = engine.positions, run.places.sources
    done = sum(positions[at] - p.warm for at, p in places.items() if at in positions)
    last = {at: live.settled.get(at, 0) if p.last is None else p.last for at, p in places.items()}
    return done, max(done, sum(max(0, last[at] - p.warm) for at, p in places.items()))


def work(
    settings: Settings,
    connection: Connection,
    run: Run,
    declared: Pipeline,
    engine: Engine,
    live: Live,
    look: Callable[[], float],
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """The run itself, from wherever it stands to being ready."""
    places = run.places.sources
    settled = wait_settled(connection, live, look, say)
    if run.warm_ends is None:
        if any(p.warm < p.first for p in places.values()):
            say("warming the state up")
            first: dict[TopicPartition, int] = {at: p.first for at, p in places.items()}
            engine.run_until(lambda: first, look)
        results = partitions(t for t in run.of(declared).sink_topics if t.origin != t.name)
        warm_ends = ends(admin(settings.kafka), results) if results else {}
        with connection.transaction():
            if not run.in_place:
                comparison.kept(connection, runs.find(connection, run.run_id), declared)
            connection.execute(
                "UPDATE replay_runs SET warm_ends = %s WHERE run_id = %s",
                (Jsonb([[at.topic, at.partition, n] for at, n in warm_ends.items()]), run.run_id),
            )
    goal = {
        at: max(p.first, settled.get(at, 0) if p.last is None else min(p.last, settled.get(at, 0)))
        for at, p in places.items()
    }
    for at, p in places.items():
        if p.last is not None and goal[at] < p.last:
            say(f"{at}: live has come to {goal[at]} only, the replay ends there instead of {p.last}")
    engine.run_until(lambda: goal, look)
    if not run.in_place:
        for table in declared.tables:
            # Whoever reads the table after a swap shall not plan for an empty one.
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(run.schema, table.name)))
    done, all_ = figures(run, engine, live)
    runs.progress(connection, run.run_id, done, all_)


def wait_settled(
    connection: Connection,
    live: Live,
    look: Callable[[], float],
    say: Callable[[str], None] = lambda _: None,
) -> dict[TopicPartition, int]:
    """Up to where everything live has taken effect; waits for it a little."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        look()
        if live.settled:
            return dict(live.settled)
        if time.monotonic() > end:
            say("the live sink does not store its results: what it still owes will show as added")
            return live.positions(connection)
        time.sleep(0.2)
