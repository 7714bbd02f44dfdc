"""One processor's work on batches: decode, decide, emit, checkpoint. No Faust, no event loop here.

The order that keeps the promise: outputs are acknowledged by the broker, then state and position are
committed together. A crash in between reads the same input again from the state before it, and since
decisions are pure, emits the same bytes, which whoever reads them drops by id.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import psycopg
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from infra import versions
from infra.broker import PartitionBatch
from infra.checkpoints import Checkpoints, Claim, Fenced, LogBounds, Move, TopicPartition
from infra.codec import Codec, schema_id_of
from infra.columns import Columns, events_of
from infra.dead_letter_limit import NEVER_PCT, DeadLetterLimit
from infra.dead_letters import envelope
from infra.postgres import DatabaseUrl
from infra.progress import Progress
from infra.telemetry.metrics import (
    BATCH_RECORDS,
    CHECKPOINT_SECONDS,
    DEAD_LETTERS,
    DUPLICATES,
    RECORDS_CONSUMED,
    RECORDS_PRODUCED,
)
from schemas.declare import Pipeline, Processor, Topic
from streams.compaction import CompactionFailed, Compactor
from streams.database import Database, Transient
from streams.decide import (
    ColumnRecords,
    Event,
    Logic,
    Outcomes,
    Record,
    decide_in_order,
    decide_together,
)
from streams.reading import Refusal, read
from streams.restore import restore

log = logging.getLogger(__name__)

VERSIONS_SECONDS = 1.0
"""How often a newer version of rules, fences or models is looked for."""
FLUSH_SECONDS = 30.0
SNAPSHOT_FLOOR_BYTES = 4 * 1024 * 1024
"""Deltas are folded into a new snapshot once they outgrow this and the snapshot before."""


class Segment(NamedTuple):
    """Consecutive records of a partition, and ticks among them, for which one set of versions is in force."""

    versions: dict[str, int]
    records: ColumnRecords
    ticks: list[Record]


@dataclass(slots=True)
class Prepared:
    """A batch decoded and cut where another version applies; not yet applied to the state."""

    batch: PartitionBatch
    segments: list[Segment]
    refused: list[Event]
    append_ms: int
    newest_ms: int
    """The newest event time among them; 0 without any."""


@dataclass(slots=True)
class _Owned:
    """A partition that this process owns."""

    epoch: int
    state: Any
    committed: int
    """Position as of the last checkpoint."""
    applied: int
    """Position that the state stands at."""
    activations: dict[str, versions.Activations]
    unanswered_from: int
    """Whoever had the partition before can have answered no record from here on."""
    unsaved: list[bytes] = field(default_factory=list)
    """Deltas of the state that no acknowledged commit holds."""
    attempted: tuple[int, int] | None = None
    """Position and number of deltas of a COMMIT whose answer never came: it may have gone through."""
    delta_bytes: int = 0
    snapshot_bytes: int = 0
    append_ms: int | None = None

    @property
    def overdue_bytes(self) -> int:
        """How far its deltas have outgrown its snapshot; above 0 another snapshot is due."""
        return self.delta_bytes - max(SNAPSHOT_FLOOR_BYTES, self.snapshot_bytes)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a checkpoint has of a partition, however it goes on meanwhile."""

    owned: _Owned
    position: int
    append_ms: int | None


@dataclass(frozen=True, slots=True)
class _Commit:
    """A checkpoint on its way to the database."""

    taken: Mapping[TopicPartition, _Taken]
    started: float
    written: Future[None]


def _together(work: Prepared) -> tuple[Any, ...]:
    """What batches have in common that are decided at once: topic, versions, and no tick in between."""
    at, segments = work.batch.at, work.segments
    if len(segments) == 1 and not segments[0].ticks:
        return at.topic, sorted(segments[0].versions.items())
    return at.topic, at.partition


