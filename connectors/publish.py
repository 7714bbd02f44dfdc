"""From an event to the broker's acknowledgement: whoever awaits `Publisher.publish` has it or a reason.

An answer is given only after the delivery report (acks=all, idempotent producer). Where none comes in
time the outcome is unknown and said to be: the client sends the event again with the same event id.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, Message
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from infra.broker import producer
from infra.codec import Codec, RegistryUnavailable, Unencodable, Unregistered
from infra.kafka_access import KafkaAccess
from infra.problems import Problem
from infra.telemetry.metrics import PRODUCE_FAILURES, PRODUCE_SECONDS, RECORDS_PRODUCED
from schemas.declare import RECORD_BYTES, Topic

log = logging.getLogger(__name__)

Event = dict[str, Any]

RETRY_AFTER = {"Retry-After": "2"}
QUEUED_RECORDS = 50_000
DRAIN_SECONDS = 5.0

_FIELD = re.compile(r"\bfield '?(\w+)")
_MISSING = frozenset(
    {KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART}
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the broker has put the record."""

    topic: str
    partition: int
    offset: int


class Accepted(BaseModel):
    """The answer to an event that the broker has acknowledged (status 202)."""

    event_id: str = Field(description="The event's id: the client's own, or the one made here.")
    topic: str = Field(examples=["card-transactions"])
    partition: int = Field(examples=[3])
    offset: int = Field(description="The record's offset in its partition.", examples=[1_024])

    @classmethod
    def of(cls, event_id: str, receipt: Receipt) -> Self:
        return cls(event_id=event_id, topic=receipt.topic, partition=receipt.partition, offset=receipt.offset)


