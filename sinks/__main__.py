"""`python -m sinks PIPELINE`: the sink of a pipeline."""

from __future__ import annotations

import importlib
import sys

from infra import process
from infra.ledger.heads import HeadSigner
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.watchdog import Watchdog
from schemas.pipelines import PIPELINES
from sinks.runtime import Sink


def main(settings: Settings, health: Health) -> None:
    pipeline = PIPELINES[sys.argv[1]]
    domain = importlib.import_module(f"sinks.{pipeline.name}")
    told = getattr(domain, "TOLD", None)
    sink = Sink(settings, pipeline, domain.ROWS, health, settings.text("instance"), told)
    process.on_termination(sink.ending.set)
    watched = Watchdog(settings.kafka, [sink.progress], settings.number("watchdog_s"))
    ledgers = [table for table in pipeline.tables if table.chained]
    signer = HeadSigner(settings, ledgers) if ledgers else None
    try:
        sink.run()
    finally:
        if signer is not None:
            signer.close()
    watched.close()


if __name__ == "__main__":
    process.run("sink", sys.argv[1], main)
