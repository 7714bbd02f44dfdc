"""Publishing: an answer means that the broker has the record; no answer in time says so."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from prometheus_client import REGISTRY

from connectors.publish import Event, Publisher, Receipt
from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.kafka_access import KafkaAccess
from infra.problems import Problem
from infra.services import choose
from infra.services.kafka import Kafka
from infra.services.native import NativeServices
from infra.settings import Settings
from schemas.declare import Topic

T = TypeVar("T")

NOBODY = KafkaAccess("127.0.0.1:1")
"""An address where no broker is."""


@pytest.fixture
def broker(registry: Settings) -> KafkaAccess:
    return registry.kafka


def event(n: int, device: str | None = None) -> Event:
    return {
        "event_id": f"event-{n}",
        "occurred_at": 1_700_000_000_000 + n,
        "device": device or f"device-{n % 50}",
        "reading": n,
    }


@asynccontextmanager
async def publishing(access: KafkaAccess, codec: Codec, **options: Any) -> AsyncIterator[Publisher]:
    publisher = Publisher(access, codec, **{"name": "test", **options})
    try:
        yield publisher
    finally:
        await publisher.close()


def read(access: KafkaAccess, topic: Topic, partition: int, offset: int, records: int = 1) -> list[Message]:
    """The records from an offset on, by a plain consumer."""
    consumer = Consumer({**access.config(), "group.id": "reader", "auto.offset.reset": "error"})
    try:
        consumer.assign([TopicPartition(topic.name, partition, offset)])
        found: list[Message] = []
        deadline = time.monotonic() + 20
        while len(found) < records and time.monotonic() < deadline:
            found += consumer.consume(records - len(found), 0.5)
        return found
    finally:
        consumer.close()


def ends(access: KafkaAccess, topic: Topic) -> list[int]:
    """The end offset of each partition."""
    consumer = Consumer({**access.config(), "group.id": "reader"})
    try:
        return [
            consumer.get_watermark_offsets(TopicPartition(topic.name, n), timeout=10)[1]
            for n in range(topic.partitions)
        ]
    finally:
        consumer.close()


async def refused(publish: Coroutine[Any, Any, T]) -> Problem:
    with pytest.raises(Problem) as caught:
        await publish
    return caught.value


def test_an_acknowledged_record_stands_at_the_place_of_its_receipt(
    broker: KafkaAccess, codec: Codec, topic: Topic
) -> None:
    """When `publish` returns, a plain consumer reads this very record at the receipt's place."""

    async def scenario() -> Receipt:
        async with publishing(broker, codec) as publisher:
            return await publisher.publish(topic, event(7))

    receipt = asyncio.run(scenario())
    (message,) = read(broker, topic, receipt.partition, receipt.offset)
    assert (message.topic(), message.offset()) == (receipt.topic, receipt.offset)
    assert message.key() == b"device-7"
    decoded = codec.decode(topic, message.value())
    assert decoded.event == {**event(7), "tenant": "default", "note": None}


def test_two_thousand_at_once_each_get_their_own_place(
    broker: KafkaAccess, codec: Codec, topic: Topic
) -> None:
    """2,000 concurrent publishes give 2,000 places, no record is lost or doubled, with few wake-ups."""
    wakes = 0

    async def scenario() -> list[Receipt]:
        nonlocal wakes
        loop = asyncio.get_running_loop()
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal wakes
            wakes += 1
            return call_soon_threadsafe(*arguments, **options)

        async with publishing(broker, codec) as publisher:
            await publisher.publish(topic, event(0))
            loop.call_soon_threadsafe = counted  # type: ignore[assignment]
            receipts = await asyncio.gather(*(publisher.publish(topic, event(n)) for n in range(1, 2_001)))
            del loop.call_soon_threadsafe
            return receipts

    before = REGISTRY.get_sample_value(
        "millrace_records_produced_total", {"producer": "test", "topic": topic.name}
    )
    receipts = asyncio.run(scenario())
    after = REGISTRY.get_sample_value(
        "millrace_records_produced_total", {"producer": "test", "topic": topic.name}
    )
    assert len({(r.partition, r.offset) for r in receipts}) == 2_000
    assert sum(ends(broker, topic)) == 2_001
    assert wakes < 500
    assert (before, after) == (None, 2_001.0)


