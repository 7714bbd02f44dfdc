"""Events as they are appended, to whoever may see them: `GET /v1/events` (SSE) and WebSocket `/v1/stream`.

Both say where they stand, in every partition, with each event. Who comes back with that (`Last-Event-ID`, or
`after`) is told what came meanwhile, each record once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, WebSocket
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from api.live_log import Dropped, Listener, LiveLog, LiveRecord, Positions, Started
from infra.audit.entry import Details, Outcome
from infra.audit.log import AuditLog
from infra.checkpoints import TopicPartition
from infra.hardening import EVENTS
from infra.identity import secured
from infra.identity.principal import Principal
from infra.identity.secured import OneOf, SecuredRouter
from infra.limits.web import address_of
from infra.problems import Problem
from schemas.declare import Topic
from schemas.pipelines import PIPELINES
from schemas.roles import HOME_TENANT, OBJECTS, object_field

MOST_LISTENERS = 2_000
HEARTBEAT_SECONDS = 15.0
RECHECK_SECONDS = 30.0
"""How often it is asked again whether the listener still may."""
SEND_SECONDS = 10.0
"""A connection that takes nothing for so long is ended."""
WISH_SECONDS = 60.0
"""How long a WebSocket may listen to nothing."""
COMMAND_BYTES = 16_384
OFFSET = re.compile(r"[0-9]{1,18}")

OPERATORS = "ops:read"

Wants = Callable[[LiveRecord], bool]


@dataclass(frozen=True, slots=True)
class Shown:
    """A topic that can be listened to, and what that needs."""

    topic: Topic
    domain: str
    scope: str


SHOWN: Mapping[str, Shown] = {
    shown.topic.name: shown
    for pipeline in PIPELINES
    for topic in pipeline.topics
    for shown in (
        Shown(topic, pipeline.name, f"{pipeline.name}:read"),
        Shown(topic.dlq, pipeline.name, OPERATORS),
    )
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to listen to."""

    topics: tuple[Topic, ...]
    where: Mapping[str, str]
    after: Positions | None

    @classmethod
    def of(cls, topics: Sequence[str], where: Mapping[str, str], after: str | None) -> Wish:
        """Raises `Problem` 422 naming what cannot be listened to."""
        wanted = list(dict.fromkeys(topics))
        if not wanted:
            raise _wrong("topic", f"name a topic, as card-decisions; there are: {', '.join(SHOWN)}")
        for name in wanted:
            if name not in SHOWN:
                raise _wrong("topic", f"there is no topic {name[:80]!r}; there are: {', '.join(SHOWN)}")
        found = tuple(SHOWN[name].topic for name in wanted)
        for field in where:
            for topic in found:
                if field not in topic.fields:
                    known = ", ".join(topic.fields)
                    raise _wrong("where", f"{topic.name} has no field {field[:80]!r}; its fields: {known}")
        return cls(found, where, parse_position(after, found) if after else None)

    @property
    def names(self) -> str:
        """Its topics, as the audit log tells them."""
        return " ".join(topic.name for topic in self.topics)

    def __contains__(self, record: LiveRecord) -> bool:
        return all(_text(record.event.get(name)) == value for name, value in self.where.items())


def position_text(positions: Positions) -> str:
    """Positions as one word, `card-decisions@17.0.3~truck-alerts@5`: the next offsets by topic."""
    by_topic: dict[str, list[tuple[int, int]]] = {}
    for at, offset in positions.items():
        by_topic.setdefault(at.topic, []).append((at.partition, offset))
    words = (f"{name}@{'.'.join(str(o) for _, o in sorted(ps))}" for name, ps in sorted(by_topic.items()))
    return "~".join(words)


def parse_position(text: str, topics: Sequence[Topic]) -> Positions:
    """What `position_text` wrote. Topics that are not among `topics` are left out; those it lacks begin now.

    Raises `Problem` 422.
    """
    wanted, found = {t.name: t for t in topics}, dict[TopicPartition, int]()
    for part in text.split("~"):
        name, _, offsets = part.partition("@")
        topic = SHOWN[name].topic if name in SHOWN else None
        numbers = offsets.split(".")
        if topic is None or len(numbers) != topic.partitions or not all(map(OFFSET.fullmatch, numbers)):
            raise _wrong("after", "this is no id that an event came with; leave it out, or send the last one")
        if name in wanted:
            found |= {TopicPartition(name, n): int(offset) for n, offset in enumerate(numbers)}
    return found


