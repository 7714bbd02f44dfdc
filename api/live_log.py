"""Events as they are appended, for many listeners: one thread reads and decodes for all of them.

The thread has one consumer at the topics' ends, without a group. Who asks for the past is read it by a
consumer of their own, in the same thread, up to the place where the first one stands: no record is missed
between the two, and none comes twice. A listener that takes too slowly is dropped and told why; it holds up
nobody, and nothing here ever waits for the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from infra.broker import CONNECTING, LIBRDKAFKA, admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, IsTick, RegistryUnavailable, Undecodable
from infra.kafka_access import KafkaAccess
from infra.telemetry.metrics import STREAM_DROPPED, STREAM_LISTENERS, STREAM_RECORDS
from infra.topic_log import LogUnreadable, ends, partitions, starts
from schemas import json_bytes
from schemas.declare import Topic
from schemas.grants import LOG_READER

log = logging.getLogger(__name__)

QUEUED_RECORDS = 1_000
QUEUED_BYTES = 8 << 20
"""What may wait for one listener. One large record may exceed it, or it could never be taken."""
HISTORY_RECORDS = 100_000
"""Most of the past that a listener is read; it is told how many records before that it lost."""
CATCHING_UP = 4
"""Most listeners that are read their past at the same time; the others wait for their turn."""
STALLED_SECONDS = 30.0
"""A listener to its past that takes nothing for so long is dropped: others wait for its place."""
ENDING = "this server ends; come back in a moment"
POLL_RECORDS = 1_000
POLL_SECONDS = 0.1

Positions = Mapping[TopicPartition, int]


@dataclass(frozen=True)
class LiveRecord:
    """An event where it stands in the log. `text` is made once, for all who take it."""

    at: TopicPartition
    offset: int
    appended_ms: int
    key: str
    schema_id: int
    tenant: str
    event: Mapping[str, Any]
    size: int

    @cached_property
    def text(self) -> str:
        """The record as a JSON object."""
        return orjson.dumps(
            {
                "topic": self.at.topic,
                "partition": self.at.partition,
                "offset": self.offset,
                "appended_ms": self.appended_ms,
                "key": self.key,
                "schema_id": self.schema_id,
                "event": self.event,
            },
            default=json_bytes.to_json,
        ).decode()


@dataclass(frozen=True, slots=True)
class Started:
    """A listener's first: where it begins, and how many records it asked for that are gone or too many."""

    positions: Positions
    lost: int


class Dropped(Exception):
    """The listener gets nothing any more; the message is the reason."""


