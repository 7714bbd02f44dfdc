"""A member of a group that dies within the rebalance in which it gives partitions up."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from infra.broker import Source
from infra.checkpoints import TopicPartition
from infra.kafka_access import KafkaAccess
from tests.infra.test_source import PARTITIONS, Positions


def die(_: Iterable[TopicPartition]) -> None:
    """As by SIGKILL: nothing is told to anybody."""
    os._exit(9)


def main() -> None:
    """Arguments: bootstrap servers, topic. Says `owns` when all partitions are its own."""
    servers, topic = sys.argv[1:]
    source = Source(KafkaAccess(servers), topic, [topic], Positions().claim, die, "first")
    told = False
    while True:
        source.poll(100, 0.2)
        if not told and len(source.assignment) == PARTITIONS:
            told = True
            sys.stdout.write("owns\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
