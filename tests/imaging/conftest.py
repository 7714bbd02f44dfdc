"""The imaging pipeline as it runs: gateway, processor, sink and API as processes on the real services."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from schemas.imaging import PIPELINE
from tests.signed_in import signed_in

START_SECONDS = 180.0
ARRIVE_SECONDS = 120.0


class Imaging:
    """Where the running pipeline is reached, and what it has come to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gateway = settings.gateway_url
        self.http = httpx.Client(headers=signed_in(settings))
        self.api = settings.api_url

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with connect(self.settings.database_url) as connection:
            return list(connection.execute(sql, values).fetchall())

    def settled(self, event_ids: set[str]) -> tuple[set[str], dict[str, str]]:
        """Wait until each upload is indexed or dead; return the indexed ids, and the dead ones' reasons."""
        deadline = time.monotonic() + ARRIVE_SECONDS
        while True:
            ids = list(event_ids)
            indexed = {r[0] for r in self.query(
                "SELECT event_id FROM instance_uploads WHERE event_id = ANY(%s)", ids
            )}  # fmt: skip
            dead = dict(self.query(
                "SELECT input_id, field || ': ' || error FROM dead_letters WHERE input_id = ANY(%s)", ids
            ))  # fmt: skip
            if indexed | dead.keys() == event_ids:
                return indexed, dead
            assert time.monotonic() < deadline, f"missing: {event_ids - indexed - dead.keys()}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def imaging(codec: Codec, database: Settings) -> Iterator[Imaging]:
    topics = PIPELINE.topics
    ensure_topics(database.kafka, [TopicSpec.of(x) for t in topics for x in (t, t.dlq)])
    for topic in topics:
        codec.register(topic)
        codec.register(topic.dlq)
    signed_in(database)
    commands = (["connectors", "gateway"], ["streams", "imaging"], ["sinks", "imaging"], ["api"])
    processes = [subprocess.Popen([sys.executable, "-m", *c], env={**os.environ}) for c in commands]
    try:
        deadline = time.monotonic() + START_SECONDS
        for url in (database.gateway_url, database.api_url):
            while True:
                try:
                    httpx.get(f"{url}/health/live").raise_for_status()
                    break
                except httpx.HTTPError:
                    assert time.monotonic() < deadline, f"{url} does not answer"
                    time.sleep(0.1)
        made = Imaging(database)
        with made.http:
            yield made
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
