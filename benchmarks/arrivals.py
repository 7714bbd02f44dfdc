"""When an answer can be read: `python -m benchmarks.arrivals topic|table` watches, the rest reckons.

On the topic, by a consumer of its own that reads committed records only. In the table, by the sink's
committed positions, asked every few milliseconds on a connection of its own: the transaction that moves a
position past an answer's offset is the one that stores its row. Both note a time after the fact, so that
what they see is late rather than early.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, TopicPartition

from benchmarks.transactions import ID_AT
from infra.postgres import connect

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ASK_SECONDS = 0.004
READ_RECORDS = 4_096
QUIET_SECONDS = 0.3
"""Asked to end, the watcher of a topic goes on until nothing has come for so long."""
PERCENTILES = (50, 95, 99)
ENDS_PER_RATE = 2.0
"""A rate is held only where what is outstanding at the end is no more than so many seconds' records."""
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Waits:
    """Percentiles of waits, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, waits_ns: Ints) -> Waits:
        """Of some waits; each percentile is one of them, none is made up in between."""
        found = np.percentile(waits_ns, PERCENTILES, method="higher") / 1e6
        p50, p95, p99 = (round(float(p), 3) for p in found)
        return cls(p50, p95, p99, round(float(waits_ns.max() / 1e6), 3))


@dataclass(frozen=True)
class Arrivals:
    """Answers as they came: the number of the transaction that each answers, its place, and when."""

    number: Ints
    partition: Ints
    offset: Ints
    at_ns: Ints

    @classmethod
    def load(cls, path: Path) -> Arrivals:
        """As the watcher of a topic has left them."""
        with np.load(path) as found:
            return cls(*(found[name] for name in ("number", "partition", "offset", "at_ns")))

    def first_of(self, first: int, end: int) -> Arrivals:
        """The first answer to each of the numbers from `first` up to `end`, in their order.

        Raises LookupError where one has none.
        """
        here = np.flatnonzero((self.number >= first) & (self.number < end))
        numbers, which = np.unique(self.number[here], return_index=True)
        if len(numbers) < end - first:
            missing = int(np.setdiff1d(np.arange(first, end), numbers)[0])
            raise LookupError(f"{end - first - len(numbers)} transactions have no answer, {missing} is one")
        rows = here[which]
        return Arrivals(*(column[rows] for column in (self.number, self.partition, self.offset, self.at_ns)))


@dataclass(frozen=True)
class Positions:
    """A sink's committed positions as they were seen: in time, so that of one partition they rise."""

    partition: Ints
    next_offset: Ints
    at_ns: Ints

    @classmethod
    def load(cls, path: Path) -> Positions:
        """As the watcher of a table has left them."""
        with np.load(path) as found:
            return cls(*(found[name] for name in ("partition", "next_offset", "at_ns")))

    def stored_ns(self, answers: Arrivals) -> Ints:
        """When each answer's row could be read. Raises LookupError where one was not seen."""
        found = np.full(len(answers.offset), NEVER)
        for partition in np.unique(answers.partition):
            rows = np.flatnonzero(answers.partition == partition)
            mine = np.flatnonzero(self.partition == partition)
            after = np.searchsorted(self.next_offset[mine], answers.offset[rows], side="right")
            seen = after < len(mine)
            found[rows[seen]] = self.at_ns[mine[after[seen]]]
        if (missing := int((found == NEVER).sum())) > 0:
            raise LookupError(f"{missing} rows were not seen to be stored")
        return found


def holds(due_ns: Ints, arrived_ns: Ints, rate: int) -> bool:
    """Whether a rate is held: what is outstanding neither grows nor is too much at the end.

    Compared are the second and the last quarter of the time in which records were due.
    """
    arrived = np.sort(arrived_ns)
    looks = np.linspace(due_ns[0], due_ns[-1], 401)[1:]
    outstanding = np.searchsorted(due_ns, looks, side="right") - np.searchsorted(arrived, looks, side="right")
    early, late = float(outstanding[100:200].mean()), float(outstanding[300:].mean())
    return late <= early * 1.5 + rate * 0.25 and float(outstanding[-1]) <= rate * ENDS_PER_RATE


# The watchers


class _Ending:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, *_: Any) -> None:
        self.is_set = True


def _watch_topic(job: dict[str, Any], ending: _Ending) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": job["bootstrap"],
            "group.id": "benchmark-arrivals",  # required; no group is joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
        }
    )
    consumer.assign([TopicPartition(job["topic"], int(p), offset) for p, offset in job["from"].items()])
    numbers, partitions, offsets = array("q"), array("q"), array("q")
    times, counts = array("q"), array("q")
    print("ready", flush=True)
    heard = time.monotonic()
    while not ending.is_set or time.monotonic() < heard + QUIET_SECONDS:
        # consume(n) waits for n records or the whole time-out: wait for one, then take what is there.
        messages = consumer.consume(1, 0.1)
        if not messages:
            continue
        messages += consumer.consume(READ_RECORDS - 1, 0)
        times.append(time.monotonic_ns())
        counts.append(len(messages))
        heard = time.monotonic()
        for message in messages:
            if (error := message.error()) is not None:
                raise RuntimeError(error.str())
            numbers.append(int((message.value() or b"")[ID_AT]))
            partitions.append(message.partition() or 0)
            offsets.append(message.offset() or 0)
    consumer.close()
    at_ns = np.repeat(np.asarray(times, dtype=np.int64), np.asarray(counts, dtype=np.int64))
    np.savez(job["out"], number=numbers, partition=partitions, offset=offsets, at_ns=at_ns)


def _watch_table(job: dict[str, Any], ending: _Ending) -> None:
    seen: dict[int, int] = {}
    partitions, offsets, times = array("q"), array("q"), array("q")
    with connect(job["database"], "benchmark-arrivals") as connection:
        print("ready", flush=True)
        last = False
        while not last:
            last = ending.is_set  # asked once more after the end
            rows = connection.execute(
                "SELECT partition, next_offset FROM checkpoints WHERE consumer = %s AND topic = %s",
                (job["consumer"], job["topic"]),
                prepare=True,
            ).fetchall()
            now = time.monotonic_ns()
            for row in rows:
                partition, offset = int(str(row[0])), int(str(row[1]))
                if seen.get(partition) != offset:
                    seen[partition] = offset
                    partitions.append(partition)
                    offsets.append(offset)
                    times.append(now)
            time.sleep(ASK_SECONDS)
    np.savez(job["out"], partition=partitions, next_offset=offsets, at_ns=times)


def main() -> int:
    """Watch until SIGTERM, then leave what was seen in a file. Says `ready` when nothing can be missed."""
    ending = _Ending()
    gc.disable()
    watch = {"topic": _watch_topic, "table": _watch_table}[sys.argv[1]]
    watch(json.loads(os.environ["BENCH_JOB"]), ending)
    return 0


if __name__ == "__main__":
    sys.exit(main())
