"""The end of a topic as it grows: a reader without a group that never falls far behind.

It is pulled: who takes slowly makes it skip, and is told how many records, instead of filling memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from api.console.filters import Filter
from infra.broker import CONNECTING, LIBRDKAFKA, admin
from infra.checkpoints import TopicPartition
from infra.codec import Codec, IsTick, Undecodable
from infra.kafka_access import KafkaAccess
from infra.topic_log import at_time, ends, partitions, starts
from schemas.declare import Topic
from schemas.grants import LOG_READER

SHOWN = 40
"""Most records handed out at once: more than eyes can follow."""
DECODED = 2_000
"""Most records decoded at once, for whoever filters."""
BEHIND = 20_000
"""Further behind than this in a partition, the reader moves to its end."""
POLL_S = 0.5
FIRST = 5
"""Records of the past that are shown of each partition before live ones."""
SEARCHED = 5_000
"""Records of the past, of each partition, that are searched when there is a filter."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as it is shown. Without an event, `fault` says why."""

    topic: str
    partition: int
    offset: int
    appended_at: datetime
    key: str
    event: Mapping[str, Any] | None
    fault: str | None

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(slots=True)
class Taken:
    """What came: records to show, oldest first; how many were read, matched and skipped."""

    seen: list[Seen] = field(default_factory=list)
    read: int = 0
    matched: int = 0
    skipped: int = 0


class Tail:
    """A reader of one topic's end. Its methods block; only one thread at a time may call them."""

    def __init__(
        self, kafka: KafkaAccess, codec: Codec, topic: Topic, wanted: Filter, since: datetime | None
    ) -> None:
        """Raises `LogUnreadable` where the broker does not answer."""
        self._codec, self._topic, self._filter = codec, topic, wanted
        client, ats = admin(kafka), partitions([topic])
        begin, end = starts(client, ats), ends(client, ats)
        if since is not None:
            first = at_time(client, ats, int(since.timestamp() * 1000))
        else:
            back = SEARCHED if wanted.terms else FIRST
            first = {at: max(begin[at], end[at] - back) for at in ats}
        self._positions = first
        self._consumer = Consumer(
            {
                **kafka.config(),
                **CONNECTING,
                "group.id": LOG_READER,  # required, but no group is joined and nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "latest",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": 4_096,
                "fetch.message.max.bytes": 262_144,
            },
            logger=LIBRDKAFKA,
        )
        self._consumer.assign([KafkaPartition(at.topic, at.partition, first[at]) for at in ats])

    def take(self) -> Taken:
        """What has come, after at most half a second. Raises `KafkaException`."""
        taken = Taken(skipped=self._catch_up())
        found: list[Seen] = []
        until = time.monotonic() + POLL_S
        while taken.read < DECODED and time.monotonic() < until:
            # Waits for one, then takes what is there: consume(n) would wait for n or the whole time.
            messages = self._consumer.consume(1, max(0.0, until - time.monotonic()))
            if messages:
                messages += self._consumer.consume(DECODED - taken.read - 1, 0)
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.code() in (KafkaError._PARTITION_EOF, KafkaError._TRANSPORT):
                        continue
                    raise KafkaException(error)
                taken.read += 1
                at = TopicPartition(str(message.topic()), int(message.partition() or 0))
                self._positions[at] = int(message.offset() or 0) + 1
                seen = self._seen(message)
                if seen is not None:
                    taken.matched += 1
                    found.append(seen)
        # Partitions are read one after the other: the newest are those that were appended last.
        taken.seen = sorted(found, key=lambda s: (s.appended_at, s.partition, s.offset))[-SHOWN:]
        return taken

    def close(self) -> None:
        self._consumer.close()

    def _catch_up(self) -> int:
        """Move partitions that lie far behind to their ends; returns how many records are left out."""
        skipped = 0
        for at, position in self._positions.items():
            there = KafkaPartition(at.topic, at.partition)
            try:
                _, end = self._consumer.get_watermark_offsets(there, cached=True)
            except KafkaException:
                continue
            if end - position > BEHIND:
                target = end - FIRST
                self._consumer.seek(KafkaPartition(at.topic, at.partition, target))
                self._positions[at] = target
                skipped += target - position
        return skipped

    def _seen(self, message: Message) -> Seen | None:
        """The record if it passes the filter. One that cannot be decoded passes an empty one alone."""
        event: Mapping[str, Any] | None = None
        fault: str | None = None
        try:
            event = self._codec.decode(self._topic, message.value()).event
        except IsTick as tick:
            event, fault = tick.event, "tick"
        except Undecodable as error:
            fault = error.reason
        raw = message.key()
        key = raw if isinstance(raw, str) else (raw or b"").decode(errors="backslashreplace")
        place = {"@key": key, "@partition": message.partition(), "@offset": message.offset()}
        if not self._filter.holds({**(event or {}), **place}):
            return None
        if fault == "tick" and not self._filter.terms:
            return None  # one a second in each partition would hide the events
        return Seen(
            topic=str(message.topic()),
            partition=int(message.partition() or 0),
            offset=int(message.offset() or 0),
            appended_at=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
            key=key,
            event=event,
            fault=fault,
        )
