"""The queries on the runtime's contract: the oracle's results, however the log was cut, also restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.nexmark.declared import BIDS, PARTITIONS, Declared
from benchmarks.nexmark.oracle import expected
from benchmarks.nexmark.queries import JOIN_LATENESS, Arrivals, NewSellers, logics
from benchmarks.nexmark.stream import START_MS, Ints, Rows, Stream, partition_of
from infra.columns import arrow_schema
from schemas.declare import Topic
from schemas.platform import TICK
from streams.decide import ColumnRecords, Event, Outcomes, Record, decide_in_order, decide_together

STREAM = Stream(40_000)

Log = dict[int, list[Event]]
"""Partition -> its events."""


def log_of(topic: Topic, events: Sequence[Event]) -> Log:
    """The events as the broker lays them out."""
    log: Log = {partition: [] for partition in range(PARTITIONS)}
    for event in events:
        log[partition_of(str(event[topic.key]).encode(), PARTITIONS)].append(event)
    return log


def of_rows(rows: Rows) -> Log:
    """All events of an input."""
    return log_of(rows.topic, rows.batch(np.arange(len(rows))).to_pylist())


class Collected(Outcomes):
    """Answers as events, whichever way they went out."""

    def __init__(self) -> None:
        super().__init__(encode=self._collect)
        self.events: list[Event] = []

    def _collect(self, topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
        self.events += batch.cast(arrow_schema(topic)).to_pylist()
        return [b""] * len(batch)


def batches(events: list[Event], size: int) -> Iterator[list[Event]]:
    for start in range(0, len(events), size):
        yield events[start : start + size]


def records_of(topic: str, partition: int, offsets: Ints, batch: pa.RecordBatch) -> ColumnRecords:
    return ColumnRecords(topic, np.full(len(batch), partition), offsets, offsets, batch)


def processed(logic: Any, topic: Topic, log: Log, size: int) -> list[Event]:
    """What a processor answers; half-way through each partition its state is moved to a new one."""
    answers = []
    for partition, events in log.items():
        state = logic.new_state()
        offset = 0
        for n, part in enumerate(batches(events, size)):
            if n == len(events) // size // 2:
                old, state = state, logic.new_state()
                for chunk in old.snapshot():
                    state.load(chunk)
            offsets = np.arange(offset, offset + len(part))
            offset += len(part)
            batch = pa.RecordBatch.from_pylist(part, schema=arrow_schema(topic))
            out = Collected()
            decide_in_order(logic, state, records_of(topic.origin, partition, offsets, batch), [], {}, out)
            answers += out.events + [event for _, event in out.emitted]
            assert not out.dead
    return answers


def results(query: str, size: int) -> tuple[list[Event], list[Event]]:
    """Of a query over the stream: what its first processor answers, and what its last one does."""
    declared = Declared(query, "test")
    made = [factory() for factory in logics(declared, START_MS).values()]
    inputs = {"persons": STREAM.persons, "auctions": STREAM.auctions, "bids": STREAM.bids}
    first = [
        event
        for topic in declared.inputs
        for event in processed(made[0], topic, of_rows(inputs[topic.name]), size)
    ]
    if declared.between is None:
        return first, first
    return first, processed(made[1], declared.between, log_of(declared.between, first), size)


@pytest.mark.parametrize("query", ["q0", "q1", "q2", "q5", "q7", "q8"])
@pytest.mark.parametrize("size", [7, 4_096])
def test_results_are_those_of_the_oracle(query: str, size: int) -> None:
    """Every result that must come comes once with its value, none else does, whatever the batches' size."""
    wanted = expected(query, STREAM)
    there = wanted.batch(np.arange(len(wanted))).to_pylist()
    # The last windows stay open, as nothing comes after them.
    closed = STREAM.end_ms - 2_000
    must = {event["event_id"] for event in there if query < "q5" or event["occurred_at"] <= closed}
    found = sorted(results(query, size)[1], key=lambda event: str(event["event_id"]))
    known = {event["event_id"]: event for event in there}
    assert [known[event["event_id"]] for event in found] == found
    ids = [event["event_id"] for event in found]
    assert len(set(ids)) == len(ids)
    assert set(ids) >= must


@pytest.mark.parametrize("query", ["q5", "q7"])
def test_each_partition_tells_of_every_window_once(query: str) -> None:
    """Whoever waits for all partitions can count on them: none passes over a window without a bid."""
    hop = {"q5": 2_000, "q7": 10_000}[query]
    told: dict[int, list[int]] = {}
    for event in results(query, 512)[0]:
        told.setdefault(event["part"], []).append(event["occurred_at"])
    assert set(told) == set(range(PARTITIONS))
    for ends in told.values():
        assert ends == list(range(START_MS + hop, ends[-1] + 1, hop))
    assert len({ends[-1] for ends in told.values()}) == 1


