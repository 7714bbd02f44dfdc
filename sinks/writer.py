"""One batch to one database transaction: rows, dead letters, range records and positions, or nothing.

Rows go in by binary COPY. A first-wins table is copied into directly; only after a unique violation are
the rows staged and merged. The other tables are always staged and merged by their declared rule, after a
merge within the batch, as one ON CONFLICT statement may not touch a row twice.

A record that the database refuses becomes a dead letter and its neighbours land: the row that COPY names
is taken out, and where none is named the batch is bisected.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from psycopg import sql

from infra import dead_letters
from infra.broker import PartitionBatch
from infra.checkpoints import Checkpoints, Claim, LogBounds, Move, TopicPartition
from infra.codec import Codec, IsTick, schema_id_of
from infra.columns import Columns, events_of
from infra.dead_letter_limit import NEVER_PCT, DeadLetterLimit
from infra.ledger.chain import ChainHead
from infra.postgres import Connection, DatabaseUrl, Failure, classify, connect
from infra.progress import Progress
from infra.telemetry.metrics import (
    BATCH_RECORDS,
    BATCH_SECONDS,
    DEAD_LETTERS,
    DUPLICATES,
    ONE_BY_ONE,
    RECORDS_CONSUMED,
    ROWS_WRITTEN,
)
from schemas.declare import Merge, Pipeline, Table, Topic
from sinks.blocks import Block, Layout, layout_of
from sinks.chains import Chained, ChainMoved, Linking, framed
from sinks.outbox import Outbox, batch_of
from sinks.rows import Event, Row, RowMapping, from_ms

log = logging.getLogger(__name__)

SOURCE_COLUMNS = ("source_partition", "source_offset")
FLUSH_SECONDS = 30.0
_COPY_LINE = re.compile(r"COPY \S+, line (\d+)")

Cursor = psycopg.Cursor[Any]


class Transient(ConnectionError):
    """Broker or database cannot now; nothing was committed, the same batches may be tried again."""


_RANGE_RECORDS = (
    "INSERT INTO range_records (consumer, topic, partition, from_offset, to_offset,"
    " records_total, dead_total, duplicates_total, ids_hash, epoch)"
    " SELECT %s, * FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[],"
    " %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
)


class _Refused(Exception):
    """The database refuses rows. `row` is the place in the COPY, where it is known."""

    def __init__(self, reason: str, column: str | None, row: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.column = column
        self.row = row


@dataclass(slots=True)
class _Item:
    """A record on its way into the tables."""

    at: TopicPartition
    message: Message
    topic: Topic
    schema_id: int
    event: Event
    rows: list[tuple[int, Row]]


@dataclass(slots=True)
class _Target:
    """A table with what COPY and merge need to know of it."""

    table: Table
    types: list[int]
    counts: bool
    """Whether its left-out rows are counted as duplicates: where input ids are found again."""
    time: int | None
    """Place of the column that decides a row's partition."""
    width_s: float | None
    """Seconds of one native partition; None for a plain table or a hypertable."""
    copy: sql.Composed
    stage: sql.Composed
    copy_stage: sql.Composed
    merge: sql.Composed
    layout: Layout | None
    """How blocks are copied into it; None where rows are."""
    chain: Chained | None = None
    """How rows get into its chain; None where it has none, or a replay writes."""
    partitions: set[float] = field(default_factory=set)


@dataclass(slots=True)
class Written:
    """What one call of `write` committed."""

    positions: dict[TopicPartition, int]
    records: int
    dead: int
    """All that were refused, by the database (`refused`) or before it was asked."""
    duplicates: int
    refused: int = 0