@dataclass(frozen=True, slots=True)
class Share:
    """What somebody may see of a topic: events of a tenant, and of its objects where they see only some."""

    tenants: frozenset[str]
    field: str
    objects: frozenset[str] | None

    @classmethod
    def of(cls, shown: Shown, principal: Principal) -> Share:
        """Raises `Problem` 403 where they see some objects alone, and events do not say whose they are."""
        letters = shown.scope == OPERATORS
        field = object_field(shown.domain)
        objects = principal.sees(OBJECTS[shown.domain])
        # A letter holds another's bytes: it is no object's, of whatever kind.
        if (letters and principal.objects) or (objects is not None and field not in shown.topic.fields):
            raise Problem(
                403,
                "Not allowed",
                f"You see some objects alone; the events of {shown.topic.name} do not say whose they are.",
                field="topic",
            )
        # As in api/pipelines.py: of whom nobody could read is for those who run the instance.
        home = letters and principal.tenant == HOME_TENANT
        return cls(frozenset({principal.tenant, *([""] if home else [])}), field, objects)

    def __contains__(self, record: LiveRecord) -> bool:
        if record.tenant not in self.tenants:
            return False
        return self.objects is None or record.event.get(self.field) in self.objects


async def admitted(connection: HTTPConnection, wish: Wish, *, again: bool = True) -> Wants:
    """Which events they may be shown. Raises `Problem` where a topic is not theirs to listen to.

    `again` as of `secured.authorise`: whether the door was passed for this already.
    """
    shares: dict[str, Share] = {}
    for topic in wish.topics:
        shown = SHOWN[topic.name]
        principal = await secured.authorise(connection, shown.scope, again=again)
        shares[topic.name] = Share.of(shown, principal)
        again = True  # one opening, of however many topics
    return lambda record: record in shares[record.at.topic] and record in wish


class Progress:
    """Where a connection stands: what it sends as the id of each event."""

    def __init__(self) -> None:
        self._positions: dict[TopicPartition, int] = {}
        self._text = ""

    @property
    def text(self) -> str:
        return self._text

    def start(self, positions: Positions) -> str:
        self._positions = dict(positions)
        return self._render()

    def past(self, record: LiveRecord) -> str:
        self._positions[record.at] = record.offset + 1
        return self._render()

    def _render(self) -> str:
        self._text = position_text(self._positions)
        return self._text


@asynccontextmanager
async def live(app: FastAPI) -> AsyncIterator[None]:
    """For the application's lifespan: its live log, whose thread starts with the first listener. Who listens
    is dropped as soon as `app.state.ending` is set: the server waits for them before it ends."""
    settings = app.state.settings
    log = app.state.live_log = LiveLog(settings.kafka, settings.schema_registry_url, app.state.ending)
    try:
        yield
    finally:
        await asyncio.to_thread(log.close)


router = SecuredRouter(prefix="/v1", tags=["live"])

BY_TOPIC = OneOf(frozenset(shown.scope for shown in SHOWN.values()))
"""What opens the doors; `admitted` then asks for the scope of each topic."""

Topics = Annotated[list[str], Query(alias="topic", description="Topics to listen to, as `card-decisions`.")]
Where = Annotated[
    list[str], Query(description="Only events with this value in this field, as `decision:declined`.")
]
After = Annotated[str | None, Query(description="The id of the last event that was taken: go on behind it.")]


class ServerSentEvents(Response):
    """Declares that an answer goes on, and so that it is limited as a stream."""

    media_type = EVENTS


@router.get(
    "/events",
    scope=BY_TOPIC,
    summary="Events as they are appended, as server-sent events",
    response_class=ServerSentEvents,
    responses={200: {"description": "`started`, `record`, `dropped`"}},
)
async def events(request: Request, topic: Topics, where: Where = [], after: After = None) -> Response:  # noqa: B006
    """`started` says where it begins (and how many records before are `lost`: gone, or too many), `record` is
    an event with its place, `dropped` says why nothing follows. The id of each is what `Last-Event-ID` or
    `after` takes. A topic needs `<domain>:read`, one of dead letters `ops:read`."""
    last = request.headers.get("last-event-id") or after
    wish = Wish.of(topic, _conditions(where), last)
    wants = await admitted(request, wish)
    request.state.object = wish.names
    return EventStream(request, _log_with_room(request), wish, wants)


