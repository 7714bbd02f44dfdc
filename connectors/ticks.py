"""Ticks: what time it is, said to topics that declare `tick_ms`, as a record in each of their partitions.

The clock is read here and nowhere behind: a processor knows a time only from the log. A tick that comes late
or twice says nothing new, so nothing has to be remembered, and any number of these may run.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from infra.broker import producer
from infra.codec import Codec, Event, RegistryUnavailable
from infra.settings import Settings
from infra.telemetry import logs
from infra.telemetry.health import Health, serve_if_asked
from schemas.declare import Pipelines, Topic
from schemas.platform import TICK

log = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
RETRY_SECONDS = 2.0


def ticked(pipelines: Pipelines) -> list[Topic]:
    """The topics that want ticks."""
    return [t for p in pipelines for t in p.topics if t.tick_ms is not None]


def tick(topic: Topic, partition: int, now_ms: int) -> Event:
    """The tick of one partition."""
    return {
        TICK.event_id: f"{topic.name}/{partition}/{now_ms}",
        "tenant": "default",
        TICK.event_time: now_ms,
    }


def due(topics: Iterable[Topic], told_ms: dict[str, int], now_ms: int) -> Iterator[tuple[Topic, int, Event]]:
    """The ticks to send at `now_ms`, after those of `told_ms` (by topic), which is brought up to date."""
    for topic in topics:
        assert topic.tick_ms is not None
        if now_ms - told_ms.get(topic.name, -topic.tick_ms) >= topic.tick_ms:
            told_ms[topic.name] = now_ms
            for partition in range(topic.partitions):
                yield topic, partition, tick(topic, partition, now_ms)


def run(
    settings: Settings,
    topics: list[Topic],
    ending: threading.Event,
    health: Health,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> None:
    """Send ticks until `ending` is set; while broker or registry are away, none."""
    sender = producer(settings.kafka)
    told: dict[str, int] = {}
    shortest_s = min(t.tick_ms or 0 for t in topics) / 1000
    with closing(Codec(settings.schema_registry_url)) as codec:
        while not ending.is_set():
            try:
                for topic, partition, event in due(topics, told, now_ms()):
                    sender.produce(topic.name, codec.encode(TICK, event), partition=partition)
                waiting = sender.flush(FLUSH_SECONDS)
            except RegistryUnavailable as error:
                health.failing("broker", f"no tick can be written: {error}")
                ending.wait(RETRY_SECONDS)
                continue
            if waiting:
                health.failing("broker", f"{waiting} ticks are not acknowledged; see `millrace status`")
            else:
                health.ok("broker")
            ending.wait(shortest_s)


def main() -> None:
    """The process `python -m connectors ticks`."""
    from schemas.pipelines import PIPELINES

    settings = Settings.load()
    logs.configure("connector", None, settings.text("log_level"))
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    health = Health("broker")
    server = serve_if_asked(health, settings)
    topics = ticked(PIPELINES)
    if topics:
        run(settings, topics, ending, health)
    else:
        log.warning("no topic declares tick_ms; there is nothing to do")
    if server is not None:
        server.close()
