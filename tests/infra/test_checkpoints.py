"""Epochs and positions in Postgres, each safeguard for itself: one may not hide that the other is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from infra.checkpoints import Checkpoints, Fenced, LogBounds, Move, PositionRefused, TopicPartition
from infra.postgres import Connection, connect
from infra.settings import Settings

AT = TopicPartition("things", 0)
LOG = LogBounds("topic-id", 10, 100)


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url, "consumer") as connection:
        yield connection
        connection.execute("DELETE FROM checkpoints WHERE topic = %s", (AT.topic,))


@pytest.fixture
def checkpoints() -> Checkpoints:
    return Checkpoints("consumer")


def position(connection: Connection) -> tuple[object, ...] | None:
    return connection.execute(
        "SELECT epoch, next_offset FROM checkpoints WHERE topic = %s", (AT.topic,)
    ).fetchone()


def test_each_claim_raises_the_epoch(connection: Connection, checkpoints: Checkpoints) -> None:
    """The first claim starts at the log's start; each later one keeps the position under a newer epoch."""
    first = checkpoints.claim(connection, {AT: LOG})[AT]
    second = checkpoints.claim(connection, {AT: LOG})[AT]
    assert (first.epoch, first.next_offset, second.epoch, second.next_offset) == (1, 10, 2, 10)


def test_an_older_epoch_cannot_lock(connection: Connection, checkpoints: Checkpoints) -> None:
    """Whoever does not hold the newest epoch is fenced before it writes anything."""
    old = checkpoints.claim(connection, {AT: LOG})[AT]
    checkpoints.claim(connection, {AT: LOG})
    with connection.cursor() as cursor, pytest.raises(Fenced, match="taken over"):
        checkpoints.lock(cursor, {AT: old.epoch})


def test_an_older_epoch_cannot_advance(connection: Connection, checkpoints: Checkpoints) -> None:
    """The compare-and-set refuses an older epoch by itself, and the position stays."""
    old = checkpoints.claim(connection, {AT: LOG})[AT]
    checkpoints.claim(connection, {AT: LOG})
    with connection.cursor() as cursor, pytest.raises(Fenced):
        checkpoints.advance(cursor, [Move(AT, old.epoch, 10, 20)])
    assert position(connection) == (2, 10)


def test_only_the_stored_position_can_be_advanced_from(
    connection: Connection, checkpoints: Checkpoints
) -> None:
    """The compare-and-set refuses a batch that does not begin where the last one ended."""
    claim = checkpoints.claim(connection, {AT: LOG})[AT]
    with connection.cursor() as cursor:
        checkpoints.advance(cursor, [Move(AT, claim.epoch, 10, 20)])
        for stale in (10, 15, 21):
            with pytest.raises(Fenced):
                checkpoints.advance(cursor, [Move(AT, claim.epoch, stale, 30)])
    assert position(connection) == (1, 20)


@pytest.mark.parametrize(
    ("log", "beyond"),
    [
        (LogBounds("another-id", 10, 100), None),
        (LogBounds("topic-id", 11, 100), None),
        (LogBounds("topic-id", 0, 9), 10),
    ],
    ids=["another topic", "before the start", "beyond the end"],
)
def test_a_position_outside_the_log_is_refused(
    connection: Connection, checkpoints: Checkpoints, log: LogBounds, beyond: int | None
) -> None:
    """Another topic of the name, a truncated log, a database ahead of it: refused, and the epoch stays."""
    checkpoints.claim(connection, {AT: LOG})
    with pytest.raises(PositionRefused) as refused:
        checkpoints.claim(connection, {AT: log})
    assert refused.value.beyond == beyond
    assert position(connection) == (1, 10)


def test_a_transaction_that_stands_still_is_ended(
    database: Settings, checkpoints: Checkpoints, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that waits for a stopped process's row ends its transaction: the next claim succeeds."""
    monkeypatch.setattr("infra.checkpoints.LOCK_SECONDS", 1)
    monkeypatch.setattr("infra.checkpoints.STALE_TRANSACTION_SECONDS", 0.5)
    claim = checkpoints.claim(connection, {AT: LOG})[AT]
    with connect(database.database_url, "consumer") as stopped, stopped.cursor() as cursor:
        cursor.execute("BEGIN")
        checkpoints.lock(cursor, {AT: claim.epoch})
        with pytest.raises(psycopg.errors.LockNotAvailable):
            checkpoints.claim(connection, {AT: LOG})
        assert checkpoints.claim(connection, {AT: LOG})[AT].epoch == 2
        with pytest.raises(psycopg.OperationalError):
            cursor.execute("SELECT 1")


def test_a_running_transaction_is_waited_for(
    database: Settings, checkpoints: Checkpoints, connection: Connection
) -> None:
    """A claim waits for a commit under way, and sees the position that it leaves."""
    claim = checkpoints.claim(connection, {AT: LOG})[AT]
    locked = threading.Event()

    def commit() -> None:
        with (
            connect(database.database_url, "consumer") as other,
            other.transaction(),
            other.cursor() as cursor,
        ):
            checkpoints.lock(cursor, {AT: claim.epoch})
            locked.set()
            checkpoints.advance(cursor, [Move(AT, claim.epoch, 10, 20)])
            time.sleep(0.5)

    thread = threading.Thread(target=commit)
    thread.start()
    assert locked.wait(10)
    assert checkpoints.claim(connection, {AT: LOG})[AT].next_offset == 20
    thread.join(10)
