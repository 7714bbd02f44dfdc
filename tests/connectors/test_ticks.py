"""Ticks for topics that want them, told the time by the test."""

from __future__ import annotations

import threading
from dataclasses import replace

from connectors.ticks import due, run, ticked
from infra.broker import admin
from infra.codec import Codec, IsTick
from infra.settings import Settings
from infra.supervisor import specs
from infra.telemetry.health import Health
from infra.topic_log import ends, partitions, read
from schemas.declare import Pipelines
from schemas.pipelines import PIPELINES
from schemas.platform import TICK
from tests.accounts import Accounts


def test_each_partition_is_told_the_time_as_often_as_declared() -> None:
    """One tick for each partition at first and after each interval, and none in between."""
    topic = replace(Accounts("ticks").deposits, tick_ms=1000)
    told: dict[str, int] = {}
    assert [(p, e["occurred_at"]) for _, p, e in due([topic], told, 5_000)] == [(n, 5_000) for n in range(3)]
    assert list(due([topic], told, 5_999)) == []
    assert [e["event_id"] for _, _, e in due([topic], told, 6_000)] == [
        f"ticks-deposits/{n}/6000" for n in range(3)
    ]


def test_the_supervisor_starts_it_only_where_a_topic_declares_ticks() -> None:
    """No declared topic, no process; one, and there is one."""
    accounts = Accounts("ticks")
    pipeline = replace(accounts.pipeline, inputs=(replace(accounts.deposits, tick_ms=1000),))
    for pipelines in (PIPELINES, Pipelines.of(pipeline)):
        names = [s.name for s in specs(Settings.load(), pipelines, native=True)]
        assert ("connector-ticks" in names) == bool(ticked(pipelines))
    assert ticked(Pipelines.of(pipeline))


def test_ticks_stand_in_the_topic(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """On a real broker: records of the tick's own schema, in every partition."""
    codec.register(TICK)
    topic = replace(accounts.deposits, tick_ms=100)
    ending = threading.Event()
    times = iter([1_000, 1_050, 1_100])

    def now_ms() -> int:
        at_ms = next(times)
        if at_ms == 1_100:
            ending.set()
        return at_ms

    run(database, [topic], ending, Health(), now_ms)
    client, at = admin(database.kafka), partitions([topic])
    found = []
    for messages in read(database.kafka, dict.fromkeys(at, 0), ends(client, at)):
        for message in messages:
            try:
                codec.decode(topic, message.value())
            except IsTick as tick:
                found.append((message.partition(), tick.event["occurred_at"]))
    assert sorted(found) == [(n, at_ms) for n in range(3) for at_ms in (1_000, 1_100)]
