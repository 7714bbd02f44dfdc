"""Sends records when they are due, whoever keeps up or not: `python -m benchmarks.open_loop` is the sender.

Record k of a stretch is due k / rate seconds after its beginning. Latencies count from there and never from
when it really went out: a sender that waits for a slow receiver would leave the worst waits unmeasured.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.broker import producer
from infra.kafka_access import KafkaAccess

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TICK_NS = 2_000_000
"""Records that fell due meanwhile go out together: a wake-up for each would cost more than the record."""
BATCH = 2_048
"""Records that are taken from the file at once; what that takes (some 0.1 ms) must not delay a tick."""
LEAD_NS = 100_000_000
FLUSH_SECONDS = 60.0
_FILE = pa.schema([("key", pa.string()), ("value", pa.binary())])


@dataclass(frozen=True)
class Schedule:
    """The records from number `first` on, `rate` of them a second; those of the warm-up are not measured."""

    first: int
    rate: int
    warm_seconds: float
    seconds: float

    @property
    def warm(self) -> int:
        """How many are sent before the measured ones."""
        return int(self.rate * self.warm_seconds)

    @property
    def records(self) -> int:
        return self.warm + int(self.rate * self.seconds)

    @property
    def end(self) -> int:
        """The number after the last one's."""
        return self.first + self.records

    def due_ns(self) -> Ints:
        """When each is due, from the beginning."""
        return due_ns(self.records, self.rate)


def due_ns(records: int, rate: int) -> Ints:
    """When each of so many records is due, in nanoseconds from the beginning."""
    return np.arange(records, dtype=np.int64) * 1_000_000_000 // rate


def pace(
    records: Iterator[tuple[str, bytes]],
    due: Ints,
    send: Callable[[str, bytes], None],
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Ints:
    """Send each record as soon as it is due, in ticks; returns when each went out, on the clock of `due`.

    A tick that comes late sends all that fell due before it: nothing is left out or moved.
    """
    sent = np.empty(len(due), dtype=np.int64)
    done = 0
    while done < len(due):
        now = clock()
        end = int(np.searchsorted(due, now, side="right"))
        if end == done:
            sleep((int(due[done]) + TICK_NS - now) / 1e9)
            continue
        for _ in range(end - done):
            send(*next(records))
        sent[done:end] = clock()
        done = end
    return sent


def write(path: Path, batches: Iterable[tuple[list[str], list[bytes]]]) -> None:
    """Store encoded records, keys and values, for `read`."""
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, _FILE) as file:
        for keys, values in batches:
            arrays = [pa.array(keys, pa.string()), pa.array(values, pa.binary())]
            file.write_table(pa.Table.from_arrays(arrays, schema=_FILE), max_chunksize=BATCH)


def read(path: Path) -> Iterator[tuple[str, bytes]]:
    """The stored records, in order; their file is mapped, not read."""
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        for n in range(file.num_record_batches):
            keys, values = (column.to_pylist() for column in file.get_batch(n).columns)
            yield from zip(keys, values, strict=True)


def main() -> int:
    """Send a stretch: says `begin <monotonic ns>`, then leaves in a file how late each record went out."""
    job: dict[str, Any] = json.loads(os.environ["BENCH_JOB"])
    topic, failures = job["topic"], []
    # As our connectors: linger, acks and compression are those that production has.
    sender = producer(
        KafkaAccess(job["bootstrap"]),
        **{
            "delivery.report.only.error": True,
            "on_delivery": lambda error, _: failures.append(error) if error else None,
        },
    )
    sender.list_topics(topic, timeout=30)
    poll, produce = sender.poll, sender.produce

    def send(key: str, value: bytes) -> None:
        while True:
            try:
                produce(topic, value, key)
                return
            except BufferError:
                poll(0.001)

    records = read(Path(job["records"]))
    gc.disable()
    begin = time.monotonic_ns() + LEAD_NS
    print(f"begin {begin}", flush=True)
    due = due_ns(job["count"], job["rate"]) + begin
    sent = pace(records, due, send)
    if (left := sender.flush(FLUSH_SECONDS)) or failures:
        sys.exit(f"{left} records were not acknowledged, {len(failures)} refused: {failures[:1]}")
    np.save(job["out"], sent - due)
    return 0


if __name__ == "__main__":
    sys.exit(main())
