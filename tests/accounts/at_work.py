"""The example pipeline's processor and sink at work, in threads of the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.postgres import connect
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import Pipeline
from sinks.rows import RowMapping
from sinks.runtime import Sink
from streams.decide import LogicFactory
from streams.runtime import Worker


class Running:
    """A pipeline at work; `settle` waits until it stands still."""

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        self.settings, self.pipeline = settings, pipeline
        self.errors: list[BaseException] = []

    def settle(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until `ready` says so; fails with the error that a thread ended with."""
        until = time.monotonic() + seconds
        while not ready():
            if self.errors:
                raise self.errors[0]
            if time.monotonic() > until:
                pytest.fail(f"nothing came of it within {seconds:.0f} s")
            time.sleep(0.1)

    def ask(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return ask(self.settings, query, *args)


def ask(settings: Settings, query: str, *args: Any) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with connect(settings.database_url) as connection:
        return connection.execute(query, args).fetchall()  # type: ignore[arg-type]


@contextmanager
def running(
    settings: Settings, pipeline: Pipeline, logics: dict[str, LogicFactory], rows: tuple[RowMapping, ...]
) -> Iterator[Running]:
    """The pipeline's processors and its sink, until the end of the block."""
    found = Running(settings, pipeline)
    sink = Sink(settings, pipeline, rows, Health())
    handle: dict[str, Any] = {}
    ready = threading.Event()

    def work() -> None:
        async def run() -> None:
            handle["ending"], handle["loop"] = asyncio.Event(), asyncio.get_running_loop()
            worker = Worker(settings, pipeline, logics, Health())
            ready.set()
            await worker.run(handle["ending"])

        try:
            asyncio.run(run())
        except BaseException as error:
            found.errors.append(error)

    def store() -> None:
        try:
            sink.run()
        except BaseException as error:
            found.errors.append(error)

    threads = [threading.Thread(target=main, daemon=True) for main in (work, store)]
    for thread in threads:
        thread.start()
    assert ready.wait(20)
    try:
        yield found
    finally:
        sink.ending.set()
        if threads[0].is_alive():
            handle["loop"].call_soon_threadsafe(handle["ending"].set)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
