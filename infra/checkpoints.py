"""Positions, epochs and state in Postgres: the truth about what has taken effect.

A consumer claims a partition by raising its epoch. From then on only that epoch can commit, so a process
that was thought dead (stopped, partitioned, paused by its machine) finds out at its next commit and
leaves. Positions, and whatever belongs to them (rows, range records, processor state), are written in
one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from infra import exit_codes
from infra.postgres import Connection

LOCK_SECONDS = 5
"""How long a claim waits for a row that a transaction holds."""
REMEDY = "compare topic and database (`millrace doctor`), then restore the one that is wrong"

STALE_TRANSACTION_SECONDS = 10.0
"""A transaction of the consumer that is older belongs to a process that stands still."""


class Fenced(RuntimeError):
    """Another process owns the partition (or this process's identity) now; nothing was written."""

    exit_code = exit_codes.FENCED


class Held(ConnectionError):
    """A swap holds the consumer for a moment: partitions are claimed again when it is over."""


class PositionRefused(RuntimeError):
    """The stored position does not fit the topic (deleted, truncated, restored from elsewhere).

    `beyond` is the position where it lies beyond the end offset that was given.
    """

    exit_code = exit_codes.POSITION

    def __init__(self, message: str, at: TopicPartition | None = None, beyond: int | None = None) -> None:
        super().__init__(message)
        self.at = at
        self.beyond = beyond


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """A partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True)
class LogBounds:
    """What the broker says of a partition: the topic's id, its first offset and its end offset."""

    topic_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition taken under an epoch, with the offset to read from.

    `append_ms` is the append time of the last record handled before it, where there is one.
    """

    epoch: int
    next_offset: int
    append_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A partition's position from one offset to another, under an epoch.

    `append_ms` is the append time of the last record in between; None where there was none.
    """

    at: TopicPartition
    epoch: int
    from_offset: int
    to_offset: int
    append_ms: int | None = None


class Checkpoints:
    """The checkpoint rows of one consumer (a processor or a sink)."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer

    def claim(
        self, connection: Connection, logs: Mapping[TopicPartition, LogBounds]
    ) -> dict[TopicPartition, Claim]:
        """Raise the partitions' epochs, all or none, and return the positions to continue from.

        A partition never claimed before starts at the log's start. Raises `PositionRefused` where a position
        lies outside the log or belongs to another topic of the same name; LockNotAvailable (of psycopg) where
        a process that stands still holds a row: its transaction is ended, so that trying again helps; and
        `Held` while a swap is under way.
        """
        try:
            with connection.transaction():
                if (run_id := self.held_by(connection)) is not None:
                    raise Held(f"{self.consumer}: held for the swap of replay {run_id}")
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_SECONDS}s",))
                return {at: self._claim(connection, at, log) for at, log in logs.items()}
        except psycopg.errors.LockNotAvailable:
            # A stopped process would keep its heirs out for ever: the kernel keeps its connection alive.
            self._evict(connection)
            raise

    def _claim(self, connection: Connection, at: TopicPartition, log: LogBounds) -> Claim:
        row = connection.execute(
            "INSERT INTO checkpoints (consumer, topic, partition, topic_id, epoch, next_offset)"
            " VALUES (%s, %s, %s, %s, 1, %s)"
            " ON CONFLICT (consumer, topic, partition)"
            " DO UPDATE SET epoch = checkpoints.epoch + 1, held_by = NULL, updated_at = now()"
            " RETURNING epoch, next_offset, topic_id, append_ms",
            (self.consumer, at.topic, at.partition, log.topic_id, log.start),
        ).fetchone()
        assert row is not None
        epoch, next_offset, topic_id = int(str(row[0])), int(str(row[1])), str(row[2])
        if topic_id != log.topic_id:
            raise PositionRefused(
                f"{self.consumer}: topic {at.topic} is not the one that was read before"
                f" (id {log.topic_id}, was {topic_id}): it was deleted and created anew; {REMEDY}"
            )
        if not log.start <= next_offset <= log.end:
            raise PositionRefused(
                f"{self.consumer}: position {next_offset} of {at} lies outside the log"
                f" ({log.start} to {log.end}); {REMEDY}",
                at,
                next_offset if next_offset > log.end else None,
            )
        return Claim(epoch, next_offset, None if row[3] is None else int(str(row[3])))

    def _evict(self, connection: Connection) -> None:
        """End this consumer's transactions that no living process would leave open for so long."""
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"
            " AND pid <> pg_backend_pid() AND xact_start < now() - make_interval(secs => %s)",
            (self.consumer, STALE_TRANSACTION_SECONDS),
        )

    def lock(
        self, cursor: psycopg.Cursor[Any], epochs: dict[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        """Lock the rows of these partitions until the transaction ends; returns each one's next offset.

        Raises `Fenced` where a partition's epoch is no longer the one given.
        """
        cursor.execute(
            "SELECT topic, partition, epoch, next_offset FROM checkpoints"
            " WHERE consumer = %s AND (topic, partition) IN (SELECT * FROM unnest(%s::text[], %s::int[]))"
            " ORDER BY topic, partition FOR UPDATE",
            (self.consumer, [p.topic for p in epochs], [p.partition for p in epochs]),
        )
        found: dict[TopicPartition, int] = {}
        for topic, partition, epoch, next_offset in cursor.fetchall():
            at = TopicPartition(topic, partition)
            if epoch != epochs[at]:
                raise self._fenced(at, epochs[at], epoch)
            found[at] = next_offset
        for at, epoch in epochs.items():
            if at not in found:
                raise self._fenced(at, epoch, None)
        return found

    def advance(self, cursor: psycopg.Cursor[Any], moves: Sequence[Move]) -> None:
        """Move positions, each if its epoch and position are still those of the move.

        Raises `Fenced` otherwise: the compare-and-set that no zombie passes.
        """
        cursor.execute(
            "UPDATE checkpoints c SET next_offset = m.to_offset,"
            " append_ms = coalesce(m.append_ms, c.append_ms), updated_at = now()"
            " FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
            "  AS m (topic, partition, epoch, from_offset, to_offset, append_ms)"
            " WHERE c.consumer = %s AND c.topic = m.topic AND c.partition = m.partition"
            " AND c.epoch = m.epoch AND c.next_offset = m.from_offset"
            " RETURNING c.topic, c.partition",
            (
                [m.at.topic for m in moves],
                [m.at.partition for m in moves],
                [m.epoch for m in moves],
                [m.from_offset for m in moves],
                [m.to_offset for m in moves],
                [m.append_ms for m in moves],
                self.consumer,
            ),
        )
        moved = {TopicPartition(*row) for row in cursor.fetchall()}
        for move in moves:
            if move.at not in moved:
                raise self._fenced(move.at, move.epoch, None)

    def held_by(self, connection: Connection) -> int | None:
        """The run for whose swap this consumer shall give up its partitions; None normally."""
        row = connection.execute(
            "SELECT run_id FROM holds WHERE consumer = %s AND expires_at > clock_timestamp()",
            (self.consumer,),
        ).fetchone()
        return int(str(row[0])) if row else None

    def give_up(self, connection: Connection, epochs: dict[TopicPartition, int], run_id: int) -> None:
        """Tell the swap of `run_id` that nothing more will come of these partitions: all is committed."""
        with connection.transaction(), connection.cursor() as cursor:
            self.lock(cursor, epochs)
            for at in epochs:
                # With a raised epoch even a commit that is still on its way comes too late.
                cursor.execute(
                    "UPDATE checkpoints SET epoch = epoch + 1, held_by = %s"
                    " WHERE consumer = %s AND topic = %s AND partition = %s",
                    (run_id, self.consumer, at.topic, at.partition),
                )

    def _fenced(self, at: TopicPartition, mine: int, current: int | None) -> Fenced:
        return Fenced(
            f"{self.consumer}: {at} was taken over (epoch {mine} is not the current one"
            f"{'' if current is None else f', {current}'}); another process reads it now"
        )

    # State of processors: chunks in the order in which they must be loaded.

    def read_state(self, connection: Connection, at: TopicPartition) -> Iterator[bytes]:
        """The partition's snapshot and deltas, in order."""
        with connection.transaction(), connection.cursor(name="state") as cursor:
            cursor.itersize = 16
            cursor.execute(
                "SELECT body FROM state_chunks WHERE consumer = %s AND topic = %s AND partition = %s"
                " ORDER BY next_offset, n",
                (self.consumer, at.topic, at.partition),
            )
            for (body,) in cursor:
                yield bytes(body)  # type: ignore[call-overload]

    def write_deltas(
        self, cursor: psycopg.Cursor[Any], changes: Mapping[TopicPartition, tuple[int, Sequence[bytes]]]
    ) -> None:
        """Store what changed in each partition up to an offset, in the transaction that advances to it."""
        if changes:
            rows = ((at, offset, n, d) for at, (offset, ds) in changes.items() for n, d in enumerate(ds))
            self._insert(cursor, rows, is_snapshot=False)

    def write_snapshot(
        self, cursor: psycopg.Cursor[Any], at: TopicPartition, next_offset: int, chunks: Iterable[bytes]
    ) -> None:
        """Replace all chunks by a snapshot as of `next_offset`, in the transaction that advances to it."""
        cursor.execute(
            "DELETE FROM state_chunks WHERE consumer = %s AND topic = %s AND partition = %s",
            (self.consumer, at.topic, at.partition),
        )
        rows = ((at, next_offset, n, chunk) for n, chunk in enumerate(chunks))
        self._insert(cursor, rows, is_snapshot=True)

    def compact(
        self, connection: Connection, at: TopicPartition, rewritten: Callable[[Iterator[bytes]], list[bytes]]
    ) -> int | None:
        """Replace a partition's chunks by fewer that load to the same state; returns their bytes.

        Beside the owner, who may go on adding deltas. None, and nothing is changed, where there are none or
        the partition was taken over (or swapped) meanwhile: another state may be in force by then.
        """
        one = (self.consumer, at.topic, at.partition)
        with connection.transaction():
            # One moment for all: epoch, chunks, and the offset that they reach.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            row = connection.execute(
                "SELECT epoch, (SELECT max(next_offset) FROM state_chunks s WHERE s.consumer = c.consumer"
                "  AND s.topic = c.topic AND s.partition = c.partition)"
                " FROM checkpoints c WHERE consumer = %s AND topic = %s AND partition = %s",
                one,
            ).fetchone()
            if row is None or row[1] is None:
                return None
            epoch, reached = (int(str(value)) for value in row)
            chunks = rewritten(self.read_state(connection, at))
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(
                    "DELETE FROM state_chunks WHERE consumer = %s AND topic = %s AND partition = %s"
                    " AND next_offset <= %s",
                    (*one, reached),
                )
                rows = ((at, reached, n, chunk) for n, chunk in enumerate(chunks))
                self._insert(cursor, rows, is_snapshot=True)
                # Last, as the owner's next checkpoint waits for this row: no longer than our commit takes.
                self.lock(cursor, {at: epoch})
        except Fenced:
            return None
        return sum(map(len, chunks))

    def _insert(
        self,
        cursor: psycopg.Cursor[Any],
        rows: Iterable[tuple[TopicPartition, int, int, bytes]],
        is_snapshot: bool,
    ) -> None:
        with cursor.copy(
            "COPY state_chunks (consumer, topic, partition, next_offset, n, is_snapshot, body)"
            " FROM STDIN (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["text", "text", "int4", "int8", "int4", "bool", "bytea"])
            for at, next_offset, n, body in rows:
                copy.write_row((self.consumer, at.topic, at.partition, next_offset, n, is_snapshot, body))
