"""Role × tenant × object × topic at both doors of live events: what each cell must answer, and what it hears.

Every cell is a connection of its own to a real server. All who are let in listen at the same time; then
events of every owner are published to every topic, and each must hear its own, and no others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from confluent_kafka import Producer
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.graphql.routes import PATH
from api.streams import BY_TOPIC, SHOWN, parse_position
from infra.broker import TopicSpec, admin, ensure_topics, producer
from infra.codec import Codec
from infra.identity.secured import OneOf, declared
from infra.settings import Settings
from infra.topic_log import ends, partitions
from schemas.declare import Topic
from schemas.roles import object_field, scopes_of
from tests.authorisation.matrix import Asker, Failed
from tests.authorisation.rows import NOBODYS, OWNERS, TENANTS, Owner, owners_in

DOORS = ("/v1/events", "/v1/stream")
TOPICS: tuple[Topic, ...] = tuple(shown.topic for shown in SHOWN.values())
SECONDS = 60.0
OPENING = 40
"""How many connections are opened at the same time."""

Place = Mapping[Any, int]


@dataclass(frozen=True)
class Cell:
    """Somebody at a door, asking for a topic."""

    door: str
    asker: Asker | None
    topic: Topic

    def __str__(self) -> str:
        return f"{self.asker or 'nobody'}: {self.door} of {self.topic.name}"

    @property
    def status(self) -> int:
        """What it must be answered: 401, 403, or 200."""
        shown = SHOWN[self.topic.name]
        if self.asker is None:
            return 401
        if shown.scope not in scopes_of(self.asker.grants):
            return 403
        return 403 if self.asker.limited and not _owned(self.topic) else 200

    @property
    def hears(self) -> set[Owner]:
        """Whose events it must hear, where it is let in."""
        assert self.asker is not None
        return {owner for owner in _owners(self.topic) if self.asker.sees(owner)}


def _owned(topic: Topic) -> bool:
    """Whether its events say which object they belong to."""
    shown = SHOWN[topic.name]
    return shown.scope != "ops:read" and object_field(shown.domain) in topic.fields


def _owners(topic: Topic) -> Sequence[Owner]:
    return OWNERS if _owned(topic) else [Owner(tenant, NOBODYS) for tenant in TENANTS]


def prepare(settings: Settings, codec: Codec) -> None:
    """Make every topic that can be listened to."""
    ensure_topics(settings.kafka, map(TopicSpec.of, TOPICS))
    for topic in TOPICS:
        codec.register(topic)


def publish(settings: Settings, codec: Codec, topics: Iterable[Topic]) -> Place:
    """An event of every owner to each topic; returns where they end."""
    sender: Producer = producer(settings.kafka)
    wanted = list(topics)
    for topic in wanted:
        for owner in _owners(topic):
            sender.produce(topic.name, codec.encode(topic, _event(topic, owner)), str(owner).encode())
    assert sender.flush(30) == 0
    return ends(admin(settings.kafka), partitions(wanted))


def _event(topic: Topic, owner: Owner) -> dict[str, Any]:
    examples = topic.schema_path.parent / "examples" / f"{topic.schema_name or topic.name}.json"
    event = json.loads(examples.read_text())[0]
    defaults = {f["name"]: f["default"] for f in topic.schema["fields"] if "default" in f}
    ours = {topic.event_id: f"{owner}/heard", "tenant": owner.tenant}
    if SHOWN[topic.name].scope == "ops:read":
        ours |= {"key": None, "value": None}
    elif _owned(topic):
        ours[object_field(SHOWN[topic.name].domain)] = str(owner)
    return {**defaults, **event, **ours}


def doors(app: FastAPI) -> Iterator[str]:
    """The routes whose scope depends on the topic. Raises `Failed` where they are others than these two, or
    do not declare the scopes of all topics."""
    found = {
        route.path: route.scope
        for route in declared(app)
        if isinstance(route.scope, OneOf) and route.path != PATH  # of GraphQL: tests/authorisation/graph.py
    }
    if found != dict.fromkeys(DOORS, BY_TOPIC):
        raise Failed(f"the doors of live events are {found}")
    yield from found


async def check_listening(
    settings: Settings,
    codec: Codec,
    port: int,
    askers: Sequence[Asker],
    only: Sequence[Topic] = TOPICS,
) -> int:
    """Try every cell, or those of some topics; returns how many there were. Raises `Failed`."""
    cells = [
        Cell(door, asker, topic)
        for door in DOORS
        for topic in only
        for asker in (None, *askers)
        if asker is not None or topic is only[0]
    ]
    opening, published = asyncio.Semaphore(OPENING), asyncio.Event()
    end: dict[Any, int] = {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=OPENING)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=SECONDS, trust_env=False
    ) as client:
        tries = [_Try(cell, client, port, opening, published, end) for cell in cells]
        async with asyncio.timeout(3 * SECONDS), asyncio.TaskGroup() as group:
            for one in tries:
                group.create_task(one.run())
            for one in tries:
                await one.settled.wait()
            end |= await asyncio.to_thread(publish, settings, codec, only)
            published.set()
    for one in tries:
        if one.wrong is not None:
            raise Failed(one.wrong)
    return len(cells)


class _Try:
    """A cell being tried."""

    def __init__(
        self,
        cell: Cell,
        client: httpx.AsyncClient,
        port: int,
        opening: asyncio.Semaphore,
        published: asyncio.Event,
        end: Place,
    ) -> None:
        self._cell, self._client, self._port = cell, client, port
        self._opening, self._published, self._end = opening, published, end
        self.settled = asyncio.Event()
        """Refused, or listening."""
        self.wrong: str | None = None

    async def run(self) -> None:
        try:
            await self._run()
        except Failed as failed:
            self.wrong = f"{self._cell}: {failed}"
        finally:
            self.settled.set()

    async def _run(self) -> None:
        cell = self._cell
        query = {"topic": cell.topic.name}
        if cell.status == 200 and cell.asker is not None:
            foreign = next(t for t in TENANTS if t != cell.asker.tenant)
            async with self._opening, self._open({**query, "tenant": foreign}) as (status, _):
                _require(status, 403, f"naming the tenant {foreign}")
        await self._opening.acquire()
        held = True
        try:
            async with self._open(query) as (status, messages):
                _require(status, cell.status, "opening it")
                if status != 200:
                    return
                heard: set[Owner] = set()
                async for place, text in messages:
                    if held:
                        self._opening.release()
                        held = False
                        self.settled.set()
                    heard |= owners_in(text)
                    if self._published.is_set() and place and self._passed(place):
                        break
                if heard != cell.hears:
                    raise Failed(f"hears {sorted(map(str, heard))} instead of {sorted(map(str, cell.hears))}")
        finally:
            if held:
                self._opening.release()

    def _passed(self, place: str) -> bool:
        found = parse_position(place, (self._cell.topic,))
        return all(offset >= self._end[at] for at, offset in found.items())

    @asynccontextmanager
    async def _open(
        self, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[int, AsyncIterator[tuple[str, str]]]]:
        """The status, and what comes: the place that it comes with, and its text."""
        headers = dict(self._cell.asker.headers) if self._cell.asker else {}
        if self._cell.door == "/v1/events":
            async with self._client.stream("GET", "/v1/events", params=query, headers=headers) as answer:
                yield answer.status_code, _events(answer)
            return
        address = f"ws://127.0.0.1:{self._port}/v1/stream?{httpx.QueryParams(query)}"
        try:
            async with connect(address, additional_headers=headers, proxy=None) as socket:

                async def messages() -> AsyncIterator[tuple[str, str]]:
                    async for text in socket:
                        yield json.loads(text).get("after", ""), str(text)

                yield 200, messages()
        except InvalidStatus as refused:
            yield refused.response.status_code, _nothing()


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    place, text = "", ""
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            place = line.removeprefix("id: ")
        elif line.startswith("data: "):
            text = line
        elif not line:
            yield place, text
            text = ""


async def _nothing() -> AsyncIterator[tuple[str, str]]:
    return
    yield


def _require(status: int, wanted: int, doing: str) -> None:
    if status != wanted:
        raise Failed(f"{doing} is answered {status} instead of {wanted}")