class EventStream(ServerSentEvents):
    """An answer that goes on until its client leaves, or is dropped."""

    def __init__(self, request: Request, log: LiveLog, wish: Wish, wants: Wants) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request, self._log, self._wish, self._wants = request, log, wish, wants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: str, *, more: bool = True) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": body.encode(), "more_body": more})

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        progress = Progress()
        listener = Listener(self._wish.topics, self._wants, self._wish.after)
        gone = asyncio.create_task(left())
        self._log.listen(listener)
        try:
            async with aclosing(_batches(self._request, self._wish, listener, gone)) as batches:
                async for batch in batches:
                    if batch:
                        await write("".join(_sse(progress, one) for one in batch))
                    else:
                        seen = listener.seen()
                        # An id alone is no event, but is remembered.
                        await write(f"id: {progress.start(seen)}\n\n" if seen else ": \n\n")
        except Dropped as dropped:
            with suppress(TimeoutError):  # who took nothing may not take the reason either
                await write(_frame("dropped", progress.text, {"reason": str(dropped)}))
        except TimeoutError:
            listener.drop("slow", "too slow: the connection takes nothing")
        finally:
            self._log.leave(listener)
            gone.cancel()
            with suppress(TimeoutError, RuntimeError, OSError):
                await write("", more=False)


@router.websocket("/stream", scope=BY_TOPIC)
async def stream(websocket: WebSocket, topic: Topics = [], where: Where = [], after: After = None) -> None:  # noqa: B006
    """As `/v1/events`, and what is listened to can be changed: send
    `{"subscribe": {"topics": [...], "where": {...}, "after": "..."}}`; it replaces what was before."""
    listening: tuple[Wish, Wants] | None = None
    log = _log_with_room(websocket)
    if topic:
        wish = Wish.of(topic, _conditions(where), after)
        listening = wish, await admitted(websocket, wish)
        websocket.state.object = wish.names
    await websocket.accept()
    try:
        await _Conversation(websocket, log).run(listening)
    except (WebSocketDisconnect, TimeoutError):
        return


class _Conversation:
    """A WebSocket that listens, and may be told to listen to something else."""

    def __init__(self, websocket: WebSocket, log: LiveLog) -> None:
        self._websocket, self._log = websocket, log
        self._progress = Progress()

    async def run(self, listening: tuple[Wish, Wants] | None) -> None:
        """Until the client leaves. Raises `WebSocketDisconnect`, TimeoutError for one that takes nothing."""
        while True:
            command = asyncio.create_task(self._command())
            try:
                if listening is not None:
                    reason = await self._listen(*listening, command)
                else:
                    # Who listens to nothing is not among those of whom there may be so many.
                    await asyncio.wait({command}, timeout=WISH_SECONDS)
                    reason = None if command.done() else "nothing was asked for; come back with a wish"
                if reason is not None:
                    await self._send({"type": "dropped", "reason": reason, "after": self._progress.text})
                    await self._websocket.close(1013, reason[:100])
                    return
                text = await command
            finally:
                command.cancel()
            try:
                asked = _subscription(text)
                listening = asked, await self._admitted(asked)
            except Problem as problem:
                # What was listened to before goes on where it was.
                await self._send({"type": "error", "problem": problem.document()})
                if listening is not None and self._progress.text:
                    wish, wants = listening
                    place = parse_position(self._progress.text, wish.topics)
                    listening = Wish(wish.topics, wish.where, place), wants

    async def _admitted(self, asked: Wish) -> Wants:
        """As `admitted`, for another opening: it takes another token, and is told to the audit log."""
        audit: AuditLog = self._websocket.app.state.audit

        def tell(outcome: Outcome, status: int) -> None:
            action = "denied" if outcome == "denied" else "read"
            told: Details = {
                "status": status,
                "address": address_of(self._websocket.scope),
                "object": asked.names,
            }
            audit.record(self._websocket.state.asking, action, "WEBSOCKET /v1/stream", outcome, told)

        try:
            wants = await admitted(self._websocket, asked, again=False)
        except Problem as problem:
            if problem.status in (401, 403):
                tell("denied", problem.status)
            raise
        tell("done", 200)
        return wants

    async def _listen(self, wish: Wish, wants: Wants, command: asyncio.Task[str]) -> str | None:
        """Send what comes, until there is a command (None), or nothing more comes (the reason)."""
        listener = Listener(wish.topics, wants, wish.after)
        self._progress = Progress()
        self._log.listen(listener)
        try:
            async with aclosing(_batches(self._websocket, wish, listener, command)) as batches:
                async for batch in batches:
                    for one in batch:
                        await self._send_text(_message(self._progress, one))
                    if not batch and (seen := listener.seen()):
                        await self._send({"type": "position", "after": self._progress.start(seen)})
        except Dropped as dropped:
            return str(dropped)
        except TimeoutError:
            listener.drop("slow", "too slow: the connection takes nothing")
            raise
        finally:
            self._log.leave(listener)
        return None

    async def _command(self) -> str:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text: str = message.get("text") or ""
        if len(text) > COMMAND_BYTES:
            await self._websocket.close(1009, "too large")
            raise WebSocketDisconnect(1009)
        return text

    async def _send(self, document: Mapping[str, Any]) -> None:
        await self._send_text(orjson.dumps(document).decode())

    async def _send_text(self, text: str) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await self._websocket.send_text(text)