@pytest.mark.parametrize("query", ["q5", "q7"])
def test_partitions_decided_at_once_stay_apart(query: str) -> None:
    """A batch of all partitions gives what each of them gives alone."""
    logic = next(iter(logics(Declared(query, "test"), START_MS).values()))()
    log, schema = of_rows(STREAM.bids), arrow_schema(BIDS)
    states = {partition: logic.new_state() for partition in log}
    out = Collected()
    for start in range(0, max(map(len, log.values())), 700):
        parts = []
        for partition, events in log.items():
            part = events[start : start + 700]
            batch = pa.RecordBatch.from_pylist(part, schema=schema)
            offsets = np.arange(start, start + len(part))
            parts.append((states[partition], records_of("bids", partition, offsets, batch)))
        decide_together(logic, parts, {}, out)
    together = sorted((event for _, event in out.emitted), key=lambda e: (e["part"], e["occurred_at"]))
    assert together == processed(logic, BIDS, log, 512)


def test_a_part_that_comes_again_changes_nothing() -> None:
    """After a crash the first processor's answers come twice; the second one counts them as duplicates."""
    declared = Declared("q5", "test")
    first, once = results("q5", 512)
    last = list(logics(declared, START_MS).values())[1]()
    assert declared.between is not None
    twice = [event for event in first for _ in range(2)]
    again = processed(last, declared.between, log_of(declared.between, twice), 512)
    assert again == once


def tick(at_ms: int) -> Record:
    event = {"event_id": str(at_ms), "tenant": "default", TICK.event_time: at_ms}
    return Record("bids", 3, 0, at_ms, event, is_tick=True)


@pytest.mark.parametrize(("query", "hop"), [("q5", 2_000), ("q7", 10_000)])
def test_a_tick_closes_the_windows_of_an_idle_partition(query: str, hop: int) -> None:
    """A partition without a bid does not hold up the others: ticks say that its windows are over."""
    logic = next(iter(logics(Declared(query, "test"), START_MS).values()))()
    state, out = logic.new_state(), Collected()
    nothing = pa.RecordBatch.from_pylist([], schema=arrow_schema(BIDS))
    none = records_of("bids", 3, np.arange(0), nothing)
    decide_in_order(logic, state, none, [tick(START_MS + 20_000)], {}, out)
    assert [e["occurred_at"] - START_MS for _, e in out.emitted] == list(range(hop, 20_001, hop))
    assert {(e["best"], len(e["winners"])) for _, e in out.emitted} == {(0, 0)}


def test_late_bids_count_nowhere() -> None:
    """A bid behind the watermark of its partition changes no window, wherever batches begin."""
    logic = next(iter(logics(Declared("q7", "test"), START_MS).values()))()
    bid = STREAM.bids.batch(np.array([0])).to_pylist()[0]
    times = [START_MS + 500, START_MS + 12_000, START_MS + 11_001, START_MS + 11_000, START_MS + 40_000]
    events = [{**bid, "occurred_at": at_ms, "price_minor": n} for n, at_ms in enumerate(times)]
    for size in (1, 5):
        found = processed(logic, BIDS, {0: events}, size)
        second = next(event for event in found if event["occurred_at"] == START_MS + 20_000)
        assert [winner["bid_at"] - START_MS for winner in second["winners"]] == [11_001]


def test_a_tick_forgets_sellers() -> None:
    """The state of q8 is bounded: a tick forgets persons of whom nothing more can be answered."""
    declared = Declared("q8", "test")
    assert declared.between is not None
    first, second = Arrivals(declared.between), NewSellers(declared.results)
    arrivals = processed(first, STREAM.persons.topic, of_rows(STREAM.persons), 512)
    state = second.new_state()
    batch = pa.RecordBatch.from_pylist(arrivals, schema=arrow_schema(declared.between))
    records = records_of("arrivals", 0, np.arange(len(batch)), batch)
    decide_in_order(second, state, records, [], {}, Collected())
    assert len(state) == len(STREAM.persons)
    end = STREAM.end_ms + JOIN_LATENESS.allowed_ms
    second.tick(state, end - 10_000, tick(end), {}, Collected())
    assert 0 < len(state) < len(STREAM.persons)
    second.tick(state, end, tick(end), {}, Collected())
    assert len(state) == 0