@dataclass
class Runner:
    """The processor `processor` with its logic. `prepare`, `checkpoint`, `claim`, `release` may block;
    `apply` does not, beyond what the decision itself costs. Never called from two threads at once; commits
    have a thread of their own.
    """

    pipeline: Pipeline
    processor: Processor
    logic: Logic[Any]
    codec: Codec
    producer: Producer
    database_url: DatabaseUrl
    progress: Progress
    limit: DeadLetterLimit = field(default_factory=lambda: DeadLetterLimit("", NEVER_PCT))
    held_back: frozenset[str] = frozenset()
    """Outputs that are decided but not produced, by declared name: those of a replay that no table needs."""
    compactor: Compactor | None = None
    """Makes snapshots; without it the runner does, which holds up its records meanwhile."""
    _compacting: tuple[TopicPartition, int, int] | None = None
    """Partition, epoch and bytes of deltas of the snapshot that was asked for last."""
    _owned: dict[TopicPartition, _Owned] = field(default_factory=dict)
    _loaded: dict[tuple[str, int], Any] = field(default_factory=dict)
    _latest: dict[str, int] = field(default_factory=dict)
    _latest_at: float = 0.0
    _failed: KafkaError | None = None
    _commit: _Commit | None = None
    """The checkpoint that was begun and not ended."""
    _sent: Counter[str] = field(default_factory=Counter)
    """Records of each topic that were produced since the last checkpoint."""
    _committer: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="commit")
    )

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.processor.name)
        self._database = Database(self.database_url, self.processor.name)
        self._committing_to = Database(self.database_url, self.processor.name)
        self._topics = {t.name: t for t in self.processor.sources}
        self._outputs = {t.origin: t for t in self.processor.outputs}
        self._columns = {
            t.name: Columns(self.codec, t)
            for t in (
                *self.processor.sources,
                *self.processor.outputs,
                *(s.dlq for s in self.processor.sources),
            )
        }
        self._produced = {
            t.name: RECORDS_PRODUCED.labels(self.processor.name, t.name)
            for t in (*self.processor.outputs, *(s.dlq for s in self.processor.sources))
        }

    # Taking and giving up partitions

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> dict[TopicPartition, Claim]:
        """Take partitions: raise epochs, restore state. Raises `Transient`, `PositionRefused`."""
        kinds = self.logic.version_kinds
        if self._commit is not None:
            # It would find itself fenced where a partition was lost and comes back.
            wait([self._commit.written])
        with self._database.connection() as connection:
            claims = self.checkpoints.claim(connection, logs)
            # Nobody else can write the state any more: it may be read outside that transaction.
            for at, claim in claims.items():
                started = time.monotonic()
                state = self.logic.new_state()
                size = restore(state, self.checkpoints.read_state(connection, at))
                self._owned[at] = _Owned(
                    epoch=claim.epoch,
                    state=state,
                    committed=claim.next_offset,
                    applied=claim.next_offset,
                    activations=versions.read_activations(connection, self.processor.name, at, kinds),
                    unanswered_from=claim.next_offset if claim.epoch == 1 else logs[at].end,
                    snapshot_bytes=size,
                )
                self.progress.taken(at, claim.next_offset)
                log.info(
                    "partition taken",
                    extra={
                        "consumer": self.processor.name,
                        "topic": at.topic,
                        "partition": at.partition,
                        "offset": claim.next_offset,
                        "epoch": claim.epoch,
                        "state_bytes": size,
                        "seconds": round(time.monotonic() - started, 3),
                    },
                )
        return claims

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Give partitions up, after a checkpoint if one can be had; nothing of them is kept."""
        going = list(partitions)
        try:
            self.checkpoint()
        finally:
            for at in going:
                self._owned.pop(at, None)
                self.progress.given_up(at)

    def give_up_for_swap(self) -> bool:
        """Where a swap holds this processor: commit everything and give all partitions up, for it to see.

        The same partitions are then claimed anew, which waits until the hold is over and takes the state
        that the swap has left. Raises `Transient` (nothing was given up), `Fenced`.
        """
        if not self._owned:
            return False
        with self._database.connection() as connection:
            run_id = self.checkpoints.held_by(connection)
        if run_id is None:
            return False
        self.checkpoint()
        with self._database.connection() as connection:
            epochs = {at: owned.epoch for at, owned in self._owned.items()}
            self.checkpoints.give_up(connection, epochs, run_id)
        log.info("given up for a swap", extra={"consumer": self.processor.name, "run_id": run_id})
        for at in list(self._owned):
            del self._owned[at]
            self.progress.given_up(at)
        return True

    def forget_lost(self, assigned: Mapping[TopicPartition, int]) -> None:
        """Drop what is no longer assigned (lost without a revocation): it may not be committed any more."""
        for at in [p for p in self._owned if p not in assigned]:
            del self._owned[at]
            self.progress.given_up(at)

    # A batch

    def prepare(self, batches: Iterable[PartitionBatch]) -> list[Prepared]:
        """Decode the batches and write down from where newer versions apply.

        Raises `Transient` (nothing was applied; give the batches again later) or `Fenced`.
        """
        prepared = []
        for name, of_topic in groupby(filter(self._is_news, batches), lambda batch: batch.at.topic):
            topic, news = self._topics[name], list(of_topic)
            is_input = topic in self.pipeline.inputs
            found = read(news, topic, self._columns[name], is_input=is_input)
            for batch, of_batch in zip(news, found, strict=True):
                append_ms = batch.messages[-1].timestamp()[1] if batch.messages else 0
                segments = self._cut(batch.at, self._owned[batch.at], of_batch.records, of_batch.ticks)
                refused = [self._letter(batch.messages[r.number], topic, r) for r in of_batch.refused]
                prepared.append(Prepared(batch, segments, refused, append_ms, of_batch.newest_ms))
        return prepared

    def _is_news(self, batch: PartitionBatch) -> bool:
        """Whether a batch is of a partition as we own it, and moves its position."""
        owned = self._owned.get(batch.at)
        # At a partition's end the broker tells where that is, again and again.
        return owned is not None and batch.epoch == owned.epoch and batch.next_offset > owned.applied

    def apply(self, prepared: Iterable[Prepared]) -> None:
        """Fold prepared batches into the state and produce what is emitted, without waiting for the broker.

        An exception is a defect (or `OverLimit`): the state is then in between, and the process must end
        without a checkpoint. Nothing of the batches that raised it was produced.
        """
        for _, works in groupby(filter(self._is_current, prepared), _together):
            self._apply(list(works))
        self.producer.poll(0)

    def _is_current(self, work: Prepared) -> bool:
        owned = self._owned.get(work.batch.at)
        return owned is not None and owned.epoch == work.batch.epoch

    def _apply(self, works: Sequence[Prepared]) -> None:
        source = self._topics[works[0].batch.at.topic]
        out = Outcomes(encode=self._encode, decode=self._decode)
        for segments in zip(*(work.segments for work in works), strict=True):
            in_force, _, ticks = segments[0]
            usable = {kind: self._loaded[(kind, v)] for kind, v in in_force.items() if v}
            states = [self._owned[work.batch.at].state for work in works]
            if ticks:
                decide_in_order(self.logic, states[0], segments[0].records, ticks, usable, out)
            else:
                records = (segment.records for segment in segments)
                decide_together(self.logic, list(zip(states, records, strict=True)), usable, out)
        letters = [letter for work in works for letter in work.refused]
        messages = (
            {(w.batch.at.partition, m.offset()): m for w in works for m in w.batch.messages}
            if out.dead
            else {}
        )
        for record, error_class, field_name, reason in out.dead:
            message = messages[record.partition, record.offset]
            schema_id = schema_id_of(message.value() or b"")
            refusal = Refusal(0, error_class, reason, field_name, schema_id, record.event)
            letters.append(self._letter(message, source, refusal))
        read_total = sum(len(work.batch.messages) for work in works)
        self.limit.check(read_total, len(letters))
        self.limit.count(read_total, len(letters))
        # All of it is encoded before any of it is produced: an answer that does not fit is a defect.
        for topic, keys, values in self._results(out, source, letters):
            self._produce(topic, keys, values)
        labels = (self.processor.name, source.name)
        for work in works:
            owned = self._owned[work.batch.at]
            owned.applied = work.batch.next_offset
            owned.append_ms = work.append_ms or owned.append_ms
            self.progress.reached(work.batch.at, work.newest_ms)
            BATCH_RECORDS.labels(*labels).observe(len(work.batch.messages))
        RECORDS_CONSUMED.labels(*labels).inc(read_total)
        DUPLICATES.labels(*labels).inc(out.duplicates_total)
        DEAD_LETTERS.labels(*labels).inc(len(letters))

    # The checkpoint

    @property
    def dirty(self) -> bool:
        """Whether something was applied that is not committed."""
        return any(o.applied != o.committed for o in self._owned.values())

    def checkpoint(self) -> dict[TopicPartition, int]:
        """Commit everything that was applied, and wait until it is; returns the positions that moved.

        Raises `Transient` (call it again later), `Fenced`, or KafkaException where an output was refused.
        """
        with suppress(Transient):  # what it held is held by the next one
            self.end_checkpoint()
        self.begin_checkpoint()
        return self.end_checkpoint()

    @property
    def checkpointing(self) -> bool:
        """Whether a checkpoint was begun and not ended."""
        return self._commit is not None

    @property
    def committed(self) -> bool:
        """Whether `end_checkpoint` would not wait for the checkpoint that was begun."""
        return self._commit is not None and self._commit.written.done()

    def begin_checkpoint(self) -> None:
        """Wait for the outputs; take positions and what changed in the states, and let a thread commit them.

        Records may be applied meanwhile: they belong to the next one. Call it when the one before has ended.
        Raises as `checkpoint`.
        """
        moved = {at: o for at, o in self._owned.items() if o.applied != o.committed}
        if not moved:
            return
        started = time.monotonic()
        waiting = self.producer.flush(FLUSH_SECONDS)
        if self._failed is not None:
            raise KafkaException(self._failed)
        if waiting:
            raise Transient(f"{waiting} outputs are not acknowledged yet")
        for name, records_total in self._sent.items():
            self._produced[name].inc(records_total)
        self._sent.clear()
        # From one moment, between two batches: a state of later records must not go with these positions.
        taken = {at: _Taken(owned, owned.applied, owned.append_ms) for at, owned in moved.items()}
        for owned in moved.values():
            delta = owned.state.delta()
            if delta is not None:
                owned.unsaved.append(delta)
                owned.delta_bytes += len(delta)
        snapshot = self._due_snapshot(moved) if self.compactor is None else None
        self._commit = _Commit(taken, started, self._committer.submit(self._write, taken, snapshot))

    def end_checkpoint(self) -> dict[TopicPartition, int]:
        """Wait for the checkpoint that was begun; returns the positions that moved, none without one.

        Raises `Transient` (the next one holds it, too), `Fenced`.
        """
        commit, self._commit = self._commit, None
        if commit is None:
            return {}
        ours = {at: taken for at, taken in commit.taken.items() if self._owned.get(at) is taken.owned}
        try:
            commit.written.result()
        except Fenced as fenced:
            if len(ours) == len(commit.taken):
                raise
            # Of a partition that was lost meanwhile; the others are still ours, and in the next one.
            log.warning("committed too late", extra={"consumer": self.processor.name, "reason": str(fenced)})
            return {}
        for at, taken in ours.items():
            self.progress.moved(at, taken.position, taken.append_ms)
        if self.compactor is not None:
            self._compact()
        CHECKPOINT_SECONDS.labels(self.processor.name, self.processor.sources[0].name).observe(
            time.monotonic() - commit.started
        )
        return {at: taken.position for at, taken in ours.items()}

    def close(self) -> None:
        self._committer.shutdown()
        if self.compactor is not None:
            self.compactor.close()
        self._database.close()
        self._committing_to.close()

    def _write(
        self, taken: Mapping[TopicPartition, _Taken], snapshot: tuple[TopicPartition, list[bytes]] | None
    ) -> None:
        """Commit what was taken. Until done, `committed`, `unsaved`, `attempted` are this thread's alone."""
        with (
            self._committing_to.connection() as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            current = self.checkpoints.lock(cursor, {at: one.owned.epoch for at, one in taken.items()})
            for at, one in taken.items():
                self._settle(one.owned, current[at])
            left = {at: one for at, one in taken.items() if one.position != one.owned.committed}
            moves = [
                Move(at, one.owned.epoch, one.owned.committed, one.position, one.append_ms)
                for at, one in left.items()
            ]
            self.checkpoints.advance(cursor, moves)
            self._write_state(cursor, left, snapshot)
        for one in taken.values():
            self._settle(one.owned, one.position)

    @staticmethod
    def _settle(owned: _Owned, position: int) -> None:
        """Take note that the database stands at `position`: of a commit whose answer was lost, or of ours."""
        if owned.attempted is not None and owned.attempted[0] == position:
            owned.committed = position
            del owned.unsaved[: owned.attempted[1]]
        owned.attempted = None

    def _write_state(
        self,
        cursor: psycopg.Cursor[Any],
        left: Mapping[TopicPartition, _Taken],
        snapshot: tuple[TopicPartition, list[bytes]] | None,
    ) -> None:
        changes: dict[TopicPartition, tuple[int, Sequence[bytes]]] = {}
        for at, one in left.items():
            if one.owned.unsaved:
                changes[at] = (one.position, one.owned.unsaved)
            one.owned.attempted = (one.position, len(one.owned.unsaved))
        if snapshot is not None and snapshot[0] in left:
            due, chunks = snapshot
            self.checkpoints.write_snapshot(cursor, due, left[due].position, chunks)
            left[due].owned.snapshot_bytes, left[due].owned.delta_bytes = sum(map(len, chunks)), 0
            changes.pop(due, None)
        self.checkpoints.write_deltas(cursor, changes)

    def _due_snapshot(
        self, moved: Mapping[TopicPartition, _Owned]
    ) -> tuple[TopicPartition, list[bytes]] | None:
        """A snapshot of the partition whose deltas have outgrown its last one the most, where any have.

        One at a time: partitions grow alike, and all their snapshots together would hold up every record.
        """
        due = max(moved, key=lambda at: moved[at].overdue_bytes)
        return (due, list(moved[due].state.snapshot())) if moved[due].overdue_bytes > 0 else None

    def _compact(self) -> None:
        """Have a snapshot made of the partition whose deltas have outgrown its last one the most."""
        assert self.compactor is not None
        try:
            size = self.compactor.answer()
        except CompactionFailed as failed:
            log.warning("no snapshot", extra={"consumer": self.processor.name, "reason": str(failed)})
            size = None
        if size is not None and self._compacting is not None:
            at, epoch, delta_bytes = self._compacting
            owned = self._owned.get(at)
            if owned is not None and owned.epoch == epoch:
                owned.snapshot_bytes = size
                owned.delta_bytes -= delta_bytes
        if not self._owned or not self.compactor.free:
            return
        due = max(self._owned, key=lambda at: self._owned[at].overdue_bytes)
        owned = self._owned[due]
        if owned.overdue_bytes > 0:
            self._compacting = (due, owned.epoch, owned.delta_bytes)
            self.compactor.ask(due)

    # Answers

    def _letter(self, message: Message, topic: Topic, refusal: Refusal) -> Event:
        return envelope(
            self.pipeline.name,
            self.processor.name,
            message,
            topic,
            refusal.error_class,
            refusal.reason,
            field=refusal.field,
            schema_id=refusal.schema_id,
            event=refusal.event,
        )

    def _encode(self, topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
        return self._columns[self._outputs[topic.name].name].encode(batch)

    def _decode(self, topic: Topic, values: Sequence[bytes]) -> list[Event]:
        return events_of(self._columns[self._outputs[topic.name].name].decode(values).batch)

    def _results(
        self, out: Outcomes, source: Topic, letters: Sequence[Event]
    ) -> list[tuple[Topic, Sequence[bytes], Sequence[bytes]]]:
        """Everything to produce, by topic; within a topic in the order of the log."""
        events: dict[str, list[Event]] = {}
        for topic, event in out.emitted:
            if topic.name not in self.held_back:
                events.setdefault(topic.name, []).append(event)
        found = [
            (self._outputs[topic.name], keys, values)
            for topic, keys, values in out.encoded
            if topic.name not in self.held_back
        ]
        for topic, of_topic in (
            *((self._outputs[name], of_topic) for name, of_topic in events.items()),
            *([(source.dlq, letters)] if letters else []),
        ):
            keys = [str(event[topic.key]).encode() for event in of_topic]
            found.append((topic, keys, self._columns[topic.name].encode_events(of_topic)))
        return found

    # Versions

    def _cut(
        self, at: TopicPartition, owned: _Owned, records: ColumnRecords, ticks: list[Record]
    ) -> list[Segment]:
        """The records and ticks in stretches for which one set of versions is in force."""
        places = [*records.offsets[:1].tolist(), *records.offsets[-1:].tolist(), *(t.offset for t in ticks)]
        if not places:
            return []
        kinds = self.logic.version_kinds
        if not kinds:
            return [Segment({}, records, ticks)]
        first, last = min(places), max(places)
        self._apply_newer(at, owned, first, last)
        borders = sorted({b for a in owned.activations.values() for b in a.boundaries(first, last)})
        segments = []
        start = 0
        for border in [*borders, last + 1]:
            end = int(np.searchsorted(records.offsets, border))
            here = [t for t in ticks if first <= t.offset < border]
            if end > start or here:
                in_force = {kind: owned.activations[kind].at(first) for kind in kinds}
                for kind, version in in_force.items():
                    self._load(kind, version)
                segments.append(Segment(in_force, records.slice(start, end), here))
            start, first = end, border
        return segments

    def _apply_newer(self, at: TopicPartition, owned: _Owned, first: int, last: int) -> None:
        """Let newer versions begin with these records, or with the first of them that they may begin with."""
        kinds = self.logic.version_kinds
        # A predecessor that died may have sent answers beyond its last checkpoint. They stand, so the same
        # records must be answered by the same versions again, however new the newest are by now.
        begin = max(first, owned.unanswered_from)
        if begin > last:
            return
        now = time.monotonic()
        if not self._latest or now - self._latest_at > VERSIONS_SECONDS:
            with self._database.connection() as connection:
                self._latest = versions.latest(connection, self.pipeline.name, kinds)
            self._latest_at = now
        new = {}
        for kind, version in self._latest.items():
            activations = owned.activations[kind]
            # What was written down for later offsets (before a crash) is history already: follow it.
            newest = activations.versions[-1] if activations.versions else versions.NONE_PUBLISHED
            if version > newest and (not activations.offsets or activations.offsets[-1] < first):
                new[kind] = version
        if not new:
            return
        for kind, version in new.items():
            self._load(kind, version)  # a version that cannot be loaded must not be written down
        with self._database.connection() as connection:
            versions.activate(connection, self.checkpoints, at, owned.epoch, begin, new)
        for kind, version in new.items():
            owned.activations[kind].add(begin, version)
        log.info(
            "versions apply",
            extra={
                "consumer": self.processor.name,
                "topic": at.topic,
                "partition": at.partition,
                "offset": begin,
                "versions": new,
            },
        )

    def _load(self, kind: str, version: int) -> None:
        if version and (kind, version) not in self._loaded:
            with self._database.connection() as connection:
                body = versions.body(connection, self.pipeline.name, kind, version)
            self._loaded[(kind, version)] = self.logic.load_version(kind, version, body)

    # Broker and database

    def _produce(self, topic: Topic, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        produce, name, failed = self.producer.produce, topic.name, self._delivery_failed
        for key, value in zip(keys, values, strict=True):
            while True:
                try:
                    produce(name, value, key, on_delivery=failed)
                    break
                except BufferError:
                    self.producer.poll(0.05)
        self._sent[topic.name] += len(values)

    def _delivery_failed(self, error: KafkaError | None, _: Message) -> None:
        # Called for failures alone (delivery.report.only.error).
        if error is not None:
            self._failed = error
