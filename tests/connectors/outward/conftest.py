"""Decisions in the ledger and the outbox, as the sink writes them, and the process that delivers them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from connectors.outward import endpoints
from connectors.outward.deliverer import Deliverer, open_vault
from connectors.outward.endpoints import Added
from infra import deliveries
from infra.postgres import Connection, connect
from infra.prepare import prepare_database
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER
from sinks.fraud import ROWS, TOLD
from sinks.outbox import Outbox, batch_of
from sinks.rows import from_ms
from tests.connectors.outward.receiver import Receiver

DECISION: dict[str, Any] = json.loads(
    (CARD_DECISIONS.schema_path.parent / "examples" / "card-decisions.json").read_text()
)[0]
_INSERT = sql.SQL("INSERT INTO card_ledger ({}) VALUES ({})").format(
    sql.SQL(", ").join(map(sql.Identifier, (*CARD_LEDGER.columns, "source_partition", "source_offset"))),
    sql.SQL(", ").join([sql.Placeholder()] * (len(CARD_LEDGER.columns) + 2)),
)
_NUMBERS = count(1)


@dataclass
class Outward:
    """The outside of one test: a tenant of its own, receivers, and deliverers."""

    settings: Settings
    connection: Connection
    tenant: str
    receivers: list[Receiver] = field(default_factory=list)

    def receiver(self, **options: Any) -> tuple[Receiver, Added]:
        """A receiver that listens and is told of this tenant's decisions."""
        receiver = Receiver()
        self.receivers.append(receiver)
        return receiver, self.add(receiver.url, **options)

    def add(self, target: str, **options: Any) -> Added:
        vault = open_vault(self.settings)
        return endpoints.add(
            self.settings, self.connection, vault, target, **{"tenant": self.tenant, **options}
        )

    def decide(self, merchants: Sequence[str | None], **changes: Any) -> list[str]:
        """Store a decision for each of these merchants in one transaction; returns the events' ids."""
        outbox = Outbox(TOLD, "card-decisions", "tests")
        events = []
        with self.connection.transaction(), self.connection.cursor() as cursor:
            parts = []
            for merchant in merchants:
                n = next(_NUMBERS)
                event = {**DECISION, "event_id": f"e{n:05}", "tenant": self.tenant, "merchant_id": merchant}
                event |= changes
                at = from_ms(event["occurred_at"])
                cursor.execute("SELECT millrace_ensure_partitions('card_ledger', %s, %s)", (at, at))
                (row,) = ROWS[0].rows(event)
                cursor.execute(_INSERT, (*row, 0, n))
                parts.append((batch_of(event), 0, np.array([n], dtype=np.int64)))
                events.append(event["event_id"])
            outbox.write(self.connection, cursor, parts, all_new=True)
        return events

    @contextmanager
    def delivering(self, **environ: str) -> Iterator[None]:
        """A deliverer in a thread of its own."""
        settings = Settings({**self.settings.environ, **environ})
        handle: dict[str, Any] = {}
        ready = threading.Event()
        failed: list[BaseException] = []

        async def run() -> None:
            handle["loop"], handle["ending"] = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await Deliverer(settings, open_vault(settings), Health()).run(handle["ending"])

        def main() -> None:
            try:
                asyncio.run(run())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=main, daemon=True)
        thread.start()
        assert ready.wait(20)
        try:
            yield
        finally:
            if thread.is_alive():
                handle["loop"].call_soon_threadsafe(handle["ending"].set)
            thread.join(20)
            assert not thread.is_alive()
        if failed:
            raise failed[0]

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), values or None).fetchall()

    def status(self, endpoint_id: str) -> dict[str, Any]:
        return next(e for e in deliveries.listed(self.connection) if e["endpoint_id"] == endpoint_id)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


@pytest.fixture
def outward(database: Settings) -> Iterator[Outward]:
    """Nothing is told to anybody yet."""
    prepare_database(database)  # with the roles that deliverer and API come in by
    settings = Settings(
        {
            **database.environ,
            "MILLRACE_WEBHOOK_ALLOW": "127.0.0.0/8",
            "MILLRACE_WEBHOOK_RETRY_MS": "50",
            "MILLRACE_WEBHOOK_RETRY_MOST_MS": "400",
            "MILLRACE_WEBHOOK_TIMEOUT_MS": "1000",
            "MILLRACE_MAIL_EVERY_S": "0",
        }
    )
    with connect(database.database_url) as connection:
        made = Outward(settings, connection, f"tenant-{next(_NUMBERS)}")
        yield made
        connection.execute("DELETE FROM outward_endpoints")
        connection.execute("DELETE FROM outbox")
    for receiver in made.receivers:
        receiver.down()
