"""The live pipeline as a replay sees it: how far it is for certain, and whether it suffers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
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

    def __init__(
        self, settings: Settings, pipeline: Pipeline, sources: list[Topic], *, in_place: bool = False
    ) -> None:
        self._admin = admin(settings.kafka)
        self._pipeline = pipeline
        self._sources = sources
        self._results = partitions(pipeline.sink_topics)
        self._looks: deque[_Look] = deque(maxlen=LOOKS)
        self._pending: tuple[dict[TopicPartition, int], dict[TopicPartition, int]] | None = None
        # In place it is the sink's work that is repeated, whoever else reads the results.
        deciding = () if in_place else deciding_anew(pipeline)
        sink = [pipeline.sink_name]
        self._storing = {t.name: sink for t in pipeline.sink_topics}
        self._deciding = {t.name: [p.name for p in deciding if t in p.sources] or sink for t in sources}
        self.settled: dict[TopicPartition, int] = {}
        self.lag_s = 0.0

    def look(self, connection: Connection) -> None:
        """Ask for positions and ends. Raises `psycopg.Error`, `LogUnreadable`."""
        now = time.monotonic()
        positions, stored = self.positions(connection), self._stored(connection)
        end = ends(self._admin, {*partitions(self._sources), *self._results})
        self._looks.append(_Look(now, end))
        self.lag_s = max(
            (self._waiting_s(at, n) for at, n in (*positions.items(), *stored.items())), default=0.0
        )
        if self._pending is not None:
            sources, results = self._pending
            if all(stored.get(at, 0) >= offset for at, offset in results.items()):
                self.settled = sources
                self._pending = None
        if self._pending is None:
            # The ends are asked after the positions: what these positions have led to lies below them.
            self._pending = (
                {at: positions.get(at, 0) for at in partitions(self._sources)},
                {at: end[at] for at in self._results},
            )

    def positions(self, connection: Connection) -> dict[TopicPartition, int]:
        """Per partition of the sources: the position of the last of those that read it."""
        return _positions(connection, self._deciding)

    def drained(self, connection: Connection) -> bool:
        """Whether the live sink has stored every result there is now."""
        end = ends(self._admin, self._results)
        stored = self._stored(connection)
        return all(stored.get(at, 0) >= offset for at, offset in end.items())

    def _stored(self, connection: Connection) -> dict[TopicPartition, int]:
        return _positions(connection, self._storing)

    def _waiting_s(self, at: TopicPartition, position: int) -> float:
        """Since the first look that saw the record which is to be read next."""
        for look in self._looks:
            if look.ends.get(at, 0) > position:
                return self._looks[-1].at_s - look.at_s
        return 0.0


def _positions(connection: Connection, consumers: Mapping[str, Sequence[str]]) -> dict[TopicPartition, int]:
    """Where those who read each topic stand, by partition; of several, the one that is behind."""
    found: dict[TopicPartition, int] = {}
    names = sorted({name for readers in consumers.values() for name in readers})
    for consumer, topic, partition, position in connection.execute(
        "SELECT consumer, topic, partition, next_offset FROM public.checkpoints WHERE consumer = ANY(%s)",
        (names,),
    ):
        if consumer in consumers.get(str(topic), ()):
            at, offset = TopicPartition(str(topic), int(str(partition))), int(str(position))
            found[at] = min(offset, found.get(at, offset))
    return found
