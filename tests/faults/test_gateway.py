"""The gateway dies between the broker's acknowledgement and its answer; its clients repeat."""

from __future__ import annotations

import queue
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.broker import admin
from infra.postgres import connect
from infra.prepare import prepare
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from schemas.fraud import CARD_TRANSACTIONS
from schemas.pipelines import PIPELINES
from tests.faults.conftest import Services
from tests.faults.rig import DRAIN_SECONDS, Process, until
from tests.instance import millrace

EVENTS = 2_000
CLIENTS = 8
PATIENCE_SECONDS = 60.0
PLACES = ("event-acknowledged:100", "event-acknowledged:200")


@dataclass
class Clients:
    """Clients that send each transaction again, with its own id, until it is answered with 202."""

    url: str
    events: Sequence[dict[str, Any]]
    headers: dict[str, str]
    answers: dict[str, tuple[int, int]] = field(default_factory=dict)
    unknown: int = 0
    failed: list[str] = field(default_factory=list)

    def send_all(self) -> None:
        """Send everything; afterwards `answers` has partition and offset of each event id."""
        left: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for event in self.events:
            left.put(event)
        threads = [threading.Thread(target=self._client, args=(left,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, left: queue.SimpleQueue[dict[str, Any]]) -> None:
        with httpx.Client(
            trust_env=False, timeout=20, headers={**self.headers, "Prefer": "respond-async"}
        ) as client:
            while True:
                try:
                    event = left.get_nowait()
                except queue.Empty:
                    return
                until_ = time.monotonic() + PATIENCE_SECONDS
                while not self._sent(client, event):
                    if time.monotonic() > until_:
                        self.failed.append(event["event_id"])
                        break
                    time.sleep(0.1)

    def _sent(self, client: httpx.Client, event: dict[str, Any]) -> bool:
        try:
            answer = client.post(f"{self.url}/v1/transactions", json=event)
        except httpx.TransportError:
            self.unknown += 1
            return False
        if answer.status_code == 503:
            return False
        assert answer.status_code == 202, answer.text
        receipt = answer.json()
        self.answers[event["event_id"]] = receipt["partition"], receipt["offset"]
        return True


@contextmanager
def fraud(settings: Settings, folder: Path) -> Iterator[Process]:
    """The fraud pipeline with a gateway that dies at each of `PLACES`, in turn; yields the gateway."""
    prepare(settings, PIPELINES, progress=lambda line: None)
    commands = {
        "gateway": ("tests.faults.worker", "gateway"),
        "processor": ("streams", "fraud"),
        "sink": ("sinks", "fraud"),
    }
    running = {
        role: Process(
            command,
            dict(settings.environ),
            folder / f"{role}.log",
            PLACES if role == "gateway" else (),
        )
        for role, command in commands.items()
    }
    try:
        yield running["gateway"]
    finally:
        for process in running.values():
            process.end()


@pytest.mark.faults
def test_the_gateway_dies(faulty: Services, tmp_path: Path, seed: int) -> None:
    """Clients that repeat what was not answered, with its id, lose nothing and cause nothing twice."""
    rng = random.Random(seed)
    now = datetime.now(UTC).isoformat()
    events = [
        {
            "event_id": f"gateway-{seed}-{n}",
            "occurred_at": now,
            "card_id": f"card-{rng.randrange(100)}",
            "amount_minor": rng.randrange(1, 10**6),
            "currency": "EUR",
        }
        for n in range(EVENTS)
    ]
    settings = faulty.settings
    with fraud(settings, tmp_path) as gateway:
        clients = Clients(settings.gateway_url, events, settings.client_headers)
        sending = threading.Thread(target=clients.send_all)
        sending.start()
        for share in (0.5, 0.75):
            until(lambda share=share: len(clients.answers) > share * EVENTS, 120, f"{share:.0%} are answered")  # type: ignore[misc]
            gateway.kill()
        sending.join()
        assert not clients.failed
        stood = _rows_within(settings, {e["event_id"]: e["amount_minor"] for e in events})
        verified = millrace(settings, "verify", "fraud", "--settled")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert gateway.exits == [-signal.SIGKILL] * 4
    client, wanted = admin(settings.kafka), partitions([CARD_TRANSACTIONS])
    at_place = {
        (m.partition(), m.offset()): faulty.codec.decode(CARD_TRANSACTIONS, m.value()).event["event_id"]
        for messages in read(settings.kafka, starts(client, wanted), ends(client, wanted))
        for m in messages
    }
    assert {at_place[place] for place in clients.answers.values()} == {e["event_id"] for e in events}
    times = Counter(at_place.values())
    again = sum(n > 1 for n in times.values())
    assert again >= len(PLACES), "no event was on the topic before its client repeated it"
    print(f"{clients.unknown} unanswered, {again} on the topic twice, the ledger whole after {stood:.1f} s")


def _rows_within(settings: Settings, amounts: dict[str, int]) -> float:
    """The seconds until the ledger has exactly one row of each event, with its amount."""
    began = time.monotonic()
    with connect(settings.database_url) as connection:

        def rows() -> list[tuple[str, int]]:
            found: list[tuple[str, int]] = connection.execute(
                "SELECT event_id, amount_minor FROM card_ledger WHERE event_id = ANY(%s)", [list(amounts)]
            ).fetchall()
            return found

        until(lambda: len(rows()) >= len(amounts), DRAIN_SECONDS, "every transaction is in the ledger")
        assert sorted(rows()) == sorted(amounts.items())
    return time.monotonic() - began
