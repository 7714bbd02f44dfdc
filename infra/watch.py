"""How far every pipeline is, cheaply: end offsets from the broker, positions and rows from Postgres.

These are figures for people who watch, and the test whether a pipeline has drained. Whether the promise
holds is `infra.reconcile`'s to say.
"""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from http.client import HTTPException

from psycopg import sql

from infra import tls
from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.supervisor import read_report
from infra.topic_log import ends, partitions, starts
from schemas.declare import Pipeline, Pipelines

REMEMBERED_LOOKS = 900
COUNTING_SHARE = 0.05
"""Most of the time that counting rows may take: in a large table they are counted less often."""
DUPLICATES = b"millrace_duplicates_total{"
METRICS_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A pipeline as it stands. `acknowledged` and `decided` are input records since the topics began.

    `in_sink` are distinct ids in the sink's evidence, `duplicates` what the running processes have
    dropped. `lag_s` is how long the oldest record that somebody has still to read has been waiting.
    """

    acknowledged: int
    decided: int
    in_sink: int
    duplicates: int
    dead_letters: int
    records_per_second: float
    lag_records: int
    lag_s: float


@dataclass(frozen=True)
class Lag:
    """A partition that a consumer has not read to its end."""

    consumer: str
    at: TopicPartition
    position: int
    end: int

    def __str__(self) -> str:
        return f"{self.consumer} stands at {self.position} of {self.end} in {self.at}"


@dataclass(frozen=True)
class _Look:
    """One look at positions and then at ends. Ends are asked last: where no lag is seen then, none was
    hidden by a record that moved on between the two."""

    at_s: float
    ends: dict[TopicPartition, int]


class Watch:
    """Looks at an instance again and again. Raises `psycopg.Error` and `infra.topic_log.LogUnreadable`
    while one of both cannot be asked; the next look may succeed."""

    def __init__(self, settings: Settings, pipelines: Pipelines) -> None:
        self._settings = settings
        self._pipelines = pipelines
        self._admin = admin(settings.kafka)
        topics = [t for p in pipelines for topic in p.topics for t in (topic, topic.dlq)]
        self._partitions = partitions(topics)
        self._starts: dict[TopicPartition, int] = {}
        self._looks: deque[_Look] = deque(maxlen=REMEMBERED_LOOKS)
        self._positions: dict[tuple[str, TopicPartition], int] = {}
        self._stored: dict[str, int] = {}
        self._dead: dict[str, int] = {}
        self._count_again_s = 0.0
        self._dropped: dict[tuple[str, str], int] = {}
        self._dropped_before: dict[tuple[str, str], int] = {}

    def look(self) -> dict[str, Figures]:
        """Ask broker and database, and return each pipeline's figures."""
        if not self._starts:
            self._starts = starts(self._admin, self._partitions)
        self._ask_database()
        self._ask_processes()
        look = _Look(time.monotonic(), ends(self._admin, self._partitions))
        self._looks.append(look)
        return {p.name: self._figures(p, look) for p in self._pipelines}

    def lags(self, pipeline: Pipeline) -> list[Lag]:
        """What the pipeline had still to read at the last look."""
        end = self._looks[-1].ends
        found = []
        for consumer, topic in pipeline.consumers:
            for at in partitions([topic]):
                position = self._positions.get((consumer, at), self._starts[at])
                if position < end[at]:
                    found.append(Lag(consumer, at, position, end[at]))
        return found

    def _ask_database(self) -> None:
        with connect(self._settings.database_url, "millrace-watch") as connection:
            self._positions = {
                (str(consumer), TopicPartition(str(topic), int(str(partition)))): int(str(position))
                for consumer, topic, partition, position in connection.execute(
                    "SELECT consumer, topic, partition, next_offset FROM checkpoints"
                )
            }
            self._dead = {
                str(pipeline): int(str(n))
                for pipeline, n in connection.execute(
                    'SELECT pipeline, count(DISTINCT (topic, partition, "offset")) FROM dead_letters'
                    " GROUP BY pipeline"
                )
            }
            began = time.monotonic()
            if began >= self._count_again_s:
                self._stored = {p.name: _count_evidence(connection, p) for p in self._pipelines}
                now = time.monotonic()
                self._count_again_s = now + (now - began) / COUNTING_SHARE

    def _ask_processes(self) -> None:
        """Add up the duplicates that processors and sinks have dropped; a process that was restarted
        counts from zero, so what it had counted before is kept."""
        report = read_report(self._settings.home_path)
        for process in report.processes if report else ():
            if process.role not in ("processor", "sink") or process.pid is None:
                continue
            dropped = _dropped_duplicates(self._settings, process.port)
            if dropped is None:
                continue
            key = (process.pipeline, process.role)
            if dropped < self._dropped.get(key, 0):
                self._dropped_before[key] = self._dropped_before.get(key, 0) + self._dropped[key]
            self._dropped[key] = dropped

    def _figures(self, pipeline: Pipeline, look: _Look) -> Figures:
        inputs = partitions(pipeline.inputs)
        acknowledged = sum(look.ends[at] - self._starts[at] for at in inputs)
        decided = 0
        for topic in pipeline.inputs:
            readers = [p.name for p in pipeline.processors if topic in p.sources] or [pipeline.sink_name]
            for at in partitions([topic]):
                position = min(self._positions.get((name, at), self._starts[at]) for name in readers)
                decided += position - self._starts[at]
        dropped = [
            self._dropped.get(key, 0) + self._dropped_before.get(key, 0)
            for key in ((pipeline.name, "processor"), (pipeline.name, "sink"))
        ]
        lags = self.lags(pipeline)
        return Figures(
            acknowledged=acknowledged,
            decided=decided,
            # Evidence may hold ids of inner topics besides: never more than was decided.
            in_sink=min(self._stored.get(pipeline.name, 0), decided),
            # A processor that answers a duplicate again makes the sink drop it once more.
            duplicates=max(dropped),
            dead_letters=self._dead.get(pipeline.name, 0),
            records_per_second=self._rate(inputs),
            lag_records=sum(lag.end - lag.position for lag in lags),
            lag_s=max((self._waiting_s(lag) for lag in lags), default=0.0),
        )

    def _rate(self, inputs: list[TopicPartition]) -> float:
        """Records a second over about the last five seconds."""
        last = self._looks[-1]
        first = next(look for look in self._looks if look.at_s >= last.at_s - 5.5)
        if first is last:
            return 0.0
        gained = sum(last.ends[at] - first.ends[at] for at in inputs)
        return gained / (last.at_s - first.at_s)

    def _waiting_s(self, lag: Lag) -> float:
        """Since the first look that already saw the record which is to be read next."""
        seen = next(look for look in self._looks if look.ends[lag.at] > lag.position)
        return self._looks[-1].at_s - seen.at_s


