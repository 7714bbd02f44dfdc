"""What every declared pipeline promises. A new one gets these tests by being declared and having traffic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, repeat
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import time_machine
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.columns import arrow_schema
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.verification import Place
from schemas.declare import Processor, Table
from schemas.pipelines import PIPELINES
from sinks.table_check import TableCheck
from tests.contracts.recording import Decided, Recording, empty, place, record
from tests.simulation.broker import Broker
from tests.simulation.machine import SEED

ALL_AT_ONCE = 1 << 30
OVERSIZED = Random(1).randbytes(4500).hex()
"""Beyond a btree's row size."""
HOUR_S = 3600.0

few = settings(max_examples=3, deadline=None, database=None, phases=(Phase.generate,))
sizes = st.lists(st.sampled_from([1, 2, 7, 30, 512]), min_size=4, max_size=8)


@pytest.fixture(scope="module", params=[p.name for p in PIPELINES])
def recording(request: pytest.FixtureRequest, database: Settings, codec: Codec) -> Recording:
    """The pipeline's traffic, recorded once."""
    pipeline = PIPELINES[request.param]
    for topic in pipeline.topics:
        codec.register(topic)
        codec.register(topic.dlq)
    return record(database, codec, pipeline)


@pytest.fixture
def stored(recording: Recording) -> Iterator[dict[str, list[tuple[Any, ...]]]]:
    """The recorded results in the tables; what is there."""
    recording.clear()
    recording.store(recording.broker, repeat(ALL_AT_ONCE))
    yield recording.rows()
    recording.clear()


