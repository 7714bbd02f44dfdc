"""How far every pipeline is, cheaply: end offsets from the broker, positions and range records from Postgres.

Nothing is scanned: these are figures for people who watch, and the test whether a pipeline has drained.
Whether the promise holds is `infra.reconcile`'s to say.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.postgres import connect
from infra.settings import Settings
from infra.topic_log import ends, partitions, starts
from schemas.declare import Pipeline, Pipelines, Topic

REMEMBERED_LOOKS = 900


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A pipeline as it stands, in records. `acknowledged` and all others count since the topics began.

    `lag_s` is how long the oldest record that some processor or sink has still to read has been waiting.
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


def consumers(pipeline: Pipeline) -> list[tuple[str, Topic]]:
    """Who reads what: processors their sources, the sink the results and all dead letters."""
    read = [(p.name, topic) for p in pipeline.processors for topic in p.sources]
    letters = [topic.dlq for topic in pipeline.topics]
    return read + [(pipeline.sink_name, topic) for topic in (*pipeline.sink_topics, *letters)]


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
        self._admin = admin(settings.kafka_bootstrap_servers)
        topics = [t for p in pipelines for topic in p.topics for t in (topic, topic.dlq)]
        self._partitions = partitions(topics)
        self._starts: dict[TopicPartition, int] = {}
        self._looks: deque[_Look] = deque(maxlen=REMEMBERED_LOOKS)
        self._positions: dict[tuple[str, TopicPartition], int] = {}
        self._stored: dict[tuple[str, str], tuple[int, int]] = {}
        self._dead: dict[str, int] = {}

    def look(self) -> dict[str, Figures]:
        """Ask broker and database, and return each pipeline's figures."""
        if not self._starts:
            self._starts = starts(self._admin, self._partitions)
        self._ask_database()
        look = _Look(time.monotonic(), ends(self._admin, self._partitions))
        self._looks.append(look)
        return {p.name: self._figures(p, look) for p in self._pipelines}

    def lags(self, pipeline: Pipeline) -> list[Lag]:
        """What the pipeline had still to read at the last look."""
        end = self._looks[-1].ends
        found = []
        for consumer, topic in consumers(pipeline):
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
            self._stored = {
                (str(consumer), str(topic)): (int(str(stored)), int(str(duplicates)))
                for consumer, topic, stored, duplicates in connection.execute(
                    "SELECT consumer, topic, sum(records_total - dead_total), sum(duplicates_total)"
                    " FROM range_records GROUP BY consumer, topic"
                )
            }
            self._dead = {
                str(pipeline): int(str(n))
                for pipeline, n in connection.execute(
                    "SELECT pipeline, count(*) FROM dead_letters GROUP BY pipeline"
                )
            }

    def _figures(self, pipeline: Pipeline, look: _Look) -> Figures:
        inputs = partitions(pipeline.inputs)
        acknowledged = sum(look.ends[at] - self._starts[at] for at in inputs)
        decided = 0
        for topic in pipeline.inputs:
            readers = [p.name for p in pipeline.processors if topic in p.sources] or [pipeline.sink_name]
            for at in partitions([topic]):
                position = min(self._positions.get((name, at), self._starts[at]) for name in readers)
                decided += position - self._starts[at]
        evident = {t.topic.name for t in pipeline.tables if t.name in {e.table for e in pipeline.evidence}}
        stored = [self._stored.get((pipeline.sink_name, name), (0, 0)) for name in evident]
        lags = self.lags(pipeline)
        return Figures(
            acknowledged=acknowledged,
            decided=decided,
            in_sink=sum(max(0, records - duplicates) for records, duplicates in stored),
            duplicates=sum(duplicates for _, duplicates in stored),
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