class Listener:
    """What one client wants and has not taken yet. Filled by the log's thread, taken on the loop it was made
    on. `wants` is called in that thread."""

    def __init__(
        self,
        topics: Sequence[Topic],
        wants: Callable[[LiveRecord], bool],
        after: Positions | None,
        most_records: int = QUEUED_RECORDS,
    ) -> None:
        """`after`: the next offset of each partition, to be read what came since; None from now on."""
        self.topics = {t.name: t for t in topics}
        self.wants = wants
        self.after = after
        self._most_records = most_records
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._awake = False
        self._waiting: deque[LiveRecord | Started] = deque()
        self._reason: str | None = None
        # Each is written by one thread alone.
        self._bytes_offered = self._bytes_taken = 0
        self._next: dict[TopicPartition, int] = {}
        self.behind: set[TopicPartition] = set()

    async def take(self) -> list[LiveRecord | Started]:
        """What has come, at least one. Raises `Dropped` once there is nothing more and never will be."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            # Lowered before anything is taken: what comes meanwhile wakes the loop again.
            self._awake = False
            taken: list[LiveRecord | Started] = []
            while self._waiting:
                one = self._waiting.popleft()
                if isinstance(one, LiveRecord):
                    self._bytes_taken += one.size
                taken.append(one)
            if taken:
                if self._reason is not None:
                    self._ready.set()
                return taken
            if self._reason is not None:
                self._ready.set()
                raise Dropped(self._reason)

    def seen(self) -> Positions | None:
        """Where everything before was offered and taken, or was not wanted; None while something waits."""
        # In this order: the thread raises a position after it has queued what stands below.
        positions = dict(self._next)
        return None if self._waiting or not positions else positions

    @property
    def dropped(self) -> bool:
        return self._reason is not None

    @property
    def waiting(self) -> int:
        """How many records wait to be taken."""
        return len(self._waiting)

    # By the log's thread

    def begin(self, positions: Positions, behind: Iterable[TopicPartition], lost: int) -> None:
        self._next = dict(positions)
        self.behind = set(behind)
        self._waiting.append(Started(dict(positions), lost))
        self._wake()

    def offer(self, at: TopicPartition, next_offset: int, record: LiveRecord | None) -> None:
        """A record, or None for one that is no event, below `next_offset`."""
        if self._reason is not None or next_offset <= self._next[at]:
            return
        if record is not None and self.wants(record):
            waiting = self._bytes_offered - self._bytes_taken
            if len(self._waiting) >= self._most_records or (self._waiting and waiting > QUEUED_BYTES):
                self.drop("slow", "too slow: events came faster than they were taken; go on from the last id")
                return
            self._bytes_offered += record.size
            self._waiting.append(record)
            self._wake()
        self._next[at] = next_offset

    def drop(self, kind: str, reason: str) -> None:
        """End it: what was queued is handed out, then `reason`. From any thread; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            STREAM_DROPPED.labels(kind).inc()
            self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._ready.set)
            except RuntimeError:
                self._reason = self._reason or "its loop has ended"