def test_its_traffic_reaches_every_topic_and_table(
    recording: Recording, stored: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Simulated traffic fills each topic and each table, and some of it is refused: all below is about it."""
    for topic in recording.pipeline.topics:
        assert list(recording.broker.records(topic.name)), f"no record reaches {topic.name}"
    assert {name for name, rows in stored.items() if not rows} == set()
    assert any(list(recording.broker.records(t.dlq.name)) for t in recording.pipeline.topics)


# Processors


def of_each(recording: Recording) -> Iterator[tuple[Processor, TopicPartition]]:
    for processor in recording.pipeline.processors:
        for at in recording.sources(processor):
            yield processor, at


def test_answers_and_state_do_not_depend_on_batches_nor_on_restarts(recording: Recording) -> None:
    """However the log is cut, and wherever another process takes over from snapshot and deltas: every answer
    is byte for byte the same, in the same order, and so is the state that is left."""
    expected = {
        (processor.name, at): recording.decide(processor, at, repeat(ALL_AT_ONCE))
        for processor, at in of_each(recording)
    }

    @seed(SEED)
    @few
    @given(sizes=sizes, restarts=st.frozensets(st.integers(0, 30), max_size=4), compacting=st.booleans())
    def check(sizes: list[int], restarts: frozenset[int], compacting: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if compacting:
                patch.setattr("streams.runner.SNAPSHOT_FLOOR_BYTES", 1)
            for processor, at in of_each(recording):
                taken_over = restarts if processor.stateful else frozenset()
                found = recording.decide(processor, at, cycle(sizes), taken_over)
                assert same(found, expected[processor.name, at])

    check()


def test_answers_and_state_do_not_depend_on_the_clock(recording: Recording) -> None:
    """A processor an hour behind or ahead answers the same, and no decision so much as reads the time."""
    for processor, at in of_each(recording):
        expected = recording.decide(processor, at, repeat(64))
        for shift_s in (-HOUR_S, HOUR_S):
            with time_machine.travel(time.time() + shift_s):
                found = recording.decide(processor, at, repeat(64), around=without_clock)
            assert same(found, expected)


def same(found: Decided, expected: Decided) -> bool:
    """Fails with the first difference; the whole of both would be unreadable."""
    for topic, answers in expected.answers.items():
        for n, (one, other) in enumerate(zip(found.answers[topic], answers, strict=True)):
            assert one == other, f"answer {n} on {topic}"
    assert found.letters == expected.letters
    assert found.state == expected.state, "the states differ"
    return True


CLOCKS = frozenset({"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime", "strftime"})


def without_clock(call: Callable[[], None]) -> None:
    """Call, and fail where anything in it asks for the time of day. (`monotonic` tells none.)"""
    asked: list[str] = []

    def look(frame: FrameType, event: str, found: Any) -> None:
        if event == "c_call" and found.__name__ in CLOCKS:
            owner = getattr(found, "__self__", None)
            if found.__module__ == "time" or getattr(owner, "__module__", None) == "datetime":
                asked.append(f"{found.__qualname__} by {frame.f_code.co_filename}:{frame.f_lineno}")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    assert not asked, f"a decision reads the clock: {asked[0]}"


# The sink

RANGES = "SELECT count(*), sum(records_total), sum(duplicates_total) FROM range_records WHERE consumer = %s"


def test_rows_do_not_depend_on_batches(
    recording: Recording, stored: dict[str, list[tuple[Any, ...]]]
) -> None:
    """However the results are cut into transactions, every table has the same rows from the same records."""

    @seed(SEED)
    @few
    @given(sizes=sizes)
    def check(sizes: list[int]) -> None:
        recording.clear()
        recording.store(recording.broker, cycle(sizes))
        assert recording.rows() == stored

    check()


def test_what_comes_again_changes_nothing(
    recording: Recording, stored: dict[str, list[tuple[Any, ...]]]
) -> None:
    """All results produced a second time, as by a processor that lost its last checkpoint: no row changes,
    not even in where it says to come from; and the same offsets read again are left out altogether."""
    again = copied(recording)
    for topic in recording.pipeline.sink_topics:
        for message in list(again.records(topic.name)):
            again.append(topic.name, message.value(), message.key() or b"", message.partition())
    recording.store(again, cycle([5, 200]))
    assert recording.rows() == stored
    ranges = ask(recording, RANGES)
    recording.store(again, cycle([7, 90]), from_start=True)
    assert recording.rows() == stored
    assert ask(recording, RANGES) == ranges


@pytest.mark.parametrize("kind", ["nul", "oversized"])
def test_what_a_table_refuses_is_a_dead_letter_and_its_neighbours_land(
    recording: Recording, stored: dict[str, list[tuple[Any, ...]]], kind: str
) -> None:
    """For each table a record with a value that it cannot hold (a NUL; a key beyond an index's row), between
    the others: these become dead letters, and the tables hold exactly what they hold without them."""
    clean = recording.rows(with_source=False)
    poisoned = empty(recording.pipeline)
    poison = set()
    for topic in recording.pipeline.sink_topics:
        bad = [bad_value(recording, t, kind) for t in recording.pipeline.tables if t.topic.name == topic.name]
        for n, message in enumerate(list(recording.broker.records(topic.name))):
            key, partition = message.key() or b"", message.partition()
            if n in (0, 3, 4) or n % 50 == 0:
                for value in bad:
                    poison.add(place(poisoned.append(topic.name, value, key, partition)))
            poisoned.append(topic.name, message.value(), key, partition)
    recording.clear()
    recording.store(poisoned, cycle([11, 60]))
    assert recording.rows(with_source=False) == clean
    assert refused(recording, "constraint") == poison


def bad_value(recording: Recording, table: Table, kind: str) -> bytes:
    """A recorded result, changed in one text so that the row that it gives this table cannot be stored."""
    [to_rows] = [m.rows for m in recording.mappings if m.table.name == table.name]
    key = [table.columns.index(c) for c in table.key]
    for message in recording.broker.records(table.topic.name):
        event = recording.codec.decode(table.topic, message.value()).event
        rows = list(to_rows(event))
        for name, value in event.items():
            if not rows or not isinstance(value, str):
                continue
            changed = event | {name: f"{value}\0" if kind == "nul" else OVERSIZED}
            try:
                encoded = recording.codec.encode(table.topic, changed)
                row = next(iter(to_rows(changed)))
            except (ValueError, LookupError):
                continue  # an enum's symbol, for one
            texts = [row[i] for i in key] if kind == "oversized" else row
            if any(isinstance(v, str) and (v == OVERSIZED or "\0" in v) for v in texts):
                return encoded
    pytest.fail(f"no text of {table.topic.name} comes into table {table.name}; give it one to refuse")


# Verify


def test_verify_accepts_what_the_sink_wrote_and_names_what_was_altered(
    recording: Recording, stored: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Each table's check is clean over its topic; a row with another value, and a row that is gone, are
    named by the place of their record. So by column, where the table has them, as by row."""
    forms = [
        (m.table, by_column)
        for m in recording.mappings
        for by_column in ([False, True] if m.columns else [False])
    ]
    for table, by_column in forms:
        found = checked(recording, table, lambda connection: None, by_column=by_column)
        assert (found.check.wrong, found.check.first) == (0, None) and found.check.compared
        for change in (alter, delete):
            changed: list[tuple[int, int]] = []
            note = partial(_note, changed, change, table)
            found = checked(recording, table, note, by_column=by_column)
            assert found.check.wrong >= 1, f"{change.__name__} in {table.name} goes unnoticed"
            places = of_the_same_key(recording, table, *changed[0])
            assert any(str(found.check.first).startswith(f"{p} ") for p in places), found.check.first


def _note(
    changed: list[tuple[int, int]],
    change: Callable[[Connection, Table], tuple[int, int]],
    table: Table,
    connection: Connection,
) -> None:
    changed.append(change(connection, table))


def of_the_same_key(recording: Recording, table: Table, partition: int, offset: int) -> set[str]:
    """The records that give rows of the keys that the record at this place gives: one of them is named."""
    [mapping] = [m for m in recording.mappings if m.table.name == table.name]
    key = [table.columns.index(c) for c in table.key]
    keys: dict[Place, set[tuple[Any, ...]]] = {}
    for message in recording.broker.records(table.topic.name):
        event = recording.codec.decode(table.topic, message.value()).event
        keys[Place(*place(message))] = {tuple(row[i] for i in key) for row in mapping.rows(event)}
    mine = keys[Place(table.topic.name, partition, offset)]
    return {str(p) for p, others in keys.items() if others & mine}


def checked(
    recording: Recording, table: Table, change: Callable[[Connection], object], *, by_column: bool
) -> TableCheck:
    """The table's check after a change that is undone."""
    [mapping] = [m for m in recording.mappings if m.table.name == table.name]
    places = recording.broker.places(table.topic.name)
    ends = {at: recording.broker.bounds(at).end for at in places}
    dead = refused(recording)
    with connect(recording.settings.database_url) as connection:
        found = TableCheck(connection, mapping)
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL session_replication_role = replica")
            change(connection)
            for message in recording.broker.records(table.topic.name):
                _, partition, offset = place(message)
                if (table.topic.name, partition, offset) not in dead:
                    event = recording.codec.decode(table.topic, message.value()).event
                    if by_column:
                        batch = pa.RecordBatch.from_pylist([event], schema=arrow_schema(table.topic))
                        at = (np.array([partition]), np.array([offset]))
                        found.add_block(batch, *at, found.by_column(batch))
                    else:
                        found.add(mapping.rows(event), partition, offset)
            lot = found.take()
            found.compare_blocks(lot)
            found.compare(lot)
            found.check_sources({at: (0, end) for at, end in ends.items()}, ends)
    return found


ALTERED = {
    "text": "{} || 'x'",
    "int2": "{} + 1",
    "int4": "{} + 1",
    "int8": "{} + 1",
    "float4": "{} + 1",
    "float8": "{} + 1",
    "bool": "NOT {}",
    "timestamptz": "{} + interval '1 ms'",
    "date": "{} + 1",
}


def alter(connection: Connection, table: Table) -> tuple[int, int]:
    """Change one value of one row, in the first column that lets us; the place of the row's record."""
    types = {
        str(name): str(typed)
        for name, typed in connection.execute(
            "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
            (table.name,),
        )
    }
    for column in table.columns:
        new = ALTERED.get(types[column])
        if new is None or column in table.key:
            continue
        try:
            with connection.transaction():
                row = connection.execute(
                    f'UPDATE {table.name} SET "{column}" = {new.format(chr(34) + column + chr(34))}'
                    f" WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM {table.name}"
                    f' WHERE "{column}" IS NOT NULL ORDER BY source_partition, source_offset LIMIT 1)'
                    " RETURNING source_partition, source_offset".encode()
                ).fetchone()
        except Exception:
            continue  # a rule of the table's own
        if row is not None:
            return int(str(row[0])), int(str(row[1]))
    return pytest.fail(f"no column of {table.name} can be altered")


def delete(connection: Connection, table: Table) -> tuple[int, int]:
    """Take one row away; the place of its record."""
    row = connection.execute(
        f"DELETE FROM {table.name} WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM {table.name}"
        " ORDER BY source_partition, source_offset LIMIT 1)"
        " RETURNING source_partition, source_offset".encode()
    ).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))


# Small parts


def copied(recording: Recording) -> Broker:
    """The recorded topics, to append to."""
    found = empty(recording.pipeline)
    for topic in recording.pipeline.topics:
        for t in (topic, topic.dlq):
            for message in recording.broker.records(t.name):
                found.append(t.name, message.value(), message.key() or b"", message.partition())
    return found


def ask(recording: Recording, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query about the pipeline's sink."""
    with connect(recording.settings.database_url) as connection:
        return connection.execute(query.encode(), (recording.pipeline.sink_name,)).fetchall()


def refused(recording: Recording, error_class: str | None = None) -> set[tuple[str, int, int]]:
    """What the sink refused."""
    found = ask(
        recording,
        'SELECT topic, partition, "offset", error_class FROM dead_letters WHERE consumer = %s',
    )
    return {(t, p, o) for t, p, o, said in found if error_class in (None, said)}