def test_many_events_of_a_key_keep_their_order(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """`publish_many` puts one key's events in one partition, in the order given."""

    async def scenario() -> list[Receipt]:
        async with publishing(broker, codec) as publisher:
            assert await publisher.publish_many(topic, []) == []
            return await publisher.publish_many(topic, [event(n, "one") for n in range(300)])

    receipts = asyncio.run(scenario())
    assert len({r.partition for r in receipts}) == 1
    assert [r.offset for r in receipts] == list(range(300))
    messages = read(broker, topic, receipts[0].partition, 0, 300)
    readings = [codec.decode(topic, m.value()).event["reading"] for m in messages]
    assert readings == list(range(300))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reading": "high"}, "reading"),
        ({"reading": 2**70}, "reading"),
        ({"note": 5}, "note"),
        ({"occurred_at": None}, "occurred_at"),
        ({"device": ""}, "device"),
        ({"event_id": None}, "event_id"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_the_schema_refuses_is_named(
    broker: KafkaAccess, codec: Codec, topic: Topic, change: dict[str, Any], field: str
) -> None:
    """An event that does not fit the schema is a 422 naming the field, and none of its batch is sent."""

    async def scenario() -> tuple[Problem, Problem]:
        async with publishing(broker, codec) as publisher:
            bad = {**event(1), **change}
            return (
                await refused(publisher.publish(topic, bad)),
                await refused(publisher.publish_many(topic, [event(0), bad])),
            )

    alone, second = asyncio.run(scenario())
    assert (alone.status, second.status) == (422, 422)
    assert alone.errors[0][0] == field
    assert second.errors[0][0] == f"1.{field}"
    assert sum(ends(broker, topic)) == 0


def test_a_record_larger_than_the_topic_takes_is_413(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """An event beyond the record's limit is refused as too large, and the next one goes through."""

    async def scenario() -> Problem:
        async with publishing(broker, codec) as publisher:
            problem = await refused(publisher.publish(topic, {**event(1), "note": "x" * 1_200_000}))
            await publisher.publish(topic, event(2))
            return problem

    assert asyncio.run(scenario()).status == 413
    assert sum(ends(broker, topic)) == 1


def test_a_topic_that_does_not_exist_says_what_creates_it(
    broker: KafkaAccess, codec: Codec, undeclared_topic: Topic
) -> None:
    """A missing schema or topic is 503, surely not accepted, and names the command that repairs it."""

    async def scenario() -> tuple[Problem, Problem]:
        async with publishing(broker, codec, timeout_s=5.0) as publisher:
            unregistered = await refused(publisher.publish(undeclared_topic, event(1)))
            codec.register(undeclared_topic)
            return unregistered, await refused(publisher.publish(undeclared_topic, event(1)))

    for problem in asyncio.run(scenario()):
        assert problem.status == 503
        assert "millrace up" in problem.detail
        assert "unknown" not in problem.title
        assert problem.headers is not None
        assert int(problem.headers["Retry-After"]) > 0


def test_a_registry_that_is_away_is_503(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """Before a topic's first event the registry is needed; without it nothing is accepted."""

    async def scenario() -> Problem:
        away = Codec(f"http://{NOBODY}")
        try:
            async with publishing(broker, away) as publisher:
                return await refused(publisher.publish(topic, event(1)))
        finally:
            away.close()

    problem = asyncio.run(scenario())
    assert (problem.status, problem.title) == (503, "Registry is away")
    assert sum(ends(broker, topic)) == 0


def test_a_registry_that_hangs_is_503_in_time(broker: KafkaAccess, topic: Topic) -> None:
    """A registry that never answers holds an event up no longer than the broker may."""

    async def scenario(away: Codec) -> tuple[Problem, float]:
        async with publishing(broker, away, timeout_s=1.0) as publisher:
            started = time.monotonic()
            return await refused(publisher.publish(topic, event(1))), time.monotonic() - started

    with socket.create_server(("127.0.0.1", 0)) as silent:
        loop = asyncio.new_event_loop()
        away = Codec(f"http://127.0.0.1:{silent.getsockname()[1]}")
        problem, seconds = loop.run_until_complete(scenario(away))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    away.close()
    assert (problem.status, problem.title) == (503, "Registry is away")
    assert seconds < 2.0


def test_a_full_queue_is_waited_out(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """More events than the queue holds wait for room and all arrive."""

    async def scenario() -> list[Receipt]:
        async with publishing(broker, codec, **{"queue.buffering.max.messages": 10}) as publisher:
            return await asyncio.gather(*(publisher.publish(topic, event(n)) for n in range(500)))

    receipts = asyncio.run(scenario())
    assert len({(r.partition, r.offset) for r in receipts}) == 500
    assert sum(ends(broker, topic)) == 500


def test_a_queue_that_stays_full_refuses_in_time(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """Without a broker, what found no room was surely not accepted; what was queued is unknown."""

    async def scenario() -> tuple[list[Problem], float]:
        options = {"timeout_s": 1.0, "queue.buffering.max.messages": 10}
        async with publishing(NOBODY, codec, **options) as publisher:
            started = time.monotonic()
            problems = await asyncio.gather(*(refused(publisher.publish(topic, event(n))) for n in range(30)))
            return problems, time.monotonic() - started

    problems, seconds = asyncio.run(scenario())
    assert seconds < 2.0
    assert {p.status for p in problems} == {503}
    assert all(p.headers and "Retry-After" in p.headers for p in problems)
    titles = [p.title for p in problems]
    assert (titles.count("Outcome unknown"), titles.count("Too busy")) == (10, 20)


def test_closing_waits_for_what_is_under_way(broker: KafkaAccess, codec: Codec, topic: Topic) -> None:
    """Events handed over before `close` get their acknowledgement."""

    async def scenario() -> list[Receipt]:
        async with publishing(broker, codec, **{"linger.ms": 500}) as publisher:
            await publisher.publish(topic, event(0))
            tasks = [asyncio.create_task(publisher.publish(topic, event(n))) for n in range(1, 101)]
            await asyncio.sleep(0.05)
            assert not any(t.done() for t in tasks)
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(scenario())) == 100
    assert sum(ends(broker, topic)) == 101


@pytest.mark.faults
def test_a_broker_that_is_killed_is_503_in_time_and_comes_back(
    registry: Settings, codec: Codec, undeclared_topic: Topic, tmp_path: Path
) -> None:
    """With the broker killed, `publish` answers 503, outcome unknown, within its time; when the broker is
    back it works again, and every record that was acknowledged is there."""
    if choose(registry).kind == "docker":
        pytest.skip("kills a native broker of its own; here brokers are containers")
    topic = undeclared_topic
    own = Settings(
        {
            **registry.environ,
            "MILLRACE_HOME": str(tmp_path / "home"),
            "MILLRACE_PORT_BASE": str(registry.number("port_base") + 200),
            "MILLRACE_KAFKA_JVM": "-Xms256m -Xmx512m",
        }
    )
    kafka = Kafka(own)
    instance = NativeServices(own)
    instance.components = [kafka]
    instance.up(print)
    try:
        ensure_topics(own.kafka, [TopicSpec.of(topic)])
        codec.register(topic)

        async def scenario() -> list[Receipt]:
            async with publishing(own.kafka, codec, timeout_s=3.0) as publisher:
                receipts = [await publisher.publish(topic, event(n)) for n in range(20)]
                assert await publisher.unreachable() is None
                pid = instance.process(kafka).pid()
                assert pid is not None
                os.kill(pid, signal.SIGKILL)

                started = time.monotonic()
                problems = await asyncio.gather(
                    *(refused(publisher.publish(topic, event(n))) for n in range(20, 25))
                )
                assert time.monotonic() - started < 4.0
                for n, problem in enumerate(problems, start=20):
                    assert (problem.status, problem.title) == (503, "Outcome unknown")
                    assert f"event-{n}" in problem.detail
                    assert "same event id" in problem.detail
                    assert problem.headers is not None
                    assert int(problem.headers["Retry-After"]) > 0
                assert "does not answer" in (await publisher.unreachable() or "")

                await asyncio.to_thread(instance.up, print)
                deadline = time.monotonic() + 30
                while True:
                    try:
                        receipts.append(await publisher.publish(topic, event(20)))
                        break
                    except Problem:
                        assert time.monotonic() < deadline, "publishing did not recover"
                assert await publisher.unreachable() is None
                return receipts

        receipts = asyncio.run(scenario())
        for n, receipt in enumerate(receipts):
            (message,) = read(own.kafka, topic, receipt.partition, receipt.offset)
            value = message.value()
            assert isinstance(value, bytes)
            decoded = codec.decode(topic, value)
            assert decoded.event["event_id"] == f"event-{n}"
    finally:
        instance.down(True, print)
