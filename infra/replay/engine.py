"""Runs the stages of a replay: reads each partition from its position up to a limit, without any consumer
group, throttled, and never ahead of what live traffic has settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from infra.broker import LIBRDKAFKA, PartitionBatch, admin, topic_ids
from infra.checkpoints import Claim, LogBounds, PositionRefused, TopicPartition
from infra.codec import RegistryUnavailable
from infra.kafka_access import KafkaAccess
from infra.settings import Settings
from infra.topic_log import ends, partitions, starts
from schemas.declare import Topic
from schemas.grants import LOG_READER

POLL_SECONDS = 0.05
CHECKPOINT_SECONDS = 1.0
LOOK_SECONDS = 0.5
LIVE_LAG_S = 1.5
"""While live traffic waits for longer than this, the replay stands still."""
RETRY_SECONDS = 1.0


class Stage(Protocol):
    """A consumer of a replay: a processor or the sink. Positions and state lie in the run's schema."""

    name: str
    topics: tuple[Topic, ...]
    batch_records: int

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> Mapping[TopicPartition, Claim]:
        """Take partitions at their positions. Raises `ConnectionError` where waiting helps."""
        ...

    def process(self, batches: list[PartitionBatch]) -> None:
        """Take batches to their effect or, with a later `checkpoint`, towards it. Raises as `claim` does,
        and then has taken none of them."""
        ...

    def checkpoint(self) -> None:
        """Commit what was processed. Raises as `claim` does."""
        ...

    def close(self) -> None: ...


class LogReader:
    """Reads partitions from where a claim says, up to a limit that may rise."""

    def __init__(self, access: KafkaAccess, claims: Mapping[TopicPartition, Claim]) -> None:
        self._consumer = Consumer(
            {
                **access.config(),
                "group.id": LOG_READER,  # required, but no group is joined and nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 16_384,
            },
            logger=LIBRDKAFKA,
        )
        self._epochs = {at: claim.epoch for at, claim in claims.items()}
        self.positions = {at: claim.next_offset for at, claim in claims.items()}
        self._limits: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._consumer.assign(
            [KafkaPartition(at.topic, at.partition, c.next_offset) for at, c in claims.items()]
        )

    def limit(self, limits: Mapping[TopicPartition, int]) -> None:
        """Read these partitions up to, and without, these offsets; others to their ends."""
        self._limits = {at: offset for at, offset in limits.items() if at in self.positions}
        for at in self.positions:
            self._pause_if(at)

    def poll(self, max_records: int) -> list[PartitionBatch]:
        """The next records, by partition. Raises `KafkaException`, `PositionRefused`."""
        messages = self._consumer.consume(max_records, POLL_SECONDS)
        batches: dict[TopicPartition, PartitionBatch] = {}
        touched = set()
        batch: PartitionBatch | None = None
        before: tuple[str | None, int | None] = (None, None)
        for message in messages:
            # Records come in stretches of one partition, and looking its batch up costs more than the rest.
            if (place := (message.topic(), message.partition())) != before:
                before = place
                at = TopicPartition(str(place[0]), int(place[1] or 0))
                touched.add(at)
                batch, limit = batches.get(at), self._limits.get(at)
            error, offset = message.error(), int(message.offset() or 0)
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise PositionRefused(
                        f"the records that the replay had still to read in {at} are gone: their topic's"
                        " retention has passed; abort the replay and begin a new one"
                    )
                raise KafkaException(error)
            if at in self._paused or offset < self.positions[at] or (limit is not None and offset > limit):
                continue  # it was on its way already when the partition was paused or sought anew
            if error is None and limit is not None and offset >= limit:
                self.positions[at] = limit
                continue
            if batch is None:
                batch = batches[at] = PartitionBatch(at, self._epochs[at], [], self.positions[at])
            if error is None:
                batch.messages.append(message)
                batch.next_offset = offset + 1
            else:
                batch.next_offset = max(batch.next_offset, offset)
            self.positions[at] = batch.next_offset
        for at in touched:
            self._pause_if(at)
        return [b for b in batches.values() if b.messages]

    def rewind(self, batches: Iterable[PartitionBatch]) -> None:
        """Hand these batches, which took no effect, out again."""
        for batch in batches:
            first = int(batch.messages[0].offset() or 0)
            self.positions[batch.at] = first
            self._consumer.seek(KafkaPartition(batch.at.topic, batch.at.partition, first))
            self._pause_if(batch.at)

    def close(self) -> None:
        self._consumer.close()

    def _pause_if(self, at: TopicPartition) -> None:
        """Pause a partition that has reached its limit; let it go on where the limit was raised."""
        reached = at in self._limits and self.positions[at] >= self._limits[at]
        there = [KafkaPartition(at.topic, at.partition)]
        if reached and at not in self._paused:
            self._consumer.pause(there)
            self._paused.add(at)
        elif not reached and at in self._paused:
            self._paused.discard(at)
            self._consumer.resume(there)
            # What was fetched beyond the limit was thrown away.
            self._consumer.seek(KafkaPartition(at.topic, at.partition, self.positions[at]))


