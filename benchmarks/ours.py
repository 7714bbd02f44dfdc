"""Our own subject, as a process on the production path: `python -m benchmarks.ours processor|sink`.

The job comes as in every subject's process; see `benchmarks/peers/task.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.transactions import Declared
from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import Pipeline, Topic
from sinks.blocks import ms
from sinks.rows import RowMapping, from_ms
from sinks.runtime import Sink
from streams.decide import ColumnRecords, LogicFactory, Outcomes, Stretch, Versions
from streams.fraud.histories import WINDOWS, Histories
from streams.fraud.scoring import place
from streams.runtime import Worker


class Scoring:
    """Count and sum of (t - 24 h, t] per card, and a score of them; a repeated transaction counts once."""

    version_kinds: Sequence[str] = ()

    def __init__(self, scores: Topic) -> None:
        self._scores = scores

    def new_state(self) -> Histories:
        return Histories()

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        raise LookupError(kind)

    def decide_columns(
        self,
        stretches: Sequence[Stretch[Histories]],
        records: ColumnRecords,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        batch = records.batch
        cards = batch.column("card_id").to_pylist()
        amounts = batch.column("amount_minor").to_numpy()
        found = place(stretches, records)
        new = found.first == np.arange(len(records))
        count, total = (found.windows[:, WINDOWS.index(n)] for n in ("count_24h", "sum_24h_minor"))
        ratio = amounts * count / (total + 10_000.0)
        results = {"count_24h": count, "sum_24h_minor": total, "score": ratio / (1.0 + ratio)}
        columns = {
            name: results[name] if name in results else batch.column(name) for name in self._scores.fields
        }
        answers = out.encode(self._scores, pa.RecordBatch.from_pydict(columns))
        for row in np.flatnonzero(~new).tolist():
            first = int(found.first[row])
            answers[row] = found.known[row] if first < 0 else answers[first]
        out.duplicate(int(len(new) - new.sum()))
        for stretch in stretches:
            stretch.state.keep(answers[stretch.rows])
        out.emit_encoded(self._scores, [card.encode() for card in cards], answers)


def row(event: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The one row of a score, in the order of its fields."""
    first, tenant, at_ms, *rest = event.values()
    return [(first, tenant, from_ms(at_ms), *rest)]


def columns(scores: pa.RecordBatch) -> dict[str, pa.Array]:
    """The same of a batch."""
    return dict(zip(scores.schema.names, scores.columns, strict=True)) | {
        "occurred_at": ms(scores.column("occurred_at"))
    }


def main(settings: Settings, health: Health) -> None:
    job = json.loads(os.environ["BENCH_JOB"])
    if sys.argv[1] == "sink":
        declared = Declared(
            job["tag"], source=job["transactions"], scores=job["source"], **job.get("declared", {})
        )
        sink = Sink(settings, declared.pipeline, (RowMapping(declared.table, row, columns),), health)
        process.on_termination(sink.ending.set)
        sink.run()
        return
    declared = Declared(job["tag"], source=job["source"], scores=job["target"])
    work(settings, declared.pipeline, {declared.processor.name: lambda: Scoring(declared.scores)}, health)


def work(settings: Settings, pipeline: Pipeline, logics: dict[str, LogicFactory], health: Health) -> None:
    """Run a pipeline's processors, as in production, until the process is told to end."""

    async def run() -> None:
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        await Worker(settings, pipeline, logics, health, settings.text("instance")).run(ending)

    asyncio.run(run())


if __name__ == "__main__":
    process.run(sys.argv[1], "benchmark", main)
