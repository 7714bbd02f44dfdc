"""`python -m streams PIPELINE`: all processors of a pipeline in one process."""

from __future__ import annotations

import asyncio
import importlib
import signal
import sys
from functools import partial

from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.watchdog import Watchdog
from schemas.pipelines import PIPELINES
from streams.compaction import command
from streams.runtime import Worker


def main(settings: Settings, health: Health) -> None:
    pipeline = PIPELINES[sys.argv[1]]
    logics = importlib.import_module(f"streams.{pipeline.name}").PROCESSORS

    async def run() -> None:
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        worker = Worker(
            settings, pipeline, logics, health, settings.text("instance"), partial(command, pipeline.name)
        )
        watched = Watchdog(settings.kafka, worker.progresses, settings.number("watchdog_s"))
        await worker.run(ending)
        watched.close()

    asyncio.run(run())


if __name__ == "__main__":
    process.run("processor", sys.argv[1], main)
