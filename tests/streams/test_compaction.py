"""Snapshots made beside their owner: the same state, and never that of another owner."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from infra.checkpoints import Checkpoints, LogBounds, Move, TopicPartition
from infra.postgres import Connection, connect
from infra.settings import Settings
from streams.compaction import CompactionFailed, Compactor, compact
from streams.decide import KeyedState

AT = TopicPartition("compacted", 0)
LOG = LogBounds("topic-id", 0, 100)

Chunk = tuple[int, int, bool, bytes]
"""Offset, number, whether of a snapshot, body."""


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url, "counting") as made:
        yield made
        for table in ("state_chunks", "checkpoints"):
            made.execute(f"DELETE FROM {table} WHERE topic = %s".encode(), (AT.topic,))


@pytest.fixture
def checkpoints() -> Checkpoints:
    return Checkpoints("counting")


def new_state() -> KeyedState[int]:
    return KeyedState(int)


def stored(connection: Connection) -> list[Chunk]:
    return connection.execute(
        "SELECT next_offset, n, is_snapshot, body FROM state_chunks WHERE topic = %s ORDER BY 1, 2",
        (AT.topic,),
    ).fetchall()  # type: ignore[return-value]


def counted(
    connection: Connection,
    checkpoints: Checkpoints,
    state: KeyedState[int],
    epoch: int,
    keys: str,
    begin: int,
) -> int:
    """Count each key, and commit the delta; returns the offset after it."""
    for key in keys:
        state.put(key, (state.get(key) or 0) + 1)
    end = begin + len(keys)
    delta = state.delta()
    assert delta is not None
    with connection.transaction(), connection.cursor() as cursor:
        checkpoints.advance(cursor, [Move(AT, epoch, begin, end)])
        checkpoints.write_deltas(cursor, {AT: (end, [delta])})
    return end


def loaded(connection: Connection, checkpoints: Checkpoints) -> dict[str, int]:
    state = new_state()
    for chunk in checkpoints.read_state(connection, AT):
        state.load(chunk)
    return dict(state.items())


def test_chunks_become_one_snapshot_of_the_same_state(
    connection: Connection, checkpoints: Checkpoints
) -> None:
    """What is loaded afterwards is what was loaded before, from one chunk as of the last delta's offset."""
    epoch, state = checkpoints.claim(connection, {AT: LOG})[AT].epoch, new_state()
    offset = 0
    for keys in ("aab", "bca", "zz"):
        offset = counted(connection, checkpoints, state, epoch, keys, offset)
    before = loaded(connection, checkpoints)
    size = compact(connection, checkpoints, AT, new_state)
    ((end, n, is_snapshot, body),) = stored(connection)
    assert (end, n, is_snapshot, len(body)) == (8, 0, True, size)
    assert loaded(connection, checkpoints) == before == {"a": 3, "b": 2, "c": 1, "z": 2}


def test_deltas_that_come_meanwhile_stay(
    database: Settings, connection: Connection, checkpoints: Checkpoints
) -> None:
    """The owner commits while the snapshot is made: its delta is loaded after the snapshot."""
    epoch, state = checkpoints.claim(connection, {AT: LOG})[AT].epoch, new_state()
    offset = counted(connection, checkpoints, state, epoch, "aab", 0)

    def meanwhile() -> KeyedState[int]:
        with connect(database.database_url, "counting") as owner:
            counted(owner, checkpoints, state, epoch, "ad", offset)
        return new_state()

    compact(connection, checkpoints, AT, meanwhile)
    assert [(end, is_snapshot) for end, _, is_snapshot, _ in stored(connection)] == [(3, True), (5, False)]
    assert loaded(connection, checkpoints) == {"a": 3, "b": 1, "d": 1}


def test_a_partition_that_was_taken_over_is_left_alone(
    database: Settings, connection: Connection, checkpoints: Checkpoints
) -> None:
    """Claimed anew while the snapshot is made, nothing is changed: another state may be in force."""
    epoch, state = checkpoints.claim(connection, {AT: LOG})[AT].epoch, new_state()
    counted(connection, checkpoints, state, epoch, "aab", 0)
    before = stored(connection)

    def meanwhile() -> KeyedState[int]:
        with connect(database.database_url, "counting") as heir:
            checkpoints.claim(heir, {AT: LOG})
        return new_state()

    with pytest.raises(CompactionFailed, match="taken over meanwhile"):
        compact(connection, checkpoints, AT, meanwhile)
    assert stored(connection) == before
    with pytest.raises(CompactionFailed, match="has no state"):
        compact(connection, checkpoints, TopicPartition("compacted", 7), new_state)


def answered(compactor: Compactor, seconds: float = 20) -> int | None:
    end = time.monotonic() + seconds
    while (size := compactor.answer()) is None and time.monotonic() < end:
        time.sleep(0.05)
    return size


def test_a_process_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death is told and costs nothing else; the next snapshot is asked of another process, later."""
    program = "import sys; 'die' in sys.stdin.readline() or print('{\"bytes\": 7}', flush=True)"
    compactor = Compactor([sys.executable, "-c", program], {})
    assert compactor.free and compactor.answer() is None
    compactor.ask(TopicPartition("die", 0))
    assert not compactor.free
    with pytest.raises(CompactionFailed, match="has died"):
        answered(compactor)
    assert not compactor.free, "not again at once"
    monkeypatch.setattr(compactor, "_not_before", 0.0)
    assert compactor.free
    compactor.ask(TopicPartition("live", 0))
    assert answered(compactor) == 7 and compactor.free
    compactor.close()