def _count_evidence(connection: Connection, pipeline: Pipeline) -> int:
    """Distinct ids in the columns that the pipeline declares as evidence, per input topic."""
    found = 0
    columns = {t.name: t.columns for t in pipeline.tables}
    for topic in pipeline.inputs:
        evidence = [e for e in pipeline.evidence if e.topic.name == topic.name]
        by_tenant = all("tenant" in columns[e.table] for e in evidence)
        parts = [
            sql.SQL("SELECT {}, {} FROM {}").format(
                sql.SQL("tenant" if by_tenant else "NULL"), sql.Identifier(e.column), sql.Identifier(e.table)
            )
            for e in evidence
        ]
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM ({}) AS ids").format(sql.SQL(" UNION ").join(parts))
        ).fetchone()
        found += int(str(row[0])) if row else 0
    return found


def _dropped_duplicates(settings: Settings, port: int) -> int | None:
    """What a process's metrics say; None where it does not answer at the moment."""
    try:
        url, context = tls.of_our_own(settings, port)
        with urllib.request.urlopen(f"{url}/metrics", timeout=METRICS_S, context=context) as answer:  # noqa: S310
            lines = answer.read().splitlines()
    except (OSError, HTTPException):  # away, or killed in the middle of its answer
        return None
    return sum(int(float(line.rsplit(b" ", 1)[1])) for line in lines if line.startswith(DUPLICATES))