def id_hash(event_id: str) -> int:
    """A 64-bit hash of an event id, the same on every machine; range records sum them."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")


class Writer:
    """The sink of one pipeline. Used from one thread; every call may block on the database."""

    def __init__(
        self,
        pipeline: Pipeline,
        mappings: Sequence[RowMapping],
        codec: Codec,
        producer: Producer,
        database_url: DatabaseUrl,
        progress: Progress,
        limit: DeadLetterLimit | None = None,
        *,
        replaying: bool = False,
        outbox: Outbox | None = None,
    ) -> None:
        """With `replaying`, a row's `source_offset` is -1 - offset: its topic is the replay's own.

        `outbox` is told of new rows; a replay of any kind has none.
        """
        self._replaying = replaying
        self._outbox = outbox
        self.pipeline = pipeline
        self.name = pipeline.sink_name
        self.checkpoints = Checkpoints(self.name)
        self._mappings = {m.table.name: m for m in mappings}
        missing = [t.name for t in pipeline.tables if t.name not in self._mappings]
        if missing:
            raise LookupError(
                f"sinks/{pipeline.name}.py: ROWS has no mapping for table {missing[0]}; add one"
            )
        self._topics: dict[str, Topic] = {t.name: t for t in pipeline.sink_topics}
        self._letters: dict[str, Topic] = {t.dlq.name: t.dlq for t in pipeline.topics}
        self._codec = codec
        self._columns = {t.name: Columns(codec, t) for t in (*self._topics.values(), *self._letters.values())}
        self._producer = producer
        self._database_url = database_url
        self._progress = progress
        self._limit = limit or DeadLetterLimit(pipeline.sink_name, NEVER_PCT)
        self._connection: Connection | None = None
        self._targets: list[_Target] = []
        self._epochs: dict[TopicPartition, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._failed: KafkaError | None = None
        self._linking: Linking | None = None

    @property
    def topics(self) -> list[str]:
        """What the sink reads: result topics, and the dead letters of all the pipeline's topics."""
        return [*self._topics, *self._letters]

    # Partitions

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> dict[TopicPartition, Claim]:
        """Take partitions by raising their epochs. Raises `Transient`, `PositionRefused`."""
        with self._database() as connection:
            claims = self.checkpoints.claim(connection, logs)
        for at, claim in claims.items():
            self._epochs[at] = claim.epoch
            self._positions[at] = claim.next_offset
            self._progress.taken(at, claim.next_offset)
        return claims

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Give partitions up; what was written is committed already."""
        for at in partitions:
            self._epochs.pop(at, None)
            self._progress.given_up(at)

    def forget_lost(self, assigned: Mapping[TopicPartition, int]) -> None:
        """Drop what is no longer assigned without having been revoked."""
        self.release([at for at in self._epochs if at not in assigned])

    # A batch

    def write(self, batches: Sequence[PartitionBatch]) -> Written:
        """Commit these batches in one transaction. Raises `Transient`, `Fenced`, or what is not listed."""
        started = time.monotonic()
        # At a partition's end the broker tells its end offset: no news, unless it lies beyond our position.
        batches = [
            b
            for b in batches
            if self._epochs.get(b.at) == b.epoch and (b.messages or b.next_offset > self._positions[b.at])
        ]
        if not batches:
            return Written({}, 0, 0, 0)
        blocks: list[Block] = []
        letters: list[Event] = []
        own: list[Event] = []
        for batch in batches:
            self._read(batch, blocks, letters, own)
        # A topic goes by column or row by row as a whole: of two rows with one key the first stays first.
        torn = {block.topic.name for block in blocks if not block.columns}
        items: list[_Item] = []
        for block in blocks:
            if block.topic.name in torn:
                self._itemize(block, items, own)
        blocks = [block for block in blocks if block.topic.name not in torn]
        with self._database() as connection:
            if not self._targets:
                self._targets = [
                    _target(
                        connection,
                        t,
                        counts=t.name in {e.table for e in self.pipeline.evidence},
                        chained=t.chained and not self._replaying,
                    )
                    for t in self.pipeline.tables
                ]
                self._prepare_staging(connection)
            self._ensure_partitions(connection, items, blocks)
            with connection.transaction(), connection.cursor() as cursor:
                written = self._commit(connection, cursor, batches, items, blocks, letters, own)
        self._limit.count(written.records + written.dead - written.refused, written.dead)
        self._positions.update(written.positions)
        for at, position in written.positions.items():
            last = next(b for b in batches if b.at == at)
            append_ms = last.messages[-1].timestamp()[1] if last.messages else None
            self._progress.moved(at, position, append_ms)
            labels = (self.name, at.topic)
            RECORDS_CONSUMED.labels(*labels).inc(len(last.messages))
            BATCH_RECORDS.labels(*labels).observe(len(last.messages))
            BATCH_SECONDS.labels(*labels).observe(time.monotonic() - started)
        return written

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(
        self,
        batch: PartitionBatch,
        blocks: list[Block],
        letters: list[Event],
        own: list[Event],
    ) -> None:
        """Decode a batch into rows to store, dead letters to store, and dead letters of this sink's own.

        A block without columns is to be made row by row.
        """
        is_letter = batch.at.topic in self._letters
        topic = self._letters[batch.at.topic] if is_letter else self._topics[batch.at.topic]
        decoded = self._columns[topic.name].decode([m.value() for m in batch.messages])
        for n, error in decoded.others:
            if isinstance(error, IsTick):
                continue  # on a topic that a processor reads as well; no row tells of it
            message = batch.messages[n]
            letter = self._letter(message, topic, "undecodable", error.reason, None, error.schema_id)
            # Somebody's bytes on a dead letter topic are kept, but do not breed letters of letters.
            (letters if is_letter else own).append(letter)
        if is_letter:
            letters += events_of(decoded.batch)
            return
        offsets = np.array([batch.messages[n].offset() for n in decoded.rows.tolist()], dtype=np.int64)
        block = Block(batch.at, topic, batch.messages, decoded.rows, offsets, decoded.batch, {})
        if not len(block):
            return
        mappings = self._mappings_of(topic)
        try:
            by_column = {i: m.columns(decoded.batch) for i, m in mappings.items() if m.columns is not None}
        except (ValueError, ArithmeticError, pa.ArrowException):
            by_column = {}  # one row is at fault: which one, making them one by one will tell
        if len(by_column) < len(mappings):
            by_column = {}
        places = {
            "source_partition": np.full(len(block), batch.at.partition),
            "source_offset": -1 - offsets if self._replaying else offsets,
        }
        blocks.append(replace(block, columns={i: {**c, **places} for i, c in by_column.items()}))

    def _mappings_of(self, topic: Topic) -> dict[int, RowMapping]:
        """The mappings of the tables that a topic feeds, by the table's place in the pipeline."""
        tables = enumerate(self.pipeline.tables)
        return {i: self._mappings[t.name] for i, t in tables if t.topic.name == topic.name}

    def _itemize(self, block: Block, items: list[_Item], own: list[Event]) -> None:
        """Make a block's rows one by one."""
        topic = block.topic
        # Rows that need a multiple of the time shall not do so unseen.
        ONE_BY_ONE.labels(self.name, topic.name).inc(len(block))
        mappings = self._mappings_of(topic)
        places = zip(block.numbers.tolist(), block.offsets.tolist(), events_of(block.events), strict=True)
        for n, offset, event in places:
            message = block.messages[n]
            schema_id = schema_id_of(message.value() or b"")
            source = (block.at.partition, -1 - offset if self._replaying else offset)
            try:
                rows = [(i, (*row, *source)) for i, m in mappings.items() for row in m.rows(event)]
            except (ValueError, OverflowError, TypeError, LookupError) as error:
                reason = f"no row can be made of it ({type(error).__name__}: {error})"
                own.append(self._letter(message, topic, "invalid", reason, event, schema_id))
                continue
            items.append(_Item(block.at, message, topic, schema_id, event, rows))

    def _commit(
        self,
        connection: Connection,
        cursor: Cursor,
        batches: Sequence[PartitionBatch],
        items: list[_Item],
        blocks: list[Block],
        letters: list[Event],
        own: list[Event],
    ) -> Written:
        current = self.checkpoints.lock(cursor, {b.at: b.epoch for b in batches})
        # What a commit with a lost answer stored already is left out, and only that.
        behind = {b.at: b for b in batches if b.next_offset > current[b.at]}
        items = [i for i in items if i.at in behind and (i.message.offset() or 0) >= current[i.at]]
        own = [
            e
            for e in own
            if (at := TopicPartition(e["topic"], e["partition"])) in behind and e["offset"] >= current[at]
        ]
        blocks = [b.since(current[b.at]) for b in blocks if b.at in behind]
        self._linking = Linking(cursor, current)
        refused: list[tuple[_Item, _Refused]] = []
        duplicates = self._store_blocks(connection, cursor, blocks)
        if duplicates is None:
            for block in blocks:
                self._itemize(block, items, own)
            blocks, duplicates = [], {}
        for at, n in self._store(connection, cursor, items, refused).items():
            duplicates[at] = duplicates.get(at, 0) + n
        for item, refusal in refused:
            letter = self._letter(
                item.message,
                item.topic,
                "constraint",
                refusal.reason,
                item.event,
                item.schema_id,
                refusal.column,
            )
            own.append(letter)
        # Before the letters are published: what is refused now might land once the cause is mended.
        records_total = len(items) + sum(map(len, blocks))
        self._limit.check(records_total + len(own) - len(refused), len(own))
        if own:
            self._mirror(own)
        self._store_letters(cursor, [*letters, *own])
        dead_at = [TopicPartition(e["topic"], e["partition"]) for e in own]
        refused_items = {id(i) for i, _ in refused}
        stored: dict[TopicPartition, list[str]] = {}
        for item in items:
            if id(item) not in refused_items:
                stored.setdefault(item.at, []).append(item.event[item.topic.event_id])
        for block in blocks:
            stored.setdefault(block.at, []).extend(block.events.column(block.topic.event_id).to_pylist())
        moves: list[Move] = []
        ranges: list[tuple[Any, ...]] = []
        for at, batch in behind.items():
            ranges.append(
                (
                    at.topic,
                    at.partition,
                    current[at],
                    batch.next_offset,
                    sum((m.offset() or 0) >= current[at] for m in batch.messages),
                    dead_at.count(at),
                    duplicates.get(at, 0),
                    _signed(sum(map(id_hash, stored.get(at, ())))),
                    batch.epoch,
                )
            )
            append_ms = batch.messages[-1].timestamp()[1] if batch.messages else None
            moves.append(Move(at, batch.epoch, current[at], batch.next_offset, append_ms))
            DEAD_LETTERS.labels(self.name, at.topic).inc(dead_at.count(at))
            DUPLICATES.labels(self.name, at.topic).inc(duplicates.get(at, 0))
        # In one statement each: a round trip for every partition would take longer than the rows.
        if moves:
            cursor.execute(_RANGE_RECORDS, (self.name, *map(list, zip(*ranges, strict=True))))
            self.checkpoints.advance(cursor, moves)
        try:
            self._linking.store()
        except ChainMoved as error:
            raise Transient(str(error)) from error
        if self._outbox is not None:
            left = [i for i in items if id(i) not in refused_items]
            self._tell(connection, cursor, self._outbox, blocks, left, all_new=not duplicates and not items)
        return Written(
            {b.at: max(b.next_offset, current[b.at]) for b in batches},
            records_total,
            len(own),
            sum(duplicates.values()),
            len(refused),
        )

    @staticmethod
    def _tell(
        connection: Connection,
        cursor: Cursor,
        outbox: Outbox,
        blocks: Sequence[Block],
        items: Sequence[_Item],
        *,
        all_new: bool,
    ) -> None:
        """Write what the outside is told of these rows."""
        topic = outbox.told.table.topic
        parts = [(b.events, b.at.partition, b.offsets) for b in blocks if b.topic.name == topic.name]
        for item in items:
            if item.topic.name == topic.name:
                offsets = np.array([item.message.offset()], dtype=np.int64)
                parts.append((batch_of(item.event), item.at.partition, offsets))
        if parts:
            outbox.write(connection, cursor, parts, all_new=all_new)

    # Rows

    def _store_blocks(
        self, connection: Connection, cursor: Cursor, blocks: Sequence[Block]
    ) -> dict[TopicPartition, int] | None:
        """Store all blocks and count duplicates; None where not all of them can be, and nothing is stored."""
        duplicates: dict[TopicPartition, int] = {}
        assert self._linking is not None
        mark = self._linking.marked()
        try:
            with connection.transaction():
                for index, target in enumerate(self._targets):
                    parts = [b for b in blocks if index in b.columns and len(b)]
                    if not parts:
                        continue
                    if target.chain is not None:
                        self._chain_blocks(connection, cursor, target, target.chain, parts, index, duplicates)
                        continue
                    if target.layout is None:
                        raise _Refused("its columns are copied row by row", None, None)
                    data = target.layout.copy_data([b.columns[index] for b in parts])

                    put = partial(self._copy_data, cursor, data)
                    rows: Counter[int] = Counter()
                    for block in parts:
                        rows[block.at.partition] += len(block)
                    written = self._copy_one(connection, cursor, target, put, rows, duplicates)
                    ROWS_WRITTEN.labels(self.name, target.table.topic.name).inc(written)
        except (_Refused, pa.ArrowException):
            self._linking.back_to(mark)
            return None
        return duplicates

    def _chain_blocks(
        self,
        connection: Connection,
        cursor: Cursor,
        target: _Target,
        chain: Chained,
        parts: Sequence[Block],
        index: int,
        duplicates: dict[TopicPartition, int],
    ) -> None:
        """Copy blocks into a chained table, each row behind the one before; not again what it has already."""
        if chain.layout is None or target.layout is None:
            raise _Refused("its columns are copied row by row", None, None)
        linking, table = self._linking, target.table
        assert linking is not None
        columns = [block.columns[index] for block in parts]
        places = [block.at.partition for block in parts for _ in range(len(block))]
        pieces = list(chain.layout.pieces(columns, len(chain.columns.personal)))
        mark = linking.marked()
        try:
            with connection.transaction():
                self._copy_chained(cursor, target, chain, pieces, places)
            written = len(pieces)
        except psycopg.errors.UniqueViolation:
            linking.back_to(mark)  # the chains' rows were let go with the savepoint
            with _refusing():
                self._copy_data(cursor, target.layout.copy_data(columns), target.copy_stage)
            written = self._copy_new(cursor, target, chain, pieces, places, duplicates)
        ROWS_WRITTEN.labels(self.name, table.topic.name).inc(written)

    def _copy_new(
        self,
        cursor: Cursor,
        target: _Target,
        chain: Chained,
        pieces: Sequence[tuple[bytes, bytes]],
        places: Sequence[int],
        duplicates: dict[TopicPartition, int],
    ) -> int:
        """Copy those of the rows, which are staged, that the table does not have; returns how many."""
        with _refusing():
            new = sorted(int(n) for (n,) in cursor.execute(chain.new).fetchall())
            cursor.execute(sql.SQL("TRUNCATE {}").format(_stage(target.table)))
            try:
                self._copy_chained(cursor, target, chain, [pieces[n] for n in new], [places[n] for n in new])
            except psycopg.errors.UniqueViolation as error:
                raise Transient(f"another sink stored the same row meanwhile: {error}") from error
        left = Counter(places)
        left.subtract(Counter(places[n] for n in new))
        for partition, n in left.items():
            if n and target.counts:
                at = TopicPartition(target.table.topic.name, partition)
                duplicates[at] = duplicates.get(at, 0) + n
        return len(new)

    def _copy_chained(
        self,
        cursor: Cursor,
        target: _Target,
        chain: Chained,
        pieces: Sequence[tuple[bytes, bytes]],
        places: Sequence[int],
    ) -> None:
        """Put rows behind the chains of their partitions, and copy them. Raises UniqueViolation."""
        assert self._linking is not None
        made: list[bytes] = []
        heads: dict[int, ChainHead] = {}
        by_partition: dict[int, list[tuple[bytes, bytes]]] = {}
        for piece, partition in zip(pieces, places, strict=True):
            by_partition.setdefault(partition, []).append(piece)
        for partition, mine in by_partition.items():
            rows, heads[partition] = self._linking.link(target.table, partition, mine, len(mine), chain.count)
            made += rows
        if made:
            self._copy_data(cursor, framed(made), chain.copy)
            self._linking.moved(target.table, heads)

    def _store(
        self,
        connection: Connection,
        cursor: Cursor,
        items: list[_Item],
        refused: list[tuple[_Item, _Refused]],
    ) -> dict[TopicPartition, int]:
        """Store the items' rows, moving those that the database refuses to `refused`; counts duplicates."""
        if not items:
            return {}
        assert self._linking is not None
        mark = self._linking.marked()
        try:
            with connection.transaction():
                return self._copy_all(connection, cursor, items)
        except _Refused as refusal:
            self._linking.back_to(mark)
            if refusal.row is not None or len(items) == 1:
                culprit = items[refusal.row if refusal.row is not None else 0]
                refused.append((culprit, refusal))
                return self._store(connection, cursor, [i for i in items if i is not culprit], refused)
        half = len(items) // 2
        duplicates = self._store(connection, cursor, items[:half], refused)
        for at, n in self._store(connection, cursor, items[half:], refused).items():
            duplicates[at] = duplicates.get(at, 0) + n
        return duplicates

    def _copy_all(
        self, connection: Connection, cursor: Cursor, items: list[_Item]
    ) -> dict[TopicPartition, int]:
        duplicates: dict[TopicPartition, int] = {}
        for index, target in enumerate(self._targets):
            owners: list[int] = []
            rows: list[Row] = []
            for n, item in enumerate(items):
                for i, row in item.rows:
                    if i == index:
                        owners.append(n)
                        rows.append(row)
            if not rows:
                continue
            by_partition = Counter(row[-2] for row in rows)
            put = partial(self._copy, cursor, target, rows)
            try:
                if target.chain is not None:
                    with _refusing():
                        put(target.copy_stage)
                        pieces = target.chain.read_staged(cursor)
                    places = [row[-2] for row in rows]
                    written = self._copy_new(cursor, target, target.chain, pieces, places, duplicates)
                else:
                    written = self._copy_one(connection, cursor, target, put, by_partition, duplicates)
            except _Refused as refusal:
                if refusal.row is not None:
                    refusal.row = owners[refusal.row]
                raise
            ROWS_WRITTEN.labels(self.name, target.table.topic.name).inc(written)
        return duplicates

    def _copy_one(
        self,
        connection: Connection,
        cursor: Cursor,
        target: _Target,
        put: Callable[[sql.Composed], None],
        rows: Counter[int],
        duplicates: dict[TopicPartition, int],
    ) -> int:
        """Give rows, so many of each partition, to COPY (`put`) or merge; returns how many were stored."""
        if target.table.merge is Merge.FIRST_WINS:
            try:
                # A savepoint: the violation would otherwise end the transaction with all that is in it.
                with connection.transaction():
                    put(target.copy)
                return rows.total()
            except psycopg.errors.UniqueViolation as error:
                if error.diag.table_name is None or error.diag.constraint_name is None:
                    raise
        with _refusing():
            put(target.copy_stage)
            cursor.execute(target.merge)
            written = 0
            if target.table.merge is Merge.FIRST_WINS:
                left = Counter(rows)
                for partition, n in cursor.fetchall():
                    left[partition] -= n
                    written += n
                for partition, n in left.items():
                    # A repeated input repeats a row of each table; one table of a topic stands for all.
                    if n and target.counts:
                        at = TopicPartition(target.table.topic.name, partition)
                        duplicates[at] = duplicates.get(at, 0) + n
            else:
                written = cursor.rowcount
            cursor.execute(sql.SQL("TRUNCATE {}").format(_stage(target.table)))
            return written

    @staticmethod
    def _copy_data(cursor: Cursor, data: bytes, statement: sql.Composed) -> None:
        try:
            with _refusing(), cursor.copy(statement) as copy:
                copy.write(data)
        except _Refused as refused:
            if isinstance(refused.__cause__, psycopg.errors.UniqueViolation):
                raise refused.__cause__ from None
            raise

    def _copy(self, cursor: Cursor, target: _Target, rows: list[Row], statement: sql.Composed) -> None:
        n = 0
        try:
            with cursor.copy(statement) as copy:
                copy.set_types(target.types)
                for row in rows:
                    copy.write_row(row)
                    n += 1
        except psycopg.errors.UniqueViolation:
            raise
        except psycopg.Error as error:
            # By SQLSTATE, never by psycopg's class: an oversized key is an OperationalError to it.
            if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
                # psycopg itself cannot write the value, as text with a NUL
                raise _Refused(str(error), None, n) from error
            if classify(error) is not Failure.INVALID:
                raise
            line = _COPY_LINE.search(error.diag.context or "")
            raise _Refused(
                _reason(error), error.diag.column_name, int(line.group(1)) - 1 if line else None
            ) from error
        except (ValueError, OverflowError, TypeError, AttributeError) as error:
            raise _Refused(
                f"a value does not fit its column ({type(error).__name__}: {error})", None, n
            ) from error

    def _prepare_staging(self, connection: Connection) -> None:
        for target in self._targets:
            connection.execute(target.stage)

    def _ensure_partitions(self, connection: Connection, items: list[_Item], blocks: Sequence[Block]) -> None:
        """Create the time partitions that the rows need, outside their transaction (it locks the parent)."""
        for index, target in enumerate(self._targets):
            if target.width_s is None or target.time is None:
                continue
            needed = {
                row[target.time].timestamp() // target.width_s
                for item in items
                for i, row in item.rows
                if i == index and isinstance(row[target.time], datetime)
            }
            for block in blocks:
                if index in block.columns:
                    times = block.columns[index][str(target.table.time)].cast(
                        pa.timestamp("s", "UTC"), safe=False
                    )
                    needed |= set(np.unique(times.cast(pa.int64()).to_numpy() // target.width_s).tolist())
            for bucket in sorted(needed - target.partitions):
                at = datetime.fromtimestamp(bucket * target.width_s, tz=UTC)
                connection.execute(
                    "SELECT millrace_ensure_partitions(%s, %s, %s)", (target.table.name, at, at)
                )
                target.partitions.add(bucket)

    # Dead letters

    def _letter(
        self,
        message: Message,
        topic: Topic,
        error_class: str,
        reason: str,
        event: Event | None,
        schema_id: int | None,
        column: str | None = None,
    ) -> Event:
        return dead_letters.envelope(
            self.pipeline.name,
            self.name,
            message,
            topic,
            error_class,
            reason,
            field=column,
            schema_id=schema_id,
            event=event,
        )

    def _mirror(self, letters: list[Event]) -> None:
        """Publish this sink's own dead letters; nothing is committed before the broker has them."""
        topics = {t.name: t for t in self._topics.values()}
        for letter in letters:
            dlq = topics[letter["topic"]].dlq
            self._producer.produce(
                dlq.name,
                self._codec.encode(dlq, letter),
                letter[dlq.key].encode(),
                on_delivery=self._delivered,
            )
        waiting = self._producer.flush(FLUSH_SECONDS)
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise KafkaException(failed)
        if waiting:
            raise Transient(f"{waiting} dead letters are not acknowledged yet")

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed = error

    def _store_letters(self, cursor: Cursor, letters: list[Event]) -> None:
        if not letters:
            return
        columns = sql.SQL(", ").join(map(sql.Identifier, dead_letters.COLUMNS))
        values = sql.SQL(", ").join(sql.Placeholder() for _ in dead_letters.COLUMNS)
        cursor.executemany(
            sql.SQL("INSERT INTO dead_letters ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
                columns, values
            ),
            [
                tuple(
                    from_ms(v) if c == "append_time" else v.replace("\0", "\\0") if isinstance(v, str) else v
                    for c, v in zip(dead_letters.COLUMNS, dead_letters.row(letter), strict=True)
                )
                for letter in letters
            ],
        )

    @contextmanager
    def _database(self) -> Iterator[Connection]:
        """The connection, opened anew where it was lost. Turns what waiting may mend into `Transient`."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._database_url, self.name)
                self._targets = []  # staging tables live as long as their connection
            yield self._connection
        except psycopg.Error as error:
            if self._connection is not None and (self._connection.closed or self._connection.broken):
                self._connection.close()
                self._connection = None
            failure = classify(error)
            if failure is Failure.MISSING_PARTITION:
                for target in self._targets:
                    target.partitions.clear()  # dropped behind our back: create them anew
                raise Transient(str(error)) from error
            if failure is Failure.TRANSIENT:
                raise Transient(f"the database cannot now: {error}") from error
            raise


def _signed(value: int) -> int:
    """Modulo 2^64, as the signed number that a bigint holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _reason(error: psycopg.Error) -> str:
    """The database's own sentence, with the constraint's detail."""
    detail = f"; {error.diag.message_detail}" if error.diag.message_detail else ""
    return f"{error.diag.message_primary}{detail}"


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn an error that one of the rows must be to blame for into `_Refused`."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate is not None and classify(error) is Failure.INVALID:
            raise _Refused(_reason(error), error.diag.column_name, None) from error
        raise


def _stage(table: Table) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"stage_{table.name}")


def _target(connection: Connection, table: Table, counts: bool, chained: bool = False) -> _Target:
    """Look the table up in the database and compose its statements. Raises LookupError where it differs."""
    columns = (*table.columns, *SOURCE_COLUMNS)
    types: dict[str, int] = {
        str(name): int(str(oid))
        for name, oid in connection.execute(
            "SELECT attname, atttypid FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            (table.name,),
        )
    }
    for column in columns:
        if column not in types:
            raise LookupError(
                f"table {table.name} has no column {column}; correct its migration or its declaration"
            )
    width = connection.execute(
        "SELECT extract(epoch FROM width)::float8 FROM time_tables WHERE name = %s AND NOT hypertable",
        (table.name,),
    ).fetchone()
    identifiers = {c: sql.Identifier(c) for c in columns}
    values = {
        "table": sql.Identifier(table.name),
        "stage": _stage(table),
        "stage_name": sql.Identifier(_stage(table)._obj[1]),
        "columns": sql.SQL(", ").join(identifiers.values()),
        "key": sql.SQL(", ").join(sql.Identifier(c) for c in table.key),
    }
    if table.order_by is None:
        merge = sql.SQL(
            "WITH stored AS (INSERT INTO {table} ({columns})"
            " SELECT DISTINCT ON ({key}) {columns} FROM {stage} ORDER BY {key}, stage_n"
            " ON CONFLICT ({key}) DO NOTHING RETURNING source_partition)"
            " SELECT source_partition, count(*) FROM stored GROUP BY source_partition"
        ).format(**values)
    else:
        merge = sql.SQL(
            "INSERT INTO {table} AS old ({columns})"
            " SELECT DISTINCT ON ({key}) {columns} FROM {stage} ORDER BY {key}, {order_by} DESC, stage_n"
            " ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE old.{order_by} < excluded.{order_by}"
        ).format(
            **values,
            order_by=sql.Identifier(table.order_by),
            sets=sql.SQL(", ").join(
                sql.SQL("{c} = excluded.{c}").format(c=i)
                for c, i in identifiers.items()
                if c not in table.key
            ),
        )
    return _Target(
        table=table,
        layout=layout_of(columns, [types[c] for c in columns]),
        chain=Chained.of(connection, table, _stage(table), types) if chained else None,
        types=[types[c] for c in columns],
        counts=counts,
        time=columns.index(table.time) if table.time else None,
        width_s=float(str(width[0])) if width else None,
        copy=sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)").format(**values),
        stage=sql.SQL(
            "CREATE TEMP TABLE {stage_name} (LIKE {table} INCLUDING DEFAULTS INCLUDING GENERATED"
            # With the table's checks COPY itself names the row that breaks one.
            " INCLUDING CONSTRAINTS, stage_n bigint GENERATED ALWAYS AS IDENTITY)"
        ).format(**values),
        copy_stage=sql.SQL("COPY {stage} ({columns}) FROM STDIN (FORMAT BINARY)").format(**values),
        merge=merge,
    )
