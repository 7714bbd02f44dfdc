"""Reading what was answered a moment ago: wait until a sink has stored all that stands in its topic now.

Whoever was told of a result may ask for its row before the sink has written it. Only where a row is missed
is the broker asked how far the topic reaches, and the sink's positions are awaited there. Of many who wait at
the same time one asks for all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from api.database import Rows
from infra.asked_together import AskedTogether
from infra.broker import admin
from infra.kafka_access import KafkaAccess
from infra.problems import Problem
from schemas.declare import Topic

log = logging.getLogger(__name__)

WAIT_S = 2.0
LOOK_S = 0.02
ASK_S = 2.0
TOGETHER_S = 0.005
"""A question to the broker costs this process as much as a query does, and a thread."""
AWAY_S = 5.0
"""While the broker is away it is asked once in so long."""

_POSITIONS = "SELECT partition, next_offset FROM checkpoints WHERE consumer = $1 AND topic = $2"


class Settling:
    """Waits for sinks. Used on one event loop; the broker is asked on threads."""

    def __init__(self, access: KafkaAccess) -> None:
        self._access = access
        self._client: AdminClient | None = None
        self._away_until = 0.0
        self._ends: dict[str, AskedTogether[dict[int, int] | None]] = {}
        self._stored: dict[tuple[str, str], AskedTogether[dict[int, int]]] = {}

    async def settled(self, database: Rows, topic: Topic, sink: str) -> None:
        """Return once `sink` has stored all that stands in the topic now, or where that cannot be told.

        Raises `Problem` 503 where it does not get there in `WAIT_S`.
        """
        end = await self._ends_of(topic)
        until = time.monotonic() + WAIT_S
        while end:
            stored = await self.stored(database, topic, sink)
            end = {
                partition: offset for partition, offset in end.items() if stored.get(partition, 0) < offset
            }
            if end and time.monotonic() > until:
                raise Problem(
                    503,
                    "Not stored yet",
                    f"{topic.name} holds results that {sink} has not stored yet; ask again later, and look at"
                    " /v1/pipelines for how far it is.",
                    headers={"Retry-After": "2"},
                )
            if end:
                await asyncio.sleep(LOOK_S)

    async def stored(self, database: Rows, topic: Topic, sink: str) -> dict[int, int]:
        """Up to where `sink` has stored each partition of the topic."""
        asked = self._stored.get((sink, topic.name))
        if asked is None:
            pool = database.pool  # positions are nobody's: they are read as of no tenant

            async def ask() -> dict[int, int]:
                rows = await pool.fetch(_POSITIONS, sink, topic.name)
                return {row["partition"]: row["next_offset"] for row in rows}

            asked = self._stored[sink, topic.name] = AskedTogether(ask)
        return await asked()

    async def _ends_of(self, topic: Topic) -> dict[int, int] | None:
        """The end of each partition that holds anything; None where the broker does not tell."""
        if time.monotonic() < self._away_until:
            return None
        asked = self._ends.get(topic.name)
        if asked is None:
            # Never by the answer to an earlier question: what was answered since would not be in it.
            asked = AskedTogether(lambda: asyncio.to_thread(self._ask, topic), TOGETHER_S)
            self._ends[topic.name] = asked
        ends = await asked()
        if ends is None:
            self._away_until = time.monotonic() + AWAY_S
        return ends

    def _ask(self, topic: Topic) -> dict[int, int] | None:
        if self._client is None:
            self._client = admin(self._access)
        asked = {KafkaPartition(topic.name, n): OffsetSpec.latest() for n in range(topic.partitions)}
        try:
            answers = self._client.list_offsets(
                asked, request_timeout=ASK_S, isolation_level=IsolationLevel.READ_COMMITTED
            )
            ends = {int(at.partition): int(answer.result().offset) for at, answer in answers.items()}
        except KafkaException as error:
            log.warning("the ends of a topic are not told", extra={"topic": topic.name, "reason": str(error)})
            return None
        return {partition: end for partition, end in ends.items() if end > 0}


@asynccontextmanager
async def settling(app: FastAPI) -> AsyncIterator[None]:
    """Give `app` its `Settling`."""
    app.state.settling = Settling(app.state.settings.kafka)
    yield


async def sinks(connection: HTTPConnection) -> Settling:
    """The application's, for `Annotated[Settling, Depends(sinks)]`."""
    found = connection.app.state.settling
    assert isinstance(found, Settling)
    return found
