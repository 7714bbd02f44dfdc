"""Watermarks, timers and ticks: without a clock, and without sleeping."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.broker import admin, producer
from infra.codec import Codec, IsTick, Undecodable
from infra.settings import Settings
from infra.topic_log import ends, partitions, read
from schemas.declare import Topic
from schemas.platform import TICK
from sinks.verify import verify
from streams.decide import Outcomes, Record, TickedLogic, Versions, decide_in_order
from streams.event_time import BoundedLateness, EventTimeState
from tests.accounts import Accounts
from tests.accounts.running import drained, running_processor, running_sink
from tests.streams.columns import columns_of

MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("allowed_ms", "at_ms", "is_late"),
    [(0, 1001, False), (0, 1000, True), (100, 901, False), (100, 900, True), (100, 5000, False)],
)
def test_late_is_at_or_behind_the_watermark(allowed_ms: int, at_ms: int, is_late: bool) -> None:
    """With the newest event at 1000: late from its time less the allowed lateness on backwards."""
    lateness = BoundedLateness(allowed_ms)
    assert lateness.is_late(at_ms, 1000) is is_late
    assert (at_ms <= lateness.watermark(1000)) is is_late
    assert not lateness.is_late(at_ms, None)


@given(
    st.lists(st.integers(0, 500), max_size=40), st.integers(0, 60), st.lists(st.integers(0, 40), max_size=4)
)
def test_columns_and_single_events_agree_on_what_is_late(
    times: list[int], allowed_ms: int, cuts: list[int]
) -> None:
    """By column, in batches cut anywhere, the same events are late as one by one."""
    lateness = BoundedLateness(allowed_ms)
    one_by_one, newest = [], 100
    for at_ms in times:
        one_by_one.append(not lateness.is_late(at_ms, newest))
        newest = max(newest, at_ms)
    by_column: list[bool] = []
    reached = 100
    for batch in np.split(np.array(times, np.int64), sorted(min(cut, len(times)) for cut in cuts)):
        in_time, reached = lateness.in_time(batch, reached)
        by_column += in_time.tolist()
    assert (by_column, reached) == (one_by_one, newest)


def new_state() -> EventTimeState[int]:
    return EventTimeState(int, BoundedLateness(100))


def test_a_watermark_is_the_keys_own_and_never_goes_back() -> None:
    """Another key's events, an older event and a late one leave a key's watermark where it is."""
    state = new_state()
    assert state.watermark("a") is None
    assert state.advance("a", 1000)
    assert state.advance("b", 9000)
    assert state.advance("a", 950)
    assert not state.advance("a", 900)
    assert (state.watermark("a"), state.watermark("b")) == (900, 8900)


def test_timers_are_due_in_order_and_once() -> None:
    """By time, then by key; one that was put off or ended is not due, and none is due twice."""
    state = new_state()
    for key, timer in (("c", 20), ("b", 10), ("a", 20), ("put off", 10), ("ended", 10), ("gone", 10)):
        state.advance(key, 1)
        state.put(key, 1, timer)
    state.put("put off", 1, 30)
    state.put("ended", 1)
    state.delete("gone")
    assert list(state.due(9)) == []
    assert list(state.due(20)) == [("b", 10), ("a", 20), ("c", 20)]
    assert list(state.due(20)) == []
    assert list(state.due(99)) == [("put off", 30)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.sampled_from("abc"), st.integers(0, 400)),
        st.tuples(st.just("delete"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("tick"), st.just(""), st.integers(0, 600)),
        st.tuples(st.just("checkpoint"), st.just(""), st.just(0)),
    ),
    max_size=40,
)


def play(state: EventTimeState[int], some: Sequence[tuple[str, str, int]]) -> list[Any]:
    """What a processor would emit: late or not, and what is due."""
    seen: list[Any] = []
    for what, key, at_ms in some:
        if what == "event":
            in_time = state.advance(key, at_ms)
            seen.append(in_time)
            if in_time:
                state.put(key, (state.get(key) or 0) + 1, at_ms + 50)
        elif what == "delete":
            state.delete(key)
        elif what == "tick":
            seen += list(state.due(at_ms))
    return seen


@given(steps, st.data())
def test_state_restored_anywhere_goes_on_as_if_undisturbed(
    some: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    """From a snapshot at one place and deltas up to another, everything after comes out the same."""
    undisturbed = play(new_state(), some)
    snapshot_at = data.draw(st.integers(0, len(some)))
    crash_at = data.draw(st.integers(snapshot_at, len(some)))
    state = new_state()
    seen = play(state, some[:snapshot_at])
    state.delta()
    chunks = list(state.snapshot())
    for step in some[snapshot_at:crash_at]:
        seen += play(state, [step])
        if step[0] == "checkpoint" and (delta := state.delta()) is not None:
            chunks.append(delta)
    if (delta := state.delta()) is not None:
        chunks.append(delta)
    restored = new_state()
    for chunk in chunks:
        restored.load(chunk)
    assert seen + play(restored, some[crash_at:]) == undisturbed


# In the runtime


class Silence(msgspec.Struct, array_like=True):
    """An account that is watched for silence."""

    deposits: int


class Silences:
    """Answers each deposit, and once a minute has passed in event time without another one, says so."""

    version_kinds: Sequence[str] = ()

    def __init__(self, balances: Topic) -> None:
        self._balances = balances

    def new_state(self) -> EventTimeState[Silence]:
        return EventTimeState(Silence, BoundedLateness(0))

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        raise LookupError(kind)

    def decide(
        self, state: EventTimeState[Silence], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        for record in records:
            event = record.event
            if not state.advance(event["account"], event["occurred_at"]):
                out.dead_letter(record, "occurred_at", "late; nothing to be done", "late")
                continue
            known = state.get(event["account"]) or Silence(0)
            known.deposits += 1
            state.put(event["account"], known, event["occurred_at"] + MINUTE_MS)
            self._emit(out, event["event_id"], event["account"], event["occurred_at"], known.deposits)

    def tick(
        self,
        state: EventTimeState[Silence],
        now_ms: int,
        record: Record,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        for account, due_ms in state.due(now_ms):
            known = state.get(account)
            assert known is not None
            self._emit(out, f"{account}/silent/{due_ms}", account, due_ms, -known.deposits)

    def _emit(self, out: Outcomes, event_id: str, account: str, at_ms: int, version: int) -> None:
        out.emit(
            self._balances,
            {
                "event_id": event_id,
                "input_id": event_id,
                "tenant": "default",
                "occurred_at": at_ms,
                "account": account,
                "amount_minor": 1,
                "balance_minor": version,
                "version": version,
                "limits_version": 0,
            },
        )


class Silent(Accounts):
    """The example pipeline with that logic."""

    def logic(self) -> Any:
        return Silences(self.balances)


def records_of(script: list[tuple[str, str, int]]) -> list[Record]:
    """Records from (account or "tick", event id, time)."""
    return [
        Record(
            "deposits",
            0,
            n,
            0,
            {"event_id": event_id, "account": account, "occurred_at": at_ms},
            is_tick=account == "tick",
        )
        for n, (account, event_id, at_ms) in enumerate(script)
    ]


SCRIPT = [
    ("a", "1", 1_000),
    ("b", "2", 2_000),
    ("tick", "t1", 61_000),
    ("a", "3", 62_000),
    ("a", "late", 61_999),
    ("tick", "t2", 61_999),
    ("tick", "t3", 200_000),
    ("tick", "t4", 200_000),
    ("b", "4", 3_000),
]


def test_a_logic_with_ticks_is_told_apart() -> None:
    """The runtime hands ticks to a logic that has `tick`, and to no other."""
    accounts = Accounts("ticked")
    assert isinstance(Silences(accounts.balances), TickedLogic)
    assert not isinstance(accounts.logic(), TickedLogic)


def test_ticks_are_records_of_the_log(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """On a real broker: a tick fires what is due before the records behind it; a restart fires none again;
    ticks are no dead letters, and verifying takes them for declared skips."""
    accounts.__class__ = Silent
    codec.register(TICK)
    now_ms = time.time_ns() // 1_000_000
    start = now_ms - 1_000_000
    sender = producer(database.kafka)

    def append(script: list[tuple[str, str, int]]) -> None:
        for account, event_id, at_ms in script:
            event = {"event_id": event_id, "tenant": "default", "occurred_at": start + at_ms}
            if account != "tick":
                event |= {"account": account, "amount_minor": 1}
            topic = TICK if account == "tick" else accounts.deposits
            sender.produce(accounts.deposits.name, codec.encode(topic, event), account, partition=1)
        assert sender.flush(10) == 0

    def run() -> list[str]:
        with running_processor(database, accounts) as errors, running_sink(database, accounts) as more:
            drained(database, accounts, errors, more)
        client, at = admin(database.kafka), partitions([accounts.balances])
        found = []
        for messages in read(database.kafka, dict.fromkeys(at, 0), ends(client, at)):
            for message in messages:
                event = codec.decode(accounts.balances, message.value()).event
                found.append(event["event_id"])
        return [f.rpartition("/")[0] or f for f in found]

    append(SCRIPT[:3])
    assert sorted(run()) == ["1", "2", "a/silent"]
    append(SCRIPT[3:])
    found = run()
    in_order = {"a": ["1", "a/silent", "3", "a/silent"], "b": ["2", "b/silent", "4"]}
    assert [f for f in found if f in in_order["a"]] == in_order["a"]
    assert [f for f in found if f in in_order["b"]] == in_order["b"]
    # A tick beyond the append time is passed over: what it would end could not be taken back.
    append([("tick", "t5", now_ms - start + 10 * MINUTE_MS)])
    assert run() == found
    report = verify(database, accounts.pipeline, accounts.rows)
    [offsets] = [o for o in report.offsets if o.topic == accounts.deposits.name]
    assert (offsets.skipped, offsets.dead_letters, offsets.wrong) == (5, 1, 0)


def test_a_tick_is_no_event(codec: Codec, accounts: Accounts) -> None:
    """Whoever does not know ticks sees a record that is none of the topic's events."""
    codec.register(TICK)
    data = codec.encode(TICK, {"event_id": "t", "tenant": "default", "occurred_at": 5})
    with pytest.raises(IsTick) as tick:
        codec.decode(accounts.deposits, data)
    assert tick.value.event["occurred_at"] == 5 and isinstance(tick.value, Undecodable)
    with pytest.raises(Undecodable, match="bytes follow the event"):
        codec.decode(accounts.deposits, data + b"!")


def test_batches_cut_anywhere_around_ticks_give_the_same() -> None:
    """The same log one by one, in twos, or at once: the same outputs."""
    accounts = Accounts("ticked")

    def play_in(size: int) -> list[Any]:
        logic = Silences(accounts.balances)
        state = logic.new_state()
        out = Outcomes()
        records = records_of(SCRIPT)
        for n in range(0, len(records), size):
            some = records[n : n + size]
            ticks = [r for r in some if r.is_tick]
            decide_in_order(logic, state, columns_of([r for r in some if not r.is_tick]), ticks, {}, out)
        return [(e["event_id"], e["version"]) for _, e in out.emitted] + [len(out.dead)]

    whole = play_in(len(SCRIPT))
    assert whole == [
        ("1", 1),
        ("2", 1),
        ("a/silent/61000", -1),
        ("3", 2),
        ("b/silent/62000", -1),
        ("a/silent/122000", -2),
        ("4", 2),
        1,
    ]
    assert play_in(1) == play_in(2) == whole
