"""A member of a consumer group that hands out batches: what it does around pauses and rebalances."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from confluent_kafka import Producer

from infra.broker import Source, TopicSpec, ensure_topics
from infra.checkpoints import Claim, LogBounds, TopicPartition
from infra.settings import Settings
from schemas.declare import RECORD_BYTES

PARTITIONS = 2
IDLE_SECONDS = 8.0


class Positions:
    """Claims for a source without a database: each partition from where it was last read to."""

    def __init__(self) -> None:
        self.next: dict[TopicPartition, int] = {}

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> Mapping[TopicPartition, Claim]:
        return {at: Claim(1, self.next.get(at, 0)) for at in logs}

    def release(self, partitions: Iterable[TopicPartition]) -> None:
        """Nothing to keep."""


def poll_until(source: Source, positions: Positions, holds: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        for batch in source.poll(100, 0.2):
            positions.next[batch.at] = batch.next_offset


def test_a_partition_given_up_while_paused_is_read_when_it_comes_back(registry: Settings) -> None:
    """Revoked while its source waits for a service, and assigned to it again later, it goes on."""
    access, topic = registry.kafka, "paused-and-back"
    ensure_topics(access, [TopicSpec(topic, PARTITIONS, 86_400_000, RECORD_BYTES)])
    positions = Positions()
    with ExitStack() as stack:

        def member() -> Source:
            source = Source(access, topic, [topic], claim=positions.claim, release=positions.release)
            stack.callback(source.close)
            return source

        first = member()
        poll_until(first, positions, lambda: len(first.assignment) == PARTITIONS)
        waiting = threading.Thread(target=first.idle, args=(IDLE_SECONDS,))
        waiting.start()
        second = member()
        poll_until(second, positions, lambda: len(second.assignment) == 1, IDLE_SECONDS - 1)
        waiting.join()
        second.close()
        poll_until(first, positions, lambda: len(first.assignment) == PARTITIONS)
        producer = Producer(access.config())
        for partition in range(PARTITIONS):
            producer.produce(topic, b"x", partition=partition)
        assert producer.flush(30) == 0
        poll_until(first, positions, lambda: sorted(positions.next.values()) == [1] * PARTITIONS)


def test_a_member_killed_while_partitions_move_leaves_none_to_nobody(registry: Settings) -> None:
    """Killed after it has given up and before it has said so, it comes back under its name: all are read."""
    access, topic = registry.kafka, "killed-while-they-move"
    ensure_topics(access, [TopicSpec(topic, PARTITIONS, 86_400_000, RECORD_BYTES)])
    command = (sys.executable, "-m", "tests.infra.dying_member", access.servers, topic)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dying, ExitStack() as stack:
        stack.callback(dying.kill)
        assert dying.stdout is not None and dying.stdout.readline() == "owns\n"
        members = {}
        for name in ("second", "first"):
            positions = Positions()
            source = members[name] = Source(
                access, topic, [topic], positions.claim, positions.release, instance_id=name
            )
            stack.callback(source.close)
            if name == "second":
                # It joins, and so makes the first one give up.
                poll_until(source, positions, lambda: dying.poll() is not None)

        def owned() -> int:
            for source in members.values():
                source.poll(100, 0.2)
            return sum(len(source.assignment) for source in members.values())

        end = time.monotonic() + 40
        while owned() < PARTITIONS:
            assert time.monotonic() < end, {name: source.assignment for name, source in members.items()}