class Publisher:
    """Publishes events from one event loop. Make it on that loop, and `close` it there.

    Delivery reports arrive on a thread of the publisher's own; they are handed to the loop in batches,
    one wake-up for all that have come, and each resolves exactly the future of its record.
    """

    def __init__(
        self,
        access: KafkaAccess,
        codec: Codec,
        *,
        name: str,
        timeout_s: float = 10.0,
        on_fatal: Callable[[str], None] = lambda _: None,
        **overrides: Any,
    ) -> None:
        """`name` labels the metrics. `overrides` are librdkafka's properties.

        `on_fatal` is called with a reason, on the publisher's thread, when the producer cannot work any
        more and the process must be started again.
        """
        self._loop = asyncio.get_running_loop()
        self._codec = codec
        self._name = name
        self._timeout_s = timeout_s
        self._on_fatal = on_fatal
        self._encodable: set[str] = set()
        self._reports: deque[tuple[_Delivery, str, Receipt | KafkaError]] = deque()
        self._awake = False
        self._room = asyncio.Event()
        self._closing = threading.Event()
        config: dict[str, Any] = {
            # A record that was given up here must not be written minutes later all the same.
            "message.timeout.ms": int(timeout_s * 1000),
            # Topics are made before we start: one that is missing shall be named, not waited for.
            "topic.metadata.propagation.max.ms": min(1_000, int(timeout_s * 1000)),
            "linger.ms": 2,
            "queue.buffering.max.messages": QUEUED_RECORDS,
            "error_cb": self._on_error,
            # librdkafka would write its own lines to stderr, which are not JSON.
            "logger": logging.getLogger("librdkafka"),
            **overrides,
        }
        self._producer = producer(access, **config)
        self._poller = threading.Thread(target=self._poll, name=f"{name}-deliveries", daemon=True)
        self._poller.start()

    async def publish(self, topic: Topic, event: Event) -> Receipt:
        """The event's place, once the broker has it. Raises `Problem`: 413, 422 or 503."""
        (receipt,) = await self.publish_many(topic, (event,))
        return receipt

    async def publish_many(self, topic: Topic, events: Sequence[Event]) -> list[Receipt]:
        """As `publish`, for events in order. None is sent unless all can be encoded.

        Where the broker acknowledges only some, the first failure is raised: send all of them again
        with the same event ids.
        """
        if not events:
            return []
        records = [
            await self._encode(topic, event, f"{n}." if len(events) > 1 else "")
            for n, event in enumerate(events)
        ]
        started = time.perf_counter()
        deliveries: list[_Delivery] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                for key, value in records:
                    deliveries.append(await self._queue(topic, key, value))
                await asyncio.wait(deliveries)
        except TimeoutError:
            raise self._gave_up(topic, events, len(deliveries)) from None
        PRODUCE_SECONDS.labels(self._name).observe(time.perf_counter() - started)
        receipts = []
        for event, delivery in zip(events, deliveries, strict=True):
            outcome = delivery.result()
            if isinstance(outcome, KafkaError):
                raise self._problem(topic, event, outcome)
            receipts.append(outcome)
        return receipts

    async def unreachable(self, timeout_s: float = 2.0) -> str | None:
        """None where the broker answers, otherwise the reason why it does not count as reachable."""
        try:
            await asyncio.to_thread(self._producer.list_topics, timeout=timeout_s)
        except KafkaException as error:
            return f"the broker does not answer ({_reason(error).str()}); look at `millrace status`"
        return None

    async def close(self) -> None:
        """Wait a few seconds for the acknowledgements that are due, then give up the rest."""
        self._closing.set()
        await asyncio.to_thread(self._poller.join)
        self._settle()

    async def _encode(self, topic: Topic, event: Event, place: str) -> tuple[bytes, bytes]:
        for name in (topic.key, topic.event_id):
            if not event.get(name):
                raise _invalid(f"{place}{name}", f"{topic.name}: field {name!r} is missing; give it a value")
        try:
            if topic.name in self._encodable:
                value = self._codec.encode(topic, event)
            else:
                # The first use of a topic asks the registry, which must not hold up the loop.
                async with asyncio.timeout(self._timeout_s):
                    value = await asyncio.to_thread(self._codec.encode, topic, event)
                self._encodable.add(topic.name)
        except Unregistered as error:
            raise Problem(503, "Not set up", f"{error}.", headers=RETRY_AFTER) from error
        except Unencodable as error:
            named = _FIELD.search(str(error))
            raise _invalid(place + (named.group(1) if named else "body"), str(error)) from error
        except (RegistryUnavailable, TimeoutError) as error:
            raise Problem(
                503,
                "Registry is away",
                "The schema registry does not answer, so the event was not accepted; send it again later.",
                headers=RETRY_AFTER,
            ) from error
        return str(event[topic.key]).encode(), value

    async def _queue(self, topic: Topic, key: bytes, value: bytes) -> _Delivery:
        delivery: _Delivery = self._loop.create_future()
        while True:
            try:
                self._producer.produce(
                    topic.name, value, key, on_delivery=partial(self._delivered, delivery, topic.name)
                )
                return delivery
            except BufferError:
                # Each record in the full queue still owes its report, and every report makes room.
                self._room.clear()
                await self._room.wait()
            except KafkaException as error:
                delivery.set_result(_reason(error))
                return delivery

    def _delivered(self, delivery: _Delivery, topic: str, error: KafkaError | None, message: Message) -> None:
        outcome = error or Receipt(topic, message.partition() or 0, message.offset() or 0)
        self._reports.append((delivery, topic, outcome))
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # Lowered before the reports are taken: one that comes meanwhile wakes the loop again.
        self._awake = False
        acknowledged: Counter[str] = Counter()
        while self._reports:
            delivery, topic, outcome = self._reports.popleft()
            if isinstance(outcome, Receipt):
                acknowledged[topic] += 1
            if not delivery.done():  # whoever waited may have given up
                delivery.set_result(outcome)
        for topic, records in acknowledged.items():
            RECORDS_PRODUCED.labels(self._name, topic).inc(records)
        self._room.set()

    def _poll(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.2)
        deadline = time.monotonic() + DRAIN_SECONDS
        while len(self._producer) and time.monotonic() < deadline:
            self._producer.poll(0.2)
        if len(self._producer):
            log.warning("records were given up at the end", extra={"records": len(self._producer)})
            self._producer.purge()
            self._producer.poll(1.0)

    def _on_error(self, error: KafkaError) -> None:
        log.warning("the producer reports", extra={"producer": self._name, "reason": error.str()})
        if error.fatal():
            self._on_fatal(f"the producer cannot go on: {error.str()}")

    def _gave_up(self, topic: Topic, events: Sequence[Event], queued: int) -> Problem:
        failures = PRODUCE_FAILURES
        failures.labels(self._name, topic.name, "unknown").inc(queued)
        failures.labels(self._name, topic.name, "refused").inc(len(events) - queued)
        if queued:
            return self._unknown(topic, events[0])
        return Problem(
            503,
            "Too busy",
            "The queue towards the broker stayed full, so the event was not accepted; send it again later.",
            headers=RETRY_AFTER,
        )

    def _problem(self, topic: Topic, event: Event, error: KafkaError) -> Problem:
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            PRODUCE_FAILURES.labels(self._name, topic.name, "refused").inc()
            return Problem(
                413,
                "Too large",
                f"The event is larger than a record may be ({RECORD_BYTES} bytes); send it in parts.",
            )
        # Whatever else a report says, an attempt before it may have been written.
        PRODUCE_FAILURES.labels(self._name, topic.name, "unknown").inc()
        if error.code() not in _MISSING:
            return self._unknown(topic, event)
        return Problem(
            503,
            "Topic is missing",
            f"Topic {topic.name} does not exist; `millrace up` creates it. Then send the event again with the"
            " same event id.",
            headers=RETRY_AFTER,
        )

    def _unknown(self, topic: Topic, event: Event) -> Problem:
        return Problem(
            503,
            "Outcome unknown",
            f"The broker did not acknowledge event {event[topic.event_id]} within {self._timeout_s:g} s: it"
            " is unknown whether it was written. Send it again with the same event id; it takes effect once.",
            type="urn:millrace:problem:outcome-unknown",
            headers=RETRY_AFTER,
        )


_Delivery = asyncio.Future[Receipt | KafkaError]


def _reason(error: KafkaException) -> KafkaError:
    reason = error.args[0]
    assert isinstance(reason, KafkaError)
    return reason


def _invalid(field: str, reason: str) -> Problem:
    return Problem(422, "Invalid request", f"{reason}.", errors=((field, reason),))


async def publisher(connection: HTTPConnection) -> Publisher:
    """The gateway's publisher, for `Annotated[Publisher, Depends(publisher)]`."""
    found = connection.app.state.publisher
    assert isinstance(found, Publisher)
    return found
