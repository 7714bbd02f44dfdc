"""What does not change with size: `python -m benchmarks.scale`, in parts (`--part rows,workers,keys`).

- rows: the sink's rate into a table that holds 1, 10 and 50 million rows already (`--millions`), in weeks
  with ids in the order of time as card_ledger is, and in one table with random ids.
- workers: one input by 1, 2 and 4 processes of one group; rates, and each card's results in their order.
- keys: the processor's rate with ten thousand and a million cards in its state.
- `--soak MINUTES`, by itself: memory of the fraud pipeline's processes, see `benchmarks.soak`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks import soak
from benchmarks.effects import effects
from benchmarks.figures import Figure, report
from benchmarks.filled import PARTITIONED, SINGLE, Arrangement, Filled, RandomIds
from benchmarks.harness import (
    OURS,
    Run,
    Slice,
    alone,
    alternate,
    arguments,
    delete_topics,
    job,
    job_environ,
    services,
)
from benchmarks.production import Position
from benchmarks.sink import Reference, fill
from benchmarks.transactions import Appended, Declared, Transactions, records_of, topic
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.settings import Settings

PARTS = ("rows", "workers", "keys")
MILLIONS = (1, 10, 50)
WORKERS = (1, 2, 4)
KEYS = (10_000, 1_000_000)
WHOLE_SECONDS = 600.0
"""Workers go through the whole input, so that all of it can be compared."""
TARGET_RATIO = 0.8


def main() -> int:
    parser = arguments(__doc__, records=1_000_000)
    parser.add_argument("--part", default=",".join(PARTS), help="parts to run, comma separated")
    parser.add_argument(
        "--millions", default=",".join(map(str, MILLIONS)), help="millions of rows already in the tables"
    )
    parser.add_argument("--keys", default=",".join(map(str, KEYS)), help="cards in the processor's state")
    parser.add_argument(
        "--soak",
        type=float,
        metavar="MINUTES",
        nargs="?",
        const=20.0,
        help="watch memory for so long instead",
    )
    chosen = parser.parse_args()
    figures: list[Figure] = []
    with alone(), services(chosen.port_base) as settings:
        if chosen.soak is not None:
            return soak.run(settings, chosen.soak)
        codec = Codec(settings.schema_registry_url)
        measure = Measure(settings, codec, chosen.slices, chosen.seconds, chosen.only)
        for part in chosen.part.split(","):
            if part == "rows":
                millions = [float(m) for m in chosen.millions.split(",")]
                figures += rows(measure, chosen.records, [int(m * 1e6) for m in millions])
            elif part == "workers":
                figures += workers(measure, chosen.records)
            elif part == "keys":
                figures += keys(measure, chosen.records, [int(k) for k in chosen.keys.split(",")])
            else:
                parser.error(f"there is no part {part!r}; give some of {', '.join(PARTS)}")
    code = report("scale", "rates, each to that of the first of its kind", figures, target_ratio=TARGET_RATIO)
    ratios = [ratio for f in figures if PARTITIONED.name in f.name and (ratio := f.more["ratio"]) is not None]
    if ratios:
        reached = all(float(ratio) >= TARGET_RATIO for ratio in ratios)
        print(
            f"target, rows in partitions at {TARGET_RATIO} of the first: {'reached' if reached else 'missed'}"
        )
    return code


class Measure:
    """How slices are run and what becomes of them."""

    def __init__(self, settings: Settings, codec: Codec, slices: int, seconds: float, only: str) -> None:
        self.settings, self.codec = settings, codec
        self.slices, self.seconds, self.only = slices, seconds, only

    def input_of(self, data: Transactions, tag: str) -> tuple[Declared, npt.NDArray[np.uint64]]:
        """A topic of the transactions, and the hashes of the results that should come of them."""
        declared = Declared(tag)
        declared.create(self.settings, self.codec)
        data.fill(self.settings, self.codec, declared.transactions)
        return declared, data.hashes(self.codec.encode(declared.scores, e) for e in data.scored())

    def processor(
        self,
        data: Transactions,
        source: Declared,
        expected: npt.NDArray[np.uint64],
        name: str,
        *,
        count: int = 1,
        prologue: int = 0,
        complete: bool = False,
    ) -> Run:
        """One slice of so many processes over the input."""
        settings = self.settings
        declared = Declared(name, source=source.transactions.name)
        declared.create(settings, self.codec)
        told = job(settings, name, source=source.transactions.name, target=declared.scores.name)
        ours = [sys.executable, "-m", "benchmarks.ours", "processor"]
        try:
            measured = Slice(
                name=f"scale-{name}",
                command=ours if count == 1 else [sys.executable, "-m", "benchmarks.group", str(count), *ours],
                environ=job_environ(settings, told),
                progress=Appended(settings, declared.scores),
                total=data.records,
                seconds=WHOLE_SECONDS if complete else self.seconds,
                prologue=prologue,
            ).run()
            check = effects(data, records_of(settings, declared.scores), expected, complete=complete)
        finally:
            delete_topics(settings, [declared.scores.name, declared.scores.dlq.name])
        return Run(measured, check)


def rows(measure: Measure, records: int, sizes: Sequence[int]) -> list[Figure]:
    """The sink's rate by the number of rows that are there."""
    with connect(measure.settings.database_url, "benchmark") as connection:
        # It would look at what was loaded, at one time or another.
        connection.execute("ALTER SYSTEM SET autovacuum = off")
        connection.execute("SELECT pg_reload_conf()")
        return [
            *_rows(measure, connection, PARTITIONED, Transactions(records), sizes),
            *_rows(measure, connection, SINGLE, RandomIds(records), sizes),
        ]