async def _batches(
    connection: HTTPConnection, wish: Wish, listener: Listener, ended: asyncio.Task[Any]
) -> AsyncGenerator[list[LiveRecord | Started]]:
    """What the listener takes, and an empty list where nothing came for a while; until `ended` is done.

    Raises `Dropped`, also where the listener may not listen any more.
    """
    checked = time.monotonic()
    taking = asyncio.create_task(listener.take())
    try:
        while True:
            await asyncio.wait(
                {taking, ended}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if time.monotonic() > checked + RECHECK_SECONDS:
                checked = time.monotonic()
                try:
                    # The rows that they may see may have changed as well as whether they see any.
                    listener.wants = await admitted(connection, wish)
                except Problem as problem:
                    listener.drop("denied", problem.detail)
            if ended.done():
                return
            if not taking.done():
                yield []
                continue
            batch = taking.result()
            yield batch
            taking = asyncio.create_task(listener.take())
    finally:
        if not taking.cancel() and not taking.cancelled():
            taking.exception()  # told to nobody: the connection has ended for another reason


def _sse(progress: Progress, one: LiveRecord | Started) -> str:
    if isinstance(one, Started):
        return _frame("started", progress.start(one.positions), {"lost": one.lost})
    return f"event: record\nid: {progress.past(one)}\ndata: {one.text}\n\n"


def _frame(event: str, identity: str, document: Mapping[str, Any]) -> str:
    named = f"id: {identity}\n" if identity else ""
    return f"event: {event}\n{named}data: {orjson.dumps(document).decode()}\n\n"


def _message(progress: Progress, one: LiveRecord | Started) -> str:
    if isinstance(one, Started):
        document = {"type": "started", "after": progress.start(one.positions), "lost": one.lost}
        return orjson.dumps(document).decode()
    return f'{{"type":"record","after":"{progress.past(one)}",{one.text[1:]}'


def _subscription(text: str) -> Wish:
    """The wish in a message. Raises `Problem` 422."""
    try:
        message = orjson.loads(text)
    except ValueError as error:
        raise _wrong("message", f"is not JSON: {error}") from error
    asked = message.get("subscribe") if isinstance(message, dict) else None
    if not isinstance(asked, dict) or asked.keys() - {"topics", "where", "after"}:
        raise _wrong("message", 'write {"subscribe": {"topics": [...], "where": {...}, "after": "..."}}')
    topics, where, after = asked.get("topics"), asked.get("where", {}), asked.get("after")
    if not isinstance(topics, list) or not all(isinstance(t, str) for t in topics):
        raise _wrong("topics", "is a list of names of topics")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise _wrong("where", "is an object of field to the text of its value")
    if not isinstance(after, str | None):
        raise _wrong("after", "is the id of an event, or left out")
    return Wish.of(topics, where, after)


def _conditions(where: Sequence[str]) -> dict[str, str]:
    found = {}
    for condition in where:
        field, colon, value = condition.partition(":")
        if not colon:
            raise _wrong(
                "where", f"{condition[:80]!r} names no value; write field:value, as decision:declined"
            )
        found[field] = value
    return found


def _text(value: Any) -> str:
    """A value as it is asked for: as JSON has it, texts without their quotes."""
    if isinstance(value, str):
        return value
    return orjson.dumps(value, default=str).decode()


def _log_with_room(connection: HTTPConnection) -> LiveLog:
    log: LiveLog = connection.app.state.live_log
    if log.listening >= MOST_LISTENERS:
        raise Problem(
            503,
            "Too many listeners",
            f"{MOST_LISTENERS} connections listen already; come back in a while.",
            headers={"Retry-After": "5"},
        )
    return log


def _wrong(field: str, reason: str) -> Problem:
    return Problem(422, "Invalid request", f"{field}: {reason}", field=field)
