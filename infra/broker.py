"""The broker: topics, producers, and a consumer whose positions come from the database.

`Source` takes partitions by Kafka's group protocol (eager, static members) but reads from where its
`claim` says, never from the group's committed offsets: those are only written as a hint for lag tools.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient, NewTopic

from infra.checkpoints import REMEDY, Claim, Fenced, LogBounds, PositionRefused, TopicPartition
from infra.kafka_access import KafkaAccess
from infra.telemetry.metrics import REBALANCES
from schemas.declare import LETTER_BYTES, RECORD_BYTES, Topic

log = logging.getLogger(__name__)
LIBRDKAFKA = logging.getLogger("librdkafka")  # otherwise it writes lines of its own form to stderr

ADMIN_SECONDS = 30.0
CLAIM_RETRY_SECONDS = 0.5
CLOSE_SECONDS = 10.0
SESSION_SECONDS = 10.0
TWIN_SECONDS = SESSION_SECONDS + 5
"""Fenced again within this time, a member has a twin; by itself it is fenced once in a session at most."""
CONNECTING: dict[str, Any] = {"reconnect.backoff.max.ms": 1000}
"""A broker that is back is found within a second: with the default of 10 s a member outstays its session."""


class TopicMismatch(RuntimeError):
    """A topic exists with other properties than declared; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as the broker shall have it."""

    name: str
    partitions: int
    retention_ms: int
    largest_bytes: int

    @classmethod
    def of(cls, topic: Topic) -> TopicSpec:
        return cls(topic.name, topic.partitions, topic.retention_ms, topic.largest_bytes)


def admin(access: KafkaAccess) -> AdminClient:
    # Without the notices of level 6, as of each client that is closed: they go to stderr as they are.
    return AdminClient({**access.config(), "socket.timeout.ms": 10_000, "log_level": 5})


def ensure_topics(access: KafkaAccess, specs: Iterable[TopicSpec]) -> list[str]:
    """Create the topics that are missing; returns their names. All get LogAppendTime.

    Raises `TopicMismatch` where one exists with another partition count: raising it would move keys to
    other partitions, whose state and order would then be torn.
    """
    client = admin(access)
    known = client.list_topics(timeout=ADMIN_SECONDS).topics
    wanted = list(specs)
    for spec in wanted:
        if spec.name in known and len(known[spec.name].partitions) != spec.partitions:
            raise TopicMismatch(
                f"topic {spec.name} has {len(known[spec.name].partitions)} partitions,"
                f" declared are {spec.partitions}; another number would part each key from its state and"
                " order: declare the number it has, or create a topic of a new name and replay into it"
            )
    missing = [s for s in wanted if s.name not in known]
    if not missing:
        return []
    futures = client.create_topics(
        [
            NewTopic(
                s.name,
                num_partitions=s.partitions,
                replication_factor=-1,
                config={
                    # With CreateTime, records of last year vanish at the first retention check.
                    "message.timestamp.type": "LogAppendTime",
                    "retention.ms": str(s.retention_ms),
                    "max.message.bytes": str(s.largest_bytes),
                },
            )
            for s in missing
        ],
        operation_timeout=ADMIN_SECONDS,
    )
    for name, future in futures.items():
        try:
            future.result(timeout=ADMIN_SECONDS)
        except KafkaException as error:
            reason = error.args[0]
            if not (isinstance(reason, KafkaError) and reason.code() == KafkaError.TOPIC_ALREADY_EXISTS):
                raise RuntimeError(f"topic {name} could not be created: {error}") from error
    _wait_for_leaders(client, {s.name for s in missing})
    return [s.name for s in missing]


def _wait_for_leaders(client: AdminClient, names: set[str]) -> None:
    """Until the broker tells of new topics: a busy one takes a while, and consumers would stop meanwhile."""
    until = time.monotonic() + ADMIN_SECONDS
    while waiting := names - {
        name
        for name, topic in client.list_topics(timeout=ADMIN_SECONDS).topics.items()
        if topic.error is None and topic.partitions and all(p.leader >= 0 for p in topic.partitions.values())
    }:
        if time.monotonic() > until:
            raise RuntimeError(f"topic {min(waiting)} was created, but has no leader; see `millrace status`")
        time.sleep(0.05)


def producer(access: KafkaAccess, **overrides: Any) -> Producer:
    """A producer that acknowledges only what all in-sync replicas have, without duplicates of its own."""
    return Producer(
        {
            **access.config(),
            **CONNECTING,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 200_000,
            "message.max.bytes": RECORD_BYTES,
            # murmur2, as Kafka's own clients: a key must land in the same partition whoever produces it.
            "partitioner": "murmur2_random",
            **overrides,
        },
        logger=LIBRDKAFKA,
    )


def result_producer(access: KafkaAccess) -> Producer:
    """A `producer` for results and dead letters, which may be larger than what connectors take in.

    Its delivery callbacks are called for failures alone: at 100,000 records a second they would cost more
    than producing.
    """
    return producer(access, **{"message.max.bytes": LETTER_BYTES, "delivery.report.only.error": True})


@dataclass(slots=True)
class PartitionBatch:
    """Consecutive records of one partition; `next_offset` is where reading goes on after them.

    It may lie beyond the last record (transaction markers, compaction), and there may be no record at all.
    """

    at: TopicPartition
    epoch: int
    messages: list[Message]
    next_offset: int


ClaimPartitions = Callable[[Mapping[TopicPartition, LogBounds]], Mapping[TopicPartition, Claim]]
ReleasePartitions = Callable[[Iterable[TopicPartition]], None]


class Source:
    """A consumer group member that hands out batches by partition. Used from one thread at a time.

    `claim` is called from `poll`, outside the rebalance callback, and may raise `ConnectionError` to be
    called again later; `release` is called inside the callback, before the partitions are given up (the
    last moment to checkpoint them).
    """

    def __init__(
        self,
        access: KafkaAccess,
        group: str,
        topics: Iterable[str],
        claim: ClaimPartitions,
        release: ReleasePartitions,
        instance_id: str | None = None,
        **overrides: Any,
    ) -> None:
        self.group = group
        self._access = access
        self._claim = claim
        self._release = release
        self._epochs: dict[TopicPartition, int] = {}
        self._pending: set[TopicPartition] = set()
        self._unproven: dict[TopicPartition, Claim] = {}
        self._retry_at = 0.0
        self._fatal: Exception | None = None
        self._fenced_at: float | None = None
        self._topics = list(topics)
        self._config: dict[str, Any] = {
            **access.config(),
            **CONNECTING,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # A position that the log does not have must stop us; a silent reset loses or doubles records.
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            # Not cooperative: a partition then moves by two rebalances, and a static member killed in between
            # comes back without the second one: what it gave up is nobody's from then on.
            "partition.assignment.strategy": "roundrobin",
            "session.timeout.ms": int(SESSION_SECONDS * 1000),
            "max.poll.interval.ms": 120_000,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            "queued.max.messages.kbytes": 16_384,
            "topic.metadata.refresh.interval.ms": 30_000,
            **overrides,
        }
        if instance_id:
            self._config["group.instance.id"] = instance_id
        self._consumer = self._join()

    def _join(self) -> Consumer:
        consumer = Consumer(self._config, logger=LIBRDKAFKA)
        consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        return consumer

    @property
    def assignment(self) -> dict[TopicPartition, int]:
        """The partitions that are read now, each with its epoch."""
        return dict(self._epochs)

    def poll(self, max_records: int, timeout_s: float) -> list[PartitionBatch]:
        """The next records, grouped by partition, or none after `timeout_s`.

        Raises `Fenced`, `PositionRefused`, or `KafkaException` for what no retry mends.
        """
        self._assign_pending()
        # consume(n) waits for n records or the whole time-out: wait for one, then take what is there.
        messages = self._consumer.consume(1, timeout_s)
        if messages:
            messages += self._consumer.consume(max_records - 1, 0)
        if self._fatal:
            raise self._fatal
        batches: dict[TopicPartition, PartitionBatch] = {}
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                self._refuse(message, error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None and partition is not None and offset is not None
            at = TopicPartition(topic, partition)
            epoch = self._epochs.get(at)
            if epoch is None:
                continue  # given up while the record was in the queue: its next owner reads it
            if error is None and at in self._unproven and self._proves(at, message):
                continue
            batch = batches.get(at)
            if batch is None:
                batch = batches[at] = PartitionBatch(at, epoch, [], 0)
            if error is None:
                batch.messages.append(message)
                batch.next_offset = offset + 1
            else:
                batch.next_offset = max(batch.next_offset, offset)
        # Not those of before we were fenced.
        return [b for b in batches.values() if self._epochs.get(b.at) == b.epoch]

    def rewind(self, batches: Iterable[PartitionBatch]) -> None:
        """Hand these batches, which took no effect, out again."""
        for batch in batches:
            if batch.messages and self._epochs.get(batch.at) == batch.epoch:
                first = batch.messages[0].offset()
                assert first is not None
                self._consumer.seek(KafkaPartition(batch.at.topic, batch.at.partition, first))

    def idle(self, seconds: float) -> None:
        """Hand nothing out for a while, but go on polling, so that the group does not take us for dead."""
        until = time.monotonic() + seconds
        paused = [KafkaPartition(p.topic, p.partition) for p in self._epochs]
        self._consumer.pause(paused)
        try:
            while (left := until - time.monotonic()) > 0:
                # What a partition assigned meanwhile hands out must come again afterwards.
                self.rewind(self.poll(1, left))
        finally:
            self._consumer.resume([p for p in paused if TopicPartition(p.topic, p.partition) in self._epochs])

    def give_back(self) -> None:
        """Read nothing, and claim the same partitions anew as soon as `claim` allows it; the group stays."""
        held = sorted(self._epochs)
        self._unassign(held)
        self._epochs.clear()
        self._pending |= set(held)
        self._retry_at = 0.0

    def hint(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell Kafka the positions, for lag tools only; a failure is of no consequence."""
        try:
            self._consumer.commit(
                offsets=[KafkaPartition(p.topic, p.partition, o) for p, o in offsets.items()],
                asynchronous=True,
            )
        except KafkaException as error:
            log.debug("offset hint was not taken", extra={"reason": str(error)})

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The end offsets last seen by the consumer, for lag; without asking the broker."""
        found = {}
        for at in self._epochs:
            _, end = self._consumer.get_watermark_offsets(KafkaPartition(at.topic, at.partition), cached=True)
            if end >= 0:
                found[at] = end
        return found

    def close(self) -> None:
        """Leave the group. `release` is called for what is assigned."""
        closer = threading.Thread(target=self._consumer.close, name=f"{self.group}-close", daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if closer.is_alive():
            log.warning("the consumer did not close in time", extra={"group": self.group})

    # Rebalancing. Callbacks run inside consume(), in the polling thread.

    def _on_assign(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        REBALANCES.labels(self.group, "assigned").inc()
        self._epochs.clear()  # an assignment replaces the one before
        self._pending = {TopicPartition(p.topic, p.partition) for p in partitions}
        self._retry_at = 0.0
        # Nothing yet: the database is asked outside the callback, so that a slow one cannot stall the group.
        consumer.assign([])

    def _on_revoke(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        REBALANCES.labels(self.group, "revoked").inc()
        going = {TopicPartition(p.topic, p.partition) for p in partitions}
        held = [p for p in sorted(going) if p in self._epochs]
        try:
            if held:
                self._release(held)
        except Exception as error:
            # What is not checkpointed is abandoned: the next owner reads it again from the last checkpoint.
            log.warning("partitions were given up without a checkpoint", extra={"reason": str(error)})
            if isinstance(error, Fenced):
                self._fatal = error
        for p in held:
            del self._epochs[p]
        self._pending -= going
        self._unassign(held)

    def _on_lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        REBALANCES.labels(self.group, "lost").inc()
        # Somebody else may read them already: nothing of ours may be committed any more.
        going = {TopicPartition(p.topic, p.partition) for p in partitions}
        log.warning(
            "partitions were lost", extra={"group": self.group, "partitions": sorted(map(str, going))}
        )
        held = [p for p in sorted(going) if p in self._epochs]
        for p in held:
            del self._epochs[p]
        self._pending -= going
        self._unassign(held)

    def _unassign(self, partitions: Iterable[TopicPartition]) -> None:
        going = [KafkaPartition(p.topic, p.partition) for p in partitions]
        # A pause outlives both unassign and assign (confluent-kafka-go#193): given up in `idle` and assigned
        # to us again, a partition would never be read.
        self._consumer.resume(going)
        self._consumer.unassign()

    def _assign_pending(self) -> None:
        if not self._pending or time.monotonic() < self._retry_at:
            return
        wanted = sorted(self._pending)
        try:
            bounds = self._bounds(wanted)
            try:
                claims = self._claim(bounds)
            except PositionRefused as refusal:
                if not self._has_grown(refusal):
                    raise
                return  # its owner has read on since we asked for the end: ask again
        except ConnectionError as error:
            self._retry_at = time.monotonic() + CLAIM_RETRY_SECONDS
            log.warning("partitions wait to be claimed", extra={"group": self.group, "reason": str(error)})
            return
        first = {p: claims[p].next_offset for p in wanted}
        for p in wanted:
            if claims[p].append_ms is not None and first[p] > bounds[p].start:
                self._unproven[p] = claims[p]
                first[p] -= 1
        self._consumer.assign([KafkaPartition(p.topic, p.partition, first[p]) for p in wanted])
        self._pending -= set(wanted)
        for p in wanted:
            self._epochs[p] = claims[p].epoch

    def _proves(self, at: TopicPartition, message: Message) -> bool:
        """Whether this record was handled before: the one that the position stands behind.

        Raises `PositionRefused` where another one took its place: a log put back from before the position
        and written on since reaches beyond it again, and what was written below it would never be read.
        """
        claim = self._unproven.pop(at)
        if int(message.offset() or 0) >= claim.next_offset:
            return False  # (a transaction marker stands there, which is not handed out)
        if message.timestamp()[1] != claim.append_ms:
            raise PositionRefused(
                f"{self.group}: the record before position {claim.next_offset} of {at} is not the one that"
                f" was handled (appended at {message.timestamp()[1]} ms, was {claim.append_ms}): the log was"
                f" put back and written on; {REMEDY}"
            )
        return True

    def _has_grown(self, refusal: PositionRefused) -> bool:
        """Whether the log reaches the refused position by now."""
        if refusal.at is None or refusal.beyond is None:
            return False
        return self._bounds([refusal.at])[refusal.at].end >= refusal.beyond

    def _bounds(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, LogBounds]:
        wanted = list(partitions)
        try:
            ids = topic_ids(self._access, {p.topic for p in wanted})
            bounds = {}
            for p in wanted:
                start, end = self._consumer.get_watermark_offsets(
                    KafkaPartition(p.topic, p.partition), timeout=10
                )
                bounds[p] = LogBounds(ids[p.topic], start, end)
            return bounds
        except KafkaException as error:
            raise ConnectionError(f"the broker does not answer: {error}") from error

    def _join_anew(self) -> None:
        """Go on after the broker has fenced this member. Raises `Fenced` where it has a twin.

        librdkafka fences itself: away for longer than a session, it joins as a new member, and its own
        heartbeat or commit under the old member's id comes after that (librdkafka#3437). A twin that is
        fenced by us in turn joins anew as well; the one that is fenced twice gives way.
        """
        now = time.monotonic()
        if self._fenced_at is not None and now < self._fenced_at + TWIN_SECONDS:
            raise Fenced(f"{self.group}: another process took this member's identity")
        self._fenced_at = now
        log.warning("fenced by the broker; joining the group anew", extra={"group": self.group})
        self._epochs.clear()
        self._pending.clear()
        self._unproven.clear()
        self.close()
        self._consumer = self._join()

    def _refuse(self, message: Message, error: KafkaError) -> None:
        code = error.code()
        # A fatal error comes under a code of its own, with only its text to say which one it is.
        if code == KafkaError._FATAL and "fenced" in error.str():
            self._join_anew()
            return
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise PositionRefused(
                f"{self.group}: position of {message.topic()}/{message.partition()} lies outside the log"
                f" ({error.str()}); compare topic and database (`millrace doctor`), restore the wrong one"
            )
        lasting = (KafkaError._FATAL, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
        if error.fatal() or code in lasting:
            raise KafkaException(error)
        log.warning("the consumer reports", extra={"group": self.group, "reason": error.str()})


def topic_ids(access: KafkaAccess, names: Iterable[str]) -> dict[str, str]:
    """Each topic's id at the broker. Raises KafkaException where one is unknown."""
    wanted = list(names)
    client = admin(access)  # held: answers are lost with a client that nobody holds
    described = client.describe_topics(TopicCollection(wanted), request_timeout=ADMIN_SECONDS)
    return {name: str(future.result(timeout=ADMIN_SECONDS).topic_id) for name, future in described.items()}
