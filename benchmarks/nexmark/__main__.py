"""Nexmark's queries from topic to topic: `python -m benchmarks.nexmark`.

Each subject answers one query a slice, over the same Avro records on Kafka, with Avro records. What counts
are the records that the query reads: the bids, for q8 the persons and auctions. All results of every slice
are compared with an oracle.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import (
    OURS,
    Run,
    Sampler,
    Slice,
    SubjectFailed,
    alone,
    alternate,
    arguments,
    delete_topics,
    job,
    job_environ,
    python_of,
    report,
    services,
)
from benchmarks.nexmark.declared import AUCTIONS, BIDS, PERSONS, RESULTS, Declared, create
from benchmarks.nexmark.oracle import Expected, expected
from benchmarks.nexmark.stream import START_MS, Rows, Stream
from benchmarks.transactions import Appended, send
from infra.broker import ADMIN_SECONDS, admin
from infra.codec import Codec
from infra.columns import Columns
from infra.settings import Settings
from infra.topic_log import ends, partitions, read
from schemas.declare import Topic

PEERS = ("quix", "bytewax", "pathway")
INEXACT = frozenset(f"{peer} {query}" for peer in ("quix", "pathway") for query in ("q5", "q7"))
"""They close a window over all partitions by the newest event time of any, less a grace. No grace is surely
enough, and with those tried some slices lacked bids: they run when asked for, and may fail their check."""
CHUNK = 20_000
SHORTEST_SECONDS = 3.0
"""A window's result comes with the last partition that is read up to it. How far others are ahead of that one
is the error of a figure: much where a slice is over at once, little over millions of records."""
BATCH_BYTES = 65_536
LONGER = 4
"""q8 reads four events of fifty: its stream is so many times as long, or it would be over at once."""


class Reached:
    """How many records a subject has read, told from its results: they are spread evenly over the stream."""

    def __init__(self, settings: Settings, results: Topic, wanted: Expected) -> None:
        self._appended = Appended(settings, results)
        self._wanted = wanted

    def __call__(self) -> int:
        counted = self._wanted.counted
        return min(self._appended(), counted) * self._wanted.inputs // counted


def fill(settings: Settings, codec: Codec, rows: Rows) -> None:
    """Append all events of a topic; all are acknowledged on return."""
    columns = Columns(codec, rows.topic)

    def records() -> Iterator[tuple[str, bytes]]:
        keys = rows.numbers[rows.topic.key].tolist()
        for start in range(0, len(rows), CHUNK):
            values = columns.encode(rows.batch(np.arange(start, min(start + CHUNK, len(rows)))))
            yield from zip(map(str, keys[start : start + CHUNK]), values, strict=True)

    # As of a live topic: with batches of a megabyte, partitions that are read in turn lie minutes apart.
    send(settings, rows.topic, records(), **{"batch.size": BATCH_BYTES})
    print(f"{len(rows):,} {rows.topic.name} on their topic")


def values_of(settings: Settings, found_in: Topic) -> Iterator[list[bytes]]:
    """The values of all records that a topic has now, in lists."""
    places = partitions([found_in])
    end = ends(admin(settings.kafka), places)
    for messages in read(settings.kafka, dict.fromkeys(places, 0), end):
        yield [message.value() or b"" for message in messages]


def main() -> int:
    parser = arguments(__doc__, records=5_000_000)
    parser.set_defaults(seconds=10.0)  # of 20 subjects
    parser.add_argument("--queries", default=",".join(RESULTS), help="queries to run, comma separated")
    parser.add_argument("--inexact", action="store_true", help=f"also {', '.join(sorted(INEXACT))}")
    chosen = parser.parse_args()
    queries = chosen.queries.split(",")
    subjects = [s for s in (OURS, *PEERS) if not chosen.only or s in chosen.only.split(",")]
    pythons = {peer: python_of(peer) for peer in PEERS if peer in subjects}
    with alone(), services(chosen.port_base) as settings:
        codec = Codec(settings.schema_registry_url)
        stream, longer = Stream(chosen.records), Stream(chosen.records * LONGER)
        create(settings, codec, [t for topic in (PERSONS, AUCTIONS, BIDS) for t in (topic, topic.dlq)])
        for rows in (longer.persons, longer.auctions, stream.bids):
            fill(settings, codec, rows)
        wanted = {query: expected(query, longer if query == "q8" else stream) for query in queries}
        client = admin(settings.kafka)
        before = set(client.list_topics(timeout=ADMIN_SECONDS).topics)

        def one(name: str, n: int) -> Run:
            subject, _, query = name.partition(" ")
            tag = f"{query}-{subject}-{n}"
            declared = Declared(query, tag)
            create(settings, codec, declared.own_topics)
            told = job(
                settings,
                tag,
                query=query,
                begins_ms=START_MS,
                partitions=BIDS.partitions,
                sources=[t.name for t in declared.inputs],
                source_schema=str(declared.inputs[0].schema_path),
                second_schema=str(declared.inputs[-1].schema_path),
                target=declared.results.name,
                target_schema=str(declared.results.schema_path),
                target_schema_id=codec.register(declared.results),
            )
            program = ["-m", "benchmarks.nexmark.ours"]
            if subject != OURS:
                program = [f"benchmarks/peers/{subject}/nexmark.py"]
            sampler = (
                Sampler(f"nexmark-{query}", chosen.seconds) if chosen.profile and subject == OURS else None
            )
            try:
                measured = Slice(
                    name=f"nexmark-{tag}",
                    command=[pythons.get(subject, sys.executable), *program],
                    environ=job_environ(settings, told),
                    progress=Reached(settings, declared.results, wanted[query]),
                    total=wanted[query].inputs,
                    seconds=chosen.seconds,
                    while_measured=sampler.start if sampler else None,
                ).run()
                if measured.seconds < SHORTEST_SECONDS:
                    raise SubjectFailed(
                        f"{name} was measured for {measured.seconds:.1f} s, too short while partitions are"
                        " read in turn; give --records a larger number"
                    )
                found = values_of(settings, declared.results)
                check = wanted[query].check(found, Columns(codec, declared.results))
            finally:
                # Some peers make topics of their own.
                delete_topics(settings, set(client.list_topics(timeout=ADMIN_SECONDS).topics) - before)
            if sampler:
                sampler.show()
            return Run(measured, check)

        names = [f"{subject} {query}" for query in queries for subject in subjects]
        left = [name for name in names if name in INEXACT and not chosen.inexact]
        runs = alternate([name for name in names if name not in left], "", chosen.slices, one)
    code = report("nexmark", "records/s", runs)
    if left:
        print(f"not run, as they may lose bids (--inexact runs them): {', '.join(left)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
