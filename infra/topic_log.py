"""Topics as they stand: how far they reach, and everything in them, without a consumer group.

For whoever counts (reconciling, the live table) or looks for what it sent itself (ingest); processors and
sinks read through `infra.broker.Source`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from infra.broker import ADMIN_SECONDS
from infra.checkpoints import TopicPartition
from infra.kafka_access import KafkaAccess
from schemas.declare import Topic
from schemas.grants import LOG_READER

READ_RECORDS = 10_000
SILENCE_SECONDS = 30.0
"""Reading fails when a partition that has not ended yields nothing for this long."""
_LEADERLESS = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}


class LogUnreadable(ConnectionError):
    """The broker does not answer, or stopped to; the message says for which partition."""


def partitions(topics: Iterable[Topic]) -> list[TopicPartition]:
    """All declared partitions of these topics."""
    return [TopicPartition(t.name, n) for t in topics for n in range(t.partitions)]


def starts(admin: AdminClient, wanted: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The first offset that each partition still holds. Raises `LogUnreadable`."""
    return _list(admin, wanted, OffsetSpec.earliest())


def ends(admin: AdminClient, wanted: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The end offset of each partition. Raises `LogUnreadable`."""
    return _list(admin, wanted, OffsetSpec.latest())


def at_time(
    admin: AdminClient, wanted: Iterable[TopicPartition], append_ms: int
) -> dict[TopicPartition, int]:
    """The first offset appended at this time or later; the end where there is none.

    Raises `LogUnreadable`.
    """
    asked = list(wanted)
    end = ends(admin, asked)
    found = _list(admin, asked, OffsetSpec.for_timestamp(append_ms))
    return {at: offset if offset >= 0 else end[at] for at, offset in found.items()}


def _list(
    admin: AdminClient, wanted: Iterable[TopicPartition], spec: OffsetSpec
) -> dict[TopicPartition, int]:
    asked = {KafkaPartition(p.topic, p.partition): spec for p in wanted}
    until = time.monotonic() + ADMIN_SECONDS
    while True:
        try:
            answers = admin.list_offsets(
                asked, request_timeout=ADMIN_SECONDS, isolation_level=IsolationLevel.READ_COMMITTED
            )
            results: list[tuple[KafkaPartition, Any]] = [(at, f.result()) for at, f in answers.items()]
            return {TopicPartition(at.topic, at.partition): int(info.offset) for at, info in results}
        except KafkaException as error:
            # A partition is without a leader for a moment after it was created or its broker restarted.
            if error.args[0].code() not in _LEADERLESS or time.monotonic() > until:
                raise LogUnreadable(
                    f"the broker does not tell its offsets: {error}; see `millrace status`"
                ) from error
            time.sleep(0.1)


def read(
    access: KafkaAccess,
    first: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
) -> Iterator[list[Message]]:
    """Every committed record of each partition, from offset `first` up to `end`, in lists.

    Records of one partition come in order. Raises `LogUnreadable`.
    """
    # By plain tuples: making and hashing a TopicPartition for each record would cost as much as reading it.
    until = {(p.topic, p.partition): end[p] for p in first if first[p] < end[p]}
    open_ = set(until)
    if not open_:
        return
    consumer = Consumer(
        {
            **access.config(),
            "group.id": LOG_READER,  # required, but no group is joined and nothing is committed
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            # The end may be a transaction marker, which is never delivered; the end of the partition is.
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    try:
        consumer.assign([KafkaPartition(p.topic, p.partition, first[p]) for p in first if first[p] < end[p]])
        heard = time.monotonic()
        while open_:
            messages = []
            # consume(n) waits for n records or the whole time-out: wait for one, then take what is there.
            arrived = consumer.consume(1, 1.0)
            if arrived:
                arrived += consumer.consume(READ_RECORDS - 1, 0)
                heard = time.monotonic()
            for message in arrived:
                at = (str(message.topic()), int(message.partition() or 0))
                error, offset = message.error(), int(message.offset() or 0)
                if error is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise LogUnreadable(
                            f"{TopicPartition(*at)} cannot be read: {error.str()}; see `millrace doctor`"
                        )
                    open_.discard(at)
                elif offset < until[at]:
                    messages.append(message)
                if offset >= until[at] - 1:
                    open_.discard(at)
            if messages:
                yield messages
            if time.monotonic() > heard + SILENCE_SECONDS:
                silent = TopicPartition(*min(open_))
                raise LogUnreadable(
                    f"{silent} yields nothing for {SILENCE_SECONDS:.0f} s; see `millrace status`"
                )
    finally:
        consumer.close()
