"""The live pipeline as a replay sees it: how far it is for certain, and whether it suffers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from infra.broker import admin
from infra.checkpoints import TopicPartition
from infra.postgres import Connection
from infra.settings import Settings
from infra.topic_log import ends, partitions
from schemas.declare import Pipeline, Topic
from schemas.replayed import deciding_anew

LOOKS = 240


@dataclass(frozen=True)
class _Look:
    at_s: float
    ends: Mapping[TopicPartition, int]


class Live:
    """Looks at the live pipeline, about twice a second. `sources` are the topics that the replay reads.

    A replay follows *settled* offsets: everything below has taken its effect in the live tables. So its own
    tables never hold what the live ones do not hold yet, and the two can be compared at any moment.
    """

    def __init__(self, settings: Settings, pipeline: Pipeline, sources: list[Topic]) -> None:
        self._admin = admin(settings.kafka_bootstrap_servers)
        self._pipeline = pipeline
        self._sources = sources
        self._results = partitions(pipeline.sink_topics)
        self._looks: deque[_Look] = deque(maxlen=LOOKS)
        self._pending: tuple[dict[TopicPartition, int], dict[TopicPartition, int]] | None = None
        self._consumers = {
            t.name: [p.name for p in deciding_anew(pipeline) if t in p.sources] for t in sources
        } | {
            t.name: [pipeline.sink_name]
            for t in pipeline.sink_topics
            if t.name not in {s.name for s in sources}
        }
        for names in self._consumers.values():
            names[:] = names or [pipeline.sink_name]
        self.settled: dict[TopicPartition, int] = {}
        self.lag_s = 0.0

    def look(self, connection: Connection) -> None:
        """Ask for positions and ends. Raises `psycopg.Error`, `LogUnreadable`."""
        now = time.monotonic()
        positions = self.positions(connection)
        end = ends(self._admin, {*partitions(self._sources), *self._results})
        self._looks.append(_Look(now, end))
        self.lag_s = max((self._waiting_s(at, position) for at, position in positions.items()), default=0.0)
        if self._pending is not None:
            sources, results = self._pending
            if all(positions.get(at, 0) >= offset for at, offset in results.items()):
                self.settled = sources
                self._pending = None
        if self._pending is None:
            # The ends are asked after the positions: what these positions have led to lies below them.
            self._pending = (
                {at: positions.get(at, 0) for at in partitions(self._sources)},
                {at: end[at] for at in self._results},
            )

    def positions(self, connection: Connection) -> dict[TopicPartition, int]:
        """Per partition of what is read live: the position of the last of its consumers."""
        found: dict[TopicPartition, list[int]] = {}
        names = {n for consumers in self._consumers.values() for n in consumers}
        for consumer, topic, partition, position in connection.execute(
            "SELECT consumer, topic, partition, next_offset FROM public.checkpoints WHERE consumer = ANY(%s)",
            (sorted(names),),
        ):
            if consumer in self._consumers.get(str(topic), ()):
                at = TopicPartition(str(topic), int(str(partition)))
                found.setdefault(at, []).append(int(str(position)))
        return {at: min(positions) for at, positions in found.items()}

    def drained(self, connection: Connection) -> bool:
        """Whether the live sink has stored every result there is now."""
        positions = self.positions(connection)
        end = ends(self._admin, self._results)
        return all(positions.get(at, 0) >= offset for at, offset in end.items())

    def _waiting_s(self, at: TopicPartition, position: int) -> float:
        """Since the first look that saw the record which is to be read next."""
        for look in self._looks:
            if look.ends.get(at, 0) > position:
                return self._looks[-1].at_s - look.at_s
        return 0.0