class LiveLog:
    """The topics' ends for the listeners of one process. Its methods may be called from the event loop."""

    def __init__(self, access: KafkaAccess, registry_url: str, ending: threading.Event) -> None:
        """`ending`: once it is set, whoever listens is dropped, and nobody is listened for."""
        self._access = access
        self._registry_url = registry_url
        self._ending = ending
        self._commands: queue.SimpleQueue[tuple[Callable[[Listener], None], Listener] | None] = (
            queue.SimpleQueue()
        )
        self._listeners: dict[str, set[Listener]] = {}
        self._catching: list[_CatchUp] = []
        self._in_line: deque[_CatchUp] = deque()
        self._topics: dict[str, Topic] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self.listening = 0

    def listen(self, listener: Listener) -> None:
        """Let it be offered what comes on its topics, until `leave`."""
        self.listening += 1
        STREAM_LISTENERS.set(self.listening)
        if self._ends:
            listener.drop("ending", ENDING)
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="live-log", daemon=True)
            self._thread.start()
        self._commands.put((self._add, listener))

    def leave(self, listener: Listener) -> None:
        """Offer it nothing any more."""
        self.listening -= 1
        STREAM_LISTENERS.set(self.listening)
        self._commands.put((self._remove, listener))

    def close(self) -> None:
        """End the thread; whoever still listens is dropped. Waits for it, so not for the event loop."""
        self._closed = True
        self._commands.put(None)
        if self._thread is not None:
            self._thread.join(10)

    @property
    def _ends(self) -> bool:
        # While somebody listens the thread looks every POLL_SECONDS; while nobody does, nobody waits for it.
        return self._closed or self._ending.is_set()

    # In the thread

    def _run(self) -> None:
        consumer = _consumer(self._access)
        client = admin(self._access)
        try:
            with closing(Codec(self._registry_url)) as codec:
                self._consumer, self._admin, self._codec = consumer, client, codec
                while not self._ends:
                    self._obey()
                    if self._ends:
                        break
                    try:
                        self._turn()
                    except (KafkaException, RegistryUnavailable, LogUnreadable) as error:
                        log.warning("live events wait for a service", extra={"reason": str(error)})
                        time.sleep(1.0)
        except Exception:
            # The next who listens starts it anew.
            log.exception("live events have ended")
        finally:
            told = {one for some in self._listeners.values() for one in some}
            while not self._commands.empty():
                if (command := self._commands.get()) is not None:
                    told.add(command[1])
            for listener in told:
                listener.drop("ending", ENDING)
            for catching in (*self._catching, *self._in_line):
                catching.close()
            for kept in (self._listeners, self._positions, self._catching, self._in_line):
                kept.clear()
            consumer.close()

    def _obey(self) -> None:
        """What the loop has asked for; with nobody listening, wait for that."""
        wait = not any(self._listeners.values())
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            if command is None:
                return
            act, listener = command
            act(listener)
            wait = False

    def _add(self, listener: Listener) -> None:
        wanted = partitions(listener.topics.values())
        try:
            first, end = starts(self._admin, wanted), ends(self._admin, wanted)
        except (LogUnreadable, KafkaException) as error:
            listener.drop("unreadable", f"the topics cannot be read: {error}")
            return
        new = [at for at in wanted if at not in self._positions]
        self._topics |= listener.topics
        self._positions |= {at: end[at] for at in new}
        if new:
            self._consumer.incremental_assign([KafkaPartition(p.topic, p.partition, end[p]) for p in new])
        begin, lost = dict.fromkeys(wanted, 0), 0
        most = HISTORY_RECORDS // len(wanted)
        for at in wanted:
            here = self._positions[at]
            asked = here if listener.after is None else listener.after.get(at, here)
            if asked > max(here, end[at]):
                listener.drop("beyond", f"offset {asked} of {at} does not exist yet: the topic was made anew")
                return
            begin[at] = max(asked, first[at], here - most)
            lost += begin[at] - asked
        behind = {at: offset for at, offset in begin.items() if offset < self._positions[at]}
        listener.begin(begin, behind, lost)
        for name in listener.topics:
            self._listeners.setdefault(name, set()).add(listener)
        if behind:
            self._in_line.append(_CatchUp(self._access, listener, behind))

    def _remove(self, listener: Listener) -> None:
        for name in listener.topics:
            listening = self._listeners.get(name, set())
            listening.discard(listener)
            going = [] if listening else [at for at in self._positions if at.topic == name]
            if going:
                self._listeners.pop(name, None)
                self._consumer.incremental_unassign([KafkaPartition(p.topic, p.partition) for p in going])
                for at in going:
                    del self._positions[at]
        for catching in [c for c in (*self._catching, *self._in_line) if c.listener is listener]:
            self._end(catching)

    def _turn(self) -> None:
        """Once around: what is new, then a piece of each past that is being read."""
        while self._in_line and len(self._catching) < CATCHING_UP:
            self._catching.append(self._in_line.popleft())
        busy = any(c.has_room for c in self._catching)
        for message in _poll(self._consumer, 0.0 if busy else POLL_SECONDS):
            self._live(message)
        for catching in list(self._catching):
            if catching.listener.dropped or catching.stalled():
                self._end(catching)
            elif catching.has_room:
                for message in catching.poll():
                    self._past(catching, message)
                if not catching.listener.behind:
                    self._end(catching)

    def _live(self, message: Message) -> None:
        at, offset = _place(message)
        if at not in self._positions:
            return  # nobody listens any more
        error = message.error()
        if error is not None:
            self._fail(at.topic, error)
            return
        if offset < self._positions[at]:
            return
        # Whatever becomes of it: who comes now begins behind, who was dropped for it comes back to it.
        self._positions[at] = offset + 1
        try:
            record = self._decoded(at, message)
        except RegistryUnavailable as error:
            for listener in self._listeners.get(at.topic, ()):
                listener.drop("unreadable", f"{at.topic} cannot be decoded now: {error}")
            return
        for listener in self._listeners.get(at.topic, ()):
            if at not in listener.behind:
                listener.offer(at, offset + 1, record)

    def _past(self, catching: _CatchUp, message: Message) -> None:
        at, offset = _place(message)
        listener, error = catching.listener, message.error()
        if at not in listener.behind:
            return
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if not _passes(error):
                listener.drop("unreadable", f"{at} cannot be read: {error.str()}")
            return
        # From where the live consumer stands on, it hands out itself; no earlier and no later than this.
        if error is None and offset < self._positions[at]:
            try:
                listener.offer(at, offset + 1, self._decoded(at, message))
            except RegistryUnavailable as failure:
                listener.drop("unreadable", f"{at.topic} cannot be decoded now: {failure}")
            offset += 1
        if offset >= self._positions[at]:
            listener.behind.discard(at)

    def _decoded(self, at: TopicPartition, message: Message) -> LiveRecord | None:
        topic = self._topics[at.topic]
        value, key = message.value(), message.key()
        try:
            decoded = self._codec.decode(topic, value if isinstance(value, bytes) else None)
        except (IsTick, Undecodable):
            return None  # what its reader refuses comes as a dead letter
        STREAM_RECORDS.labels(at.topic).inc()
        return LiveRecord(
            at,
            int(message.offset() or 0),
            message.timestamp()[1],
            key.decode(errors="replace") if isinstance(key, bytes) else "",
            decoded.schema_id,
            str(decoded.event["tenant"]),
            decoded.event,
            len(value or b""),
        )

    def _fail(self, topic: str, error: KafkaError) -> None:
        if _passes(error):
            return
        for listener in self._listeners.get(topic, ()):
            listener.drop("unreadable", f"{topic} cannot be read: {error.str()}")

    def _end(self, catching: _CatchUp) -> None:
        catching.close()
        for some in (self._catching, self._in_line):
            if catching in some:
                some.remove(catching)


