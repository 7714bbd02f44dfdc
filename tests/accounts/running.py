"""The example pipeline's processor and sink, in threads of the test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from infra.broker import admin, producer
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from infra.standing import readers
from infra.telemetry.health import Health
from infra.topic_log import ends, partitions
from schemas.declare import Pipeline, Topic
from sinks.rows import RowMapping
from sinks.runtime import Sink
from streams.decide import LogicFactory
from streams.runtime import Worker
from tests.accounts import Accounts


def send(settings: Settings, codec: Codec, topic: Topic, events: list[dict[str, Any] | bytes]) -> None:
    """Append events, keyed as declared, and raw bytes under key `a`; all are acknowledged on return."""
    sender = producer(settings.kafka)
    for event in events:
        if isinstance(event, bytes):
            sender.produce(topic.name, event, "a")
        else:
            sender.produce(topic.name, codec.encode(topic, event), event[topic.key])
    assert sender.flush(20) == 0


@contextmanager
def _thread(main: Callable[[], None], end: Callable[[], None]) -> Iterator[list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            main()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield errors
    finally:
        if thread.is_alive():
            end()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def sinking(
    settings: Settings, pipeline: Pipeline, rows: tuple[RowMapping, ...]
) -> Iterator[list[BaseException]]:
    """A pipeline's sink; yields the list that receives the error it ends with, if any."""
    sink = Sink(settings, pipeline, rows, Health())
    with _thread(sink.run, sink.ending.set) as errors:
        yield errors


@contextmanager
def processing(
    settings: Settings,
    pipeline: Pipeline,
    logics: dict[str, LogicFactory],
    instance: str = "0",
    compaction: Callable[[str], Sequence[str]] | None = None,
) -> Iterator[list[BaseException]]:
    """A pipeline's processors; yields the list that receives the error they end with, if any."""
    handle: dict[str, Any] = {}
    ready = threading.Event()

    async def run() -> None:
        handle["ending"], handle["loop"] = asyncio.Event(), asyncio.get_running_loop()
        worker = Worker(settings, pipeline, logics, Health(), instance, compaction)
        ready.set()
        await worker.run(handle["ending"])

    def end() -> None:
        handle["loop"].call_soon_threadsafe(handle["ending"].set)

    with _thread(lambda: asyncio.run(run()), end) as errors:
        assert ready.wait(20)
        yield errors


@contextmanager
def running_sink(settings: Settings, accounts: Accounts) -> Iterator[list[BaseException]]:
    """The example pipeline's sink."""
    with sinking(settings, accounts.pipeline, accounts.rows) as errors:
        yield errors


@contextmanager
def running_processor(
    settings: Settings,
    accounts: Accounts,
    instance: str = "0",
    compaction: Callable[[str], Sequence[str]] | None = None,
) -> Iterator[list[BaseException]]:
    """The example pipeline's processor."""
    logics: dict[str, LogicFactory] = {accounts.processor.name: accounts.logic}
    with processing(settings, accounts.pipeline, logics, instance, compaction) as errors:
        yield errors


def drained(
    settings: Settings, accounts: Accounts, *errors: list[BaseException], seconds: float = 60
) -> None:
    """Wait until every consumer of the pipeline stands at the end of all that it reads."""
    topics = [x for t in accounts.pipeline.topics for x in (t, t.dlq)]
    client = admin(settings.kafka)
    until = time.monotonic() + seconds
    behind: list[str] = []
    with connect(settings.database_url) as connection:
        while time.monotonic() < until:
            rows = connection.execute("SELECT consumer, topic, partition, next_offset FROM checkpoints")
            positions = {(c, t, p): o for c, t, p, o in rows}
            now = ends(client, partitions(topics))
            behind = [
                f"{reader} at {at}: {positions.get((reader, at.topic, at.partition))} of {now[at]}"
                for topic in topics
                for at in partitions([topic])
                for reader in readers(accounts.pipeline, topic)
                if positions.get((reader, at.topic, at.partition), 0) != now[at]
            ]
            if not behind:
                return
            for ended in errors:
                if ended:
                    raise ended[0]
            time.sleep(0.1)
    pytest.fail(f"not drained after {seconds} s: {behind}")
