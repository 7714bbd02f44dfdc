"""A pipeline's records, made by its own simulated traffic, its own connectors and its own processors.

Nothing here knows a domain: whoever declares a pipeline and gives it traffic is recorded. Kafka's part is
taken by `tests.simulation.broker`, so that every run has the same offsets; registry, database and object
store are the real ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from random import Random
from typing import Any

import time_machine
from confluent_kafka import Message
from fastapi.testclient import TestClient
from paho.mqtt.client import MQTTMessage

from connectors.fleet.mqtt import Bridge
from connectors.fraud.decisions import Decisions, decisions
from connectors.gateway import create_app
from connectors.publish import Receipt, publisher
from connectors.traffic import Http, Mqtt, Raw, find_steps
from infra.broker import PartitionBatch
from infra.checkpoints import Checkpoints, TopicPartition
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import Pipeline, Pipelines, Processor, Topic
from schemas.platform import TICK
from sinks.rows import RowMapping
from sinks.writer import Writer
from streams.decide import LogicFactory
from streams.restore import restore
from streams.runner import Runner
from tests.signed_in import Everybody, Plenty
from tests.simulation.broker import START_MS, Broker, SimulatedProducer

PARTITIONS = 2
BATCH = 64
SEED = 7
RECORDS = 240
STEPS = {"imaging": 24}
"""Steps where another number than `RECORDS` is due: each of these is a file that a child process reads."""

Place = tuple[str, int, int]
Answer = tuple[int, bytes, bytes]
"""Partition, key, value."""


@dataclass(frozen=True)
class Decided:
    """What came of a partition: answers by topic, dead letters, and the state that was stored in the end."""

    answers: dict[str, list[Answer]]
    letters: list[Answer]
    state: list[bytes]


@dataclass
class Recording:
    """What a run of the pipeline left on its topics."""

    settings: Settings
    codec: Codec
    pipeline: Pipeline
    logics: Mapping[str, LogicFactory]
    mappings: tuple[RowMapping, ...]
    broker: Broker

    def forget(self, *consumers: str) -> None:
        """As if these consumers had never run."""
        with connect(self.settings.database_url) as connection:
            for table in ("checkpoints", "state_chunks", "version_activations", "range_records"):
                connection.execute(
                    f"DELETE FROM {table} WHERE consumer = ANY(%s)".encode(), (list(consumers),)
                )

    def sources(self, processor: Processor) -> list[TopicPartition]:
        """The partitions that a processor reads, and that hold something."""
        return [
            at
            for topic in processor.sources
            for at in self.broker.places(topic.name)
            if self.broker.bounds(at).end
        ]

    # Processors

    def runner(self, processor: Processor, out: Broker) -> Runner:
        """The processor with its own logic; what it answers goes to `out`."""
        return Runner(
            self.pipeline,
            processor,
            self.logics[processor.name](),
            self.codec,
            SimulatedProducer(out).as_producer,
            self.settings.database_url,
            Progress(processor.name, [t.name for t in processor.sources], Health()),
        )

    def decide(
        self,
        processor: Processor,
        at: TopicPartition,
        sizes: Iterator[int],
        restarts: frozenset[int] = frozenset(),
        around: Callable[[Callable[[], None]], None] = lambda call: call(),
    ) -> Decided:
        """What comes of one partition, cut into batches of these sizes.

        After the n-th batch, for each n of `restarts`, another process takes over. `around` is given each
        decision to call.
        """
        self.forget(processor.name)
        out = empty(self.pipeline)
        log = {at: self.broker.bounds(at)}
        position, n = log[at].start, 0
        while position < log[at].end:
            with closing(self.runner(processor, out)) as runner:
                claim = runner.claim(log)[at]
                assert claim.next_offset == position
                while position < log[at].end:
                    messages, position = self.broker.read(at, position, next(sizes))
                    prepared = runner.prepare([PartitionBatch(at, claim.epoch, messages, position)])
                    around(partial(runner.apply, prepared))
                    n += 1
                    if n in restarts:
                        break
                runner.checkpoint()
        state = self.logics[processor.name]().new_state()
        with connect(self.settings.database_url) as connection:
            restore(state, Checkpoints(processor.name).read_state(connection, at))
        answers = {t.name: [_answer(m) for m in out.records(t.name)] for t in processor.outputs}
        # What is undecodable is told before what is decided: the order of dead letters is not promised.
        letters = sorted(_answer(m) for t in processor.sources for m in out.records(t.dlq.name))
        return Decided(answers, letters, list(state.snapshot()))

    # The sink

    def _writer(self, broker: Broker) -> Writer:
        return Writer(
            self.pipeline,
            self.mappings,
            self.codec,
            SimulatedProducer(broker).as_producer,
            self.settings.database_url,
            Progress(self.pipeline.sink_name, [t.name for t in self.pipeline.sink_topics], Health()),
        )

    def store(self, broker: Broker, sizes: Iterator[int], *, from_start: bool = False) -> None:
        """Store what the sink's topics hold beyond its positions, in batches of these sizes a partition.

        With `from_start` all of it is handed to the sink once more, whatever its positions say.
        """
        with closing(self._writer(broker)) as writer:
            places = [at for topic in writer.topics for at in broker.places(topic)]
            claims = writer.claim({at: broker.bounds(at) for at in places})
            reading = {at: 0 if from_start else claim.next_offset for at, claim in claims.items()}
            while any(reading[at] < broker.bounds(at).end for at in places):
                batches = []
                for at in places:
                    messages, end = broker.read(at, reading[at], next(sizes))
                    batches.append(PartitionBatch(at, claims[at].epoch, messages, end))
                    reading[at] = end
                writer.write(batches)

    def clear(self) -> None:
        """No row, no dead letter, no position of the sink is left."""
        self.forget(self.pipeline.sink_name)
        with connect(self.settings.database_url) as connection:
            # Past the triggers that keep ledgers append-only.
            connection.execute("SET session_replication_role = replica")
            for table in self.pipeline.tables:
                connection.execute(f"DELETE FROM {table.name}".encode())
            connection.execute("DELETE FROM dead_letters WHERE pipeline = %s", (self.pipeline.name,))

    def rows(self, *, with_source: bool = True) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table, as the database's own text, in order."""
        with connect(self.settings.database_url) as connection:
            return {
                t.name: table_rows(connection, t.name, t.columns, with_source) for t in self.pipeline.tables
            }