class _CatchUp:
    """A listener's past, as far as it was read to it."""

    def __init__(self, access: KafkaAccess, listener: Listener, behind: Positions) -> None:
        self.listener = listener
        self._access = access
        self._behind = behind
        self._consumer: Consumer | None = None
        self._full_since: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether more may be read: what it has not taken is kept small, as its past may be long."""
        return self.listener.waiting < QUEUED_RECORDS // 4

    def stalled(self) -> bool:
        """Whether it has had no room for too long; it is dropped then."""
        if self.has_room:
            self._full_since = None
            return False
        self._full_since = self._full_since or time.monotonic()
        if time.monotonic() < self._full_since + STALLED_SECONDS:
            return False
        self.listener.drop("slow", "too slow: nothing was taken of the past; go on from the last id")
        return True

    def poll(self) -> list[Message]:
        if self._consumer is None:
            self._consumer = _consumer(self._access, eof=True)
            self._consumer.assign(
                [KafkaPartition(at.topic, at.partition, n) for at, n in self._behind.items()]
            )
        return _poll(self._consumer, 0.02, QUEUED_RECORDS // 4)

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _consumer(access: KafkaAccess, *, eof: bool = False) -> Consumer:
    return Consumer(
        {
            **access.config(),
            **CONNECTING,
            "group.id": LOG_READER,  # required, but no group is joined and nothing is committed
            "enable.auto.commit": False,
            # Only where retention has passed a position: the next record that is left.
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": eof,
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 8_192,
        },
        logger=LIBRDKAFKA,
    )


def _poll(consumer: Consumer, seconds: float, most: int = POLL_RECORDS) -> list[Message]:
    # consume(n) waits for n records or the whole time-out: wait for one, then take what is there.
    messages = consumer.consume(1, seconds)
    if messages:
        messages += consumer.consume(most - 1, 0)
    return [m for m in messages if m.topic() is not None]


def _place(message: Message) -> tuple[TopicPartition, int]:
    return TopicPartition(str(message.topic()), int(message.partition() or 0)), int(message.offset() or 0)


def _passes(error: KafkaError) -> bool:
    """Whether librdkafka mends it by itself: a broker that is away, a leader that moves."""
    return error.retriable() or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._PARTITION_EOF,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
    )