class Throttle:
    """Lets at most `rate` records a second pass; None for no bound."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = 0.0
        self.most_at_once = 1 << 31 if rate is None else max(1, int(rate / 4))
        """Records to take in one go, so that the rate is even."""

    def passed(self, records: int) -> None:
        """Wait as long as these records take at the rate."""
        if self._rate is None or not records:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.5) + records / self._rate
        if self._free_at > now:
            time.sleep(self._free_at - now)


class Engine:
    """The stages of one run in one thread. `run_until` may be called again with farther limits."""

    def __init__(self, settings: Settings, stages: Sequence[Stage], rate: float | None) -> None:
        self._settings = settings
        self._stages = stages
        self._throttle = Throttle(rate)
        self._readers: list[LogReader] = []
        self._admin = admin(settings.kafka)
        self.sources: set[str] = set()
        """Names of the live topics; the stages' other topics are the run's own, read to their ends."""

    def open(self, sources: Iterable[Topic]) -> None:
        """Claim all partitions and begin to read at the stages' positions."""
        self.sources = {t.name for t in sources}
        for stage in self._stages:
            wanted = partitions(stage.topics)
            ids = topic_ids(self._settings.kafka, {at.topic for at in wanted})
            start, end = starts(self._admin, wanted), ends(self._admin, wanted)
            claims = stage.claim({at: LogBounds(ids[at.topic], start[at], end[at]) for at in wanted})
            self._readers.append(LogReader(self._settings.kafka, claims))

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        for stage in self._stages:
            stage.close()

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """How far the live topics have been read; of several readers, the one that is behind."""
        found: dict[TopicPartition, int] = {}
        for reader in self._readers:
            for at, position in reader.positions.items():
                if at.topic in self.sources:
                    found[at] = min(position, found.get(at, position))
        return found

    def run_until(
        self,
        limits: Callable[[], Mapping[TopicPartition, int]],
        each_look: Callable[[], float],
        *,
        patient: bool = True,
    ) -> None:
        """Work until everything below the limits has taken its effect in the run's tables.

        `each_look` is called about twice a second, before `limits` is asked again; it returns for how many
        seconds live traffic waits, and while that is too long nothing is read (if `patient`).
        """
        looked = checkpointed = 0.0
        lag_s = 0.0
        drained_ends: dict[TopicPartition, int] = {}
        while True:
            now = time.monotonic()
            if now - looked >= LOOK_SECONDS:
                looked = now
                lag_s = each_look()
                # Never beyond what is asked for: a partition of which nothing is said is left alone.
                wanted = self.positions | dict(limits())
                for reader in self._readers:
                    reader.limit(wanted)
            if patient and lag_s > LIVE_LAG_S:
                time.sleep(0.1)
                continue
            try:
                busy = self._step()
                if now - checkpointed >= CHECKPOINT_SECONDS or not busy:
                    checkpointed = now
                    for stage in self._stages:
                        stage.checkpoint()
            except (ConnectionError, RegistryUnavailable):
                time.sleep(RETRY_SECONDS)
                continue
            if busy:
                continue
            # Everything is committed and acknowledged: what the ends are now is all there will be.
            drained_ends = self._own_ends()
            if self._at(wanted) and self._read_to(drained_ends):
                return

    def _step(self) -> bool:
        busy = False
        for stage, reader in zip(self._stages, self._readers, strict=True):
            batches = reader.poll(min(stage.batch_records, self._throttle.most_at_once))
            if not batches:
                continue
            busy = True
            try:
                stage.process(batches)
            except (ConnectionError, RegistryUnavailable):
                reader.rewind(batches)
                raise
            self._throttle.passed(sum(len(b.messages) for b in batches if b.at.topic in self.sources))
        return busy

    def _own_ends(self) -> dict[TopicPartition, int]:
        own = {at for r in self._readers for at in r.positions if at.topic not in self.sources}
        return ends(self._admin, own) if own else {}

    def _at(self, limits: Mapping[TopicPartition, int]) -> bool:
        return all(position >= limits.get(at, 0) for at, position in self.positions.items())

    def _read_to(self, end: Mapping[TopicPartition, int]) -> bool:
        return all(
            position >= end[at] for r in self._readers for at, position in r.positions.items() if at in end
        )