def table_rows(
    connection: Connection, name: str, columns: Sequence[str], with_source: bool
) -> list[tuple[Any, ...]]:
    source = ("source_partition", "source_offset") if with_source else ()
    chosen = ", ".join(f'"{c}"::text' for c in (*columns, *source))
    return sorted(
        connection.execute(f"SELECT {chosen} FROM {name}".encode()).fetchall(),
        key=lambda row: tuple("" if v is None else str(v) for v in row),
    )


def _answer(message: Message) -> Answer:
    return int(message.partition() or 0), message.key() or b"", message.value() or b""


def empty(pipeline: Pipeline) -> Broker:
    """The pipeline's topics, with fewer partitions than declared and nothing in them."""
    return Broker(
        {t.name: min(PARTITIONS, t.partitions) for t in pipeline.topics}
        | {t.dlq.name: 1 for t in pipeline.topics}
    )


def record(settings: Settings, codec: Codec, pipeline: Pipeline) -> Recording:
    """Let the pipeline's traffic through its connectors, then its processors run until nothing waits."""
    broker = empty(pipeline)
    # The traffic draws by the hour: at another one the same seed might yield no poison.
    with time_machine.travel(START_MS / 1000):
        _connect(settings, codec, pipeline, broker)
    recording = Recording(
        settings,
        codec,
        pipeline,
        importlib.import_module(f"streams.{pipeline.name}").PROCESSORS,
        importlib.import_module(f"sinks.{pipeline.name}").ROWS,
        broker,
    )
    recording.forget(*(p.name for p in pipeline.processors))
    runners = []
    for processor in pipeline.processors:
        runner = recording.runner(processor, broker)
        places = [at for t in processor.sources for at in broker.places(t.name)]
        claims = runner.claim({at: broker.bounds(at) for at in places})
        runners.append((runner, claims, dict.fromkeys(places, 0)))
    while any(broker.bounds(at).end > p for _, _, reading in runners for at, p in reading.items()):
        for runner, claims, reading in runners:
            batches = []
            for at in reading:
                messages, reading[at] = broker.read(at, reading[at], BATCH)
                batches.append(PartitionBatch(at, claims[at].epoch, messages, reading[at]))
            runner.apply(runner.prepare(batches))
            runner.checkpoint()
    for runner, _, _ in runners:
        runner.close()
    return recording


class _Unheard(Decisions):
    """Of a gateway that hears no replies: simulated traffic asks for acknowledgements alone."""

    def __init__(self) -> None:
        pass  # no thread, no broker


def _connect(settings: Settings, codec: Codec, pipeline: Pipeline, broker: Broker) -> None:
    """Send the domain's simulated traffic through the gateway's and the bridge's own code."""
    steps, rate = find_steps(Pipelines.of(pipeline))[pipeline.name]
    app = create_app(settings)
    app.state.authenticator, app.state.limits = Everybody(), Plenty()
    app.dependency_overrides[publisher] = lambda: _Publisher(codec, broker)
    app.dependency_overrides[decisions] = _Unheard
    gateway = TestClient(app)  # without its lifespan, which would connect to Kafka
    bridge: Bridge | None = None
    now_ms = broker.now_ms
    # The clock that the traffic sees moves as fast as its steps come.
    for step in islice(steps(Random(SEED), lambda: broker.now_ms), STEPS.get(pipeline.name, RECORDS)):
        broker.now_ms = now_ms = max(broker.now_ms, now_ms + int(1000 / rate))
        match step:
            case Raw():
                broker.append(step.topic.name, step.value, step.key)
            case Http():
                gateway.request(
                    step.method,
                    step.path,
                    json=step.json,
                    files=step.files,
                    content=step.content,
                    headers=dict(step.headers),
                )
            case Mqtt():
                if bridge is None:
                    bridge = Bridge(settings, Health())
                    bridge._producer = SimulatedProducer(broker).as_producer
                message = MQTTMessage(topic=step.topic.encode())
                message.payload = step.payload
                bridge._on_message(bridge._client, None, message)
                bridge._producer.flush()
    if bridge is not None:
        bridge._codec.close()
    # Where a topic wants ticks, its partitions get some.
    for topic in pipeline.topics:
        for at in broker.places(topic.name) if topic.tick_ms is not None else ():
            event = {TICK.event_id: f"{at}", "tenant": "default", TICK.event_time: broker.now_ms}
            broker.append(topic.name, codec.encode(TICK, event), b"", at.partition)


class _Publisher:
    """The gateway's publisher, with the broker in memory behind it."""

    def __init__(self, codec: Codec, broker: Broker) -> None:
        self._codec, self._broker = codec, broker

    async def publish(self, topic: Topic, event: dict[str, Any]) -> Receipt:
        value = self._codec.encode(topic, event)
        message = self._broker.append(topic.name, value, str(event[topic.key]).encode())
        return Receipt(topic.name, message.partition() or 0, message.offset() or 0)

    async def publish_many(self, topic: Topic, events: Sequence[dict[str, Any]]) -> list[Receipt]:
        return [await self.publish(topic, event) for event in events]


def place(message: Message) -> Place:
    return str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)