def _rows(
    measure: Measure,
    connection: Connection,
    arrangement: Arrangement,
    data: Transactions,
    sizes: Sequence[int],
) -> list[Figure]:
    settings = measure.settings
    first = Declared(f"rows-{arrangement.name}")
    first.create(settings, measure.codec)
    source = fill(settings, measure.codec, data, topic("scores", f"scores-{arrangement.name}"), None)
    reference = Reference(connection, data)
    reference.file.unlink()
    tables = {f"{arrangement.name} {size / 1e6:g} M": Filled(connection, arrangement, size) for size in sizes}
    for table in tables.values():
        table.load()

    def one(name: str, n: int) -> Run:
        table = tables[name]
        tag = f"{table.name}-{n}".replace("_", "-")
        place = {"table": table.name, "key": list(arrangement.key), "time": arrangement.time}
        declared = Declared(tag, source=first.transactions.name, scores=source.name, **place)
        told = job(settings, tag, source=source.name, transactions=first.transactions.name, declared=place)
        connection.execute("CHECKPOINT")
        sink = declared.pipeline.sink_name
        try:
            measured = Slice(
                name=f"scale-{tag}",
                command=[sys.executable, "-m", "benchmarks.ours", "sink"],
                environ=job_environ(settings, told),
                progress=Position(connection, sink, source),
                total=data.records,
                seconds=measure.seconds,
            ).run()
            return Run(measured, reference.check(table.slice_rows, sink))
        finally:
            table.restore()

    runs = alternate(list(tables), measure.only, measure.slices, one)
    for table in tables.values():
        table.drop()
    connection.execute("DROP TABLE reference")
    delete_topics(settings, [source.name])
    return compared(runs, "rows/s")


def workers(measure: Measure, records: int) -> list[Figure]:
    """One input by groups of several sizes: each must leave the same results in the same order."""
    data = Transactions(2 * records)  # in the first half the members come together
    source, expected = measure.input_of(data, "workers")
    counts = {f"{count} worker{'s' if count > 1 else ''}": count for count in WORKERS}

    def one(name: str, n: int) -> Run:
        count = counts[name]
        return measure.processor(
            data, source, expected, f"workers-{count}-{n}", count=count, prologue=records, complete=True
        )

    runs = alternate(list(counts), measure.only, measure.slices, one)
    delete_topics(measure.settings, [source.transactions.name])
    figures = compared(runs, "records/s")
    hashes = {check.hash for figure in figures for check in figure.checks}
    for figure in figures:
        figure.more["hash"] = "/".join(sorted({check.hash for check in figure.checks})) or None
        if len(hashes) > 1:
            figure.failed.append(f"results differ with the number of workers: {', '.join(sorted(hashes))}")
    return figures


def keys(measure: Measure, records: int, sizes: Sequence[int]) -> list[Figure]:
    """The processor's rate by the number of cards in its state; each has been seen before counting starts."""
    most = max(sizes)
    inputs = {}
    for size in sizes:
        data = Transactions(most + records, size, all_cards_first=True)
        inputs[f"{size:,} keys"] = (data, *measure.input_of(data, f"keys-{size}"))

    def one(name: str, n: int) -> Run:
        data, source, expected = inputs[name]
        return measure.processor(data, source, expected, f"keys-{data.cards}-{n}", prologue=most)

    return compared(alternate(list(inputs), measure.only, measure.slices, one), "records/s")


def compared(runs: Mapping[str, Sequence[Run | str]], unit: str) -> list[Figure]:
    """The slices as figures, each with its ratio to the first."""
    figures = []
    base: float | None = None
    for name, some in runs.items():
        done = [run for run in some if isinstance(run, Run)]
        figure = Figure(
            f"{OURS}: {name}",
            unit,
            [run.rate for run in done],
            [run.check for run in done],
            failed=[run for run in some if isinstance(run, str)],
        )
        base = base if base is not None else figure.value
        figure.more = {
            "ratio": figure.value / base if figure.value and base else None,
            "per_cpu_s": _median(run.per_cpu_second for run in done),
            "peak_mb": max((run.measured.peak_bytes / 1e6 for run in done), default=None),
        }
        figures.append(figure)
    return figures


def _median(values: Iterable[float]) -> float | None:
    some = list(values)
    return float(np.median(some)) if some else None


if __name__ == "__main__":
    sys.exit(main())
