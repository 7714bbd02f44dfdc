"""A broker in memory: logs that are appended to in order, and producers whose records may be on their way.

What stands on a log is what the real one would keep: bytes, keys, places, append times. It lets a test lose
or delay exactly the acknowledgement that it means to, and makes offsets the same in every run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from confluent_kafka import Message, Producer

from infra.checkpoints import LogBounds, TopicPartition

START_MS = 1_700_000_000_000
LOG_APPEND_TIME = 2

OnDelivery = Callable[[Any, Message], None]
Headers = Sequence[tuple[str, bytes]]


class Broker:
    """Topics with their logs. An offset without a record is a transaction's marker."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self.partitions = dict(partitions)
        self.now_ms = START_MS
        self.history: list[Message] = []
        """Every record of every topic, in the order in which they came."""
        self._logs: dict[TopicPartition, list[Message | None]] = {
            TopicPartition(topic, n): [] for topic, count in partitions.items() for n in range(count)
        }

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Message:
        """Put a record at the end of its key's partition, or of the one that is given."""
        if partition is None:
            partition = zlib.crc32(key) % self.partitions[topic]
        log = self._logs[TopicPartition(topic, partition)]
        self.now_ms += 1
        message = Message(
            topic=topic,
            partition=partition,
            offset=len(log),
            key=key,
            value=value,
            timestamp=(LOG_APPEND_TIME, self.now_ms),
            headers=list(headers),
        )
        log.append(message)
        self.history.append(message)
        return message

    def mark(self, at: TopicPartition) -> None:
        """Use up an offset without a record."""
        self._logs[at].append(None)

    def bounds(self, at: TopicPartition) -> LogBounds:
        return LogBounds(f"id of {at.topic}", 0, len(self._logs[at]))

    def read(self, at: TopicPartition, start: int, most: int) -> tuple[list[Message], int]:
        """At most `most` records from `start` on, and the offset after them."""
        log, offset = self._logs[at], start
        found: list[Message] = []
        while offset < len(log) and len(found) < most:
            if (message := log[offset]) is not None:
                found.append(message)
            offset += 1
        while offset < len(log) and log[offset] is None:
            offset += 1
        return found, offset

    def records(self, topic: str) -> Iterator[Message]:
        """Every record of a topic, partition by partition."""
        for at, log in self._logs.items():
            if at.topic == topic:
                yield from (m for m in log if m is not None)

    def places(self, topic: str) -> list[TopicPartition]:
        return [at for at in self._logs if at.topic == topic]


class SimulatedProducer:
    """A producer to a `Broker`: `flush` delivers what is queued, unless the broker is `away`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queue: list[tuple[str, bytes, bytes, OnDelivery, Headers]] = []
        self.away = False

    @property
    def as_producer(self) -> Producer:
        return cast(Producer, self)

    def produce(
        self, topic: str, value: bytes, key: bytes, on_delivery: OnDelivery, headers: Headers = ()
    ) -> None:
        self._queue.append((topic, value, key, on_delivery, headers))

    def poll(self, timeout: float = 0) -> int:
        return 0

    def deliver(self, most: int) -> None:
        """Let the first `most` queued records arrive, acknowledged."""
        arriving, self._queue = self._queue[:most], self._queue[most:]
        for topic, value, key, on_delivery, headers in arriving:
            on_delivery(None, self._broker.append(topic, value, key, headers=headers))

    def flush(self, timeout: float = -1) -> int:
        if not self.away:
            self.deliver(len(self._queue))
        return len(self._queue)

    def __len__(self) -> int:
        return len(self._queue)
