"""The orders topology in memory: partitioned topics, the real logics, crashes, and repeated records."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from schemas.declare import Processor, Topic
from schemas.orders import PIPELINE, STOCK_RECEIPTS
from streams.decide import Event, Logic, Outcomes, Record, State
from streams.orders import PROCESSORS

START_MS = 1_700_000_000_000


@dataclass
class Task:
    """One processor on one partition of one source topic: its state, offset and last checkpoint."""

    processor: Processor
    source: Topic
    partition: int
    logic: Logic[State]
    state: State
    offset: int = 0
    checkpoint_offset: int = 0
    checkpoint: list[bytes] = field(default_factory=list)

    def save(self) -> None:
        """Checkpoint: the state's delta with the offset up to which it is true."""
        if (delta := self.state.delta()) is not None:
            self.checkpoint.append(delta)
        self.checkpoint_offset = self.offset

    def compact(self) -> None:
        """Replace the deltas by a snapshot of the state that they give."""
        self.save()
        self.checkpoint = list(self.state.snapshot())

    def crash(self) -> None:
        """Lose the memory and come back with what the last checkpoint holds."""
        self.state = self.logic.new_state()
        for chunk in self.checkpoint:
            self.state.load(chunk)
        self.offset = self.checkpoint_offset


class Topology:
    """All processors over in-memory logs. A record is (append time, event), in the order of its partition."""

    def __init__(self, partitions: int = 3) -> None:
        self.partitions = partitions
        self.now_ms = START_MS
        self.logs: dict[str, list[list[tuple[int, Event]]]] = {
            topic.name: [[] for _ in range(partitions)] for topic in PIPELINE.topics
        }
        self.dead: list[tuple[str, str, str]] = []
        self.duplicates_total = 0
        self.tasks: list[Task] = []
        for processor in PIPELINE.processors:
            logic = PROCESSORS[processor.name]()
            for source in processor.sources:
                for partition in range(partitions):
                    self.tasks.append(Task(processor, source, partition, logic, logic.new_state()))

    def produce(self, topic: Topic, event: Event) -> None:
        """Append an event to the partition of its key."""
        partition = zlib.crc32(event[topic.key].encode()) % self.partitions
        self.now_ms += 1
        self.logs[topic.name][partition].append((self.now_ms, event))

    def waiting(self) -> list[Task]:
        """Tasks with unread records."""
        return [t for t in self.tasks if t.offset < len(self.logs[t.source.name][t.partition])]

    def advance(self, task: Task, most: int = 512) -> None:
        """Let a task decide its next records, at most `most`, and append what it emits."""
        log = self.logs[task.source.name][task.partition]
        batch = [
            Record(task.source.name, task.partition, offset, *log[offset])
            for offset in range(task.offset, min(task.offset + most, len(log)))
        ]
        out = Outcomes()
        task.logic.decide(task.state, batch, {}, out)
        for topic, event in out.emitted:
            self.produce(topic, event)
        for record, error_class, field_name, _ in out.dead:
            self.dead.append((record.event[task.source.event_id], error_class, field_name))
        self.duplicates_total += out.duplicates_total
        task.offset += len(batch)

    def drain(self, rng: Random | None = None) -> None:
        """Run until nothing is left to read; with `rng`, in a random interleaving and batch size."""
        while waiting := self.waiting():
            if rng is None:
                for task in waiting:
                    self.advance(task)
            else:
                self.advance(rng.choice(waiting), rng.choice((1, 2, 7, 512)))

    def events(self, topic: Topic) -> Iterator[Event]:
        """All events of a topic, partition by partition."""
        for log in self.logs[topic.name]:
            for _, event in log:
                yield event


def order_event(
    order_id: str,
    kind: str,
    lines: Sequence[tuple[str, int]] = (),
    event_id: str | None = None,
    occurred_at: int = START_MS,
) -> Event:
    """An event of `order-events` at 100 minor units a piece."""
    return {
        "event_id": event_id or f"{order_id}-{kind}",
        "tenant": "default",
        "occurred_at": occurred_at,
        "order_id": order_id,
        "kind": kind,
        "customer_id": "c1",
        "currency": None if kind == "cancelled" else "EUR",
        "lines": [{"sku": sku, "quantity": quantity, "unit_price_minor": 100} for sku, quantity in lines],
    }


def receipt(sku: str, quantity: int, event_id: str | None = None, occurred_at: int = START_MS) -> Event:
    """An event of `stock-receipts`."""
    return {
        "event_id": event_id or f"opening-{sku}",
        "tenant": "default",
        "occurred_at": occurred_at,
        "sku": sku,
        "quantity": quantity,
    }


def with_stock(stock: dict[str, int], partitions: int = 3) -> Topology:
    """A topology that has received opening stock."""
    topology = Topology(partitions)
    for sku, quantity in stock.items():
        topology.produce(STOCK_RECEIPTS, receipt(sku, quantity))
    topology.drain()
    return topology
