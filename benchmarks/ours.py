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

import msgspec

from benchmarks.transactions import Declared
from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import DAY_MS, Topic
from sinks.rows import RowMapping, from_ms
from sinks.runtime import Sink
from streams.decide import KeyedState, LogicFactory, Outcomes, Record, Versions
from streams.runtime import Worker


class Card(msgspec.Struct, array_like=True, gc=False):
    """A card's transactions of its last 24 hours, oldest first, each with its answer."""

    times: list[int]
    amounts: list[int]
    ids: list[str]
    answers: list[tuple[int, int]]
    total: int


class Scoring:
    """Count and sum of (t - 24 h, t] per card, and a score of them; a repeated transaction counts once."""

    version_kinds: Sequence[str] = ()

    def __init__(self, scores: Topic) -> None:
        self._scores = scores

    def new_state(self) -> KeyedState[Card]:
        return KeyedState(Card)

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        raise LookupError(kind)

    def decide(
        self, state: KeyedState[Card], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        for record in records:
            event = record.event
            card = state.get(event["card_id"])
            if card is None:
                card = Card([], [], [], [], 0)
            if event["event_id"] in card.ids:
                out.duplicate()
                count, total = card.answers[card.ids.index(event["event_id"])]
            else:
                count, total = self._add(card, event)
                state.put(event["card_id"], card)
            ratio = event["amount_minor"] * count / (total + 10_000.0)
            out.emit(
                self._scores,
                {**event, "count_24h": count, "sum_24h_minor": total, "score": ratio / (1.0 + ratio)},
            )

    @staticmethod
    def _add(card: Card, event: dict[str, Any]) -> tuple[int, int]:
        at_ms, amount = event["occurred_at"], event["amount_minor"]
        gone = 0
        while gone < len(card.times) and card.times[gone] <= at_ms - DAY_MS:
            card.total -= card.amounts[gone]
            gone += 1
        del card.times[:gone], card.amounts[:gone], card.ids[:gone], card.answers[:gone]
        card.times.append(at_ms)
        card.amounts.append(amount)
        card.ids.append(event["event_id"])
        card.total += amount
        answer = len(card.times), card.total
        card.answers.append(answer)
        return answer


def row(event: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The one row of a score, in the order of its fields."""
    first, tenant, at_ms, *rest = event.values()
    return [(first, tenant, from_ms(at_ms), *rest)]


def main(settings: Settings, health: Health) -> None:
    job = json.loads(os.environ["BENCH_JOB"])
    if sys.argv[1] == "sink":
        declared = Declared(job["tag"], source=job["transactions"], scores=job["source"])
        sink = Sink(settings, declared.pipeline, (RowMapping(declared.table, row),), health)
        process.on_termination(sink.ending.set)
        sink.run()
        return
    declared = Declared(job["tag"], source=job["source"], scores=job["target"])

    async def run() -> None:
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        logics: dict[str, LogicFactory] = {declared.processor.name: lambda: Scoring(declared.scores)}
        await Worker(settings, declared.pipeline, logics, health).run(ending)

    asyncio.run(run())


if __name__ == "__main__":
    process.run(sys.argv[1], "benchmark", main)
