"""A pipeline on a secured broker, from the gateway to the ledger, and all that its operator does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from infra import jobs
from infra.broker import producer
from infra.kafka_access import KafkaAccess
from infra.settings import Settings
from infra.supervisor import living
from schemas.fraud import CARD_TRANSACTIONS
from schemas.grants import principals
from schemas.pipelines import PIPELINES
from tests.instance import millrace, processes, running

pytestmark = [pytest.mark.secure, pytest.mark.timeout(600)]

EVENTS = 60


@pytest.fixture(scope="module")
def platform() -> Iterator[Settings]:
    with running("secure-platform", 1400, "--secure") as settings:
        yield settings


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.2)


def client(settings: Settings, url: str) -> httpx.Client:
    """A client that proves to be this instance's admin."""
    return httpx.Client(base_url=url, headers=settings.client_headers, trust_env=False, timeout=30)


def publish(settings: Settings, first: int, count: int) -> None:
    """Transactions by way of the gateway, each of its own card."""
    with client(settings, settings.gateway_url) as gateway:
        for n in range(first, first + count):
            event = {
                "event_id": f"tx-{n}",
                "occurred_at": "2026-01-02T03:04:05Z",
                "card_id": f"c-{n}",
                "customer_id": "u-1",
                "merchant_id": "m-1",
                "amount_minor": 129_900,
                "currency": "EUR",
                "country": "DE",
                "home_country": "DE",
            }
            answer = gateway.post("/v1/transactions", json=event)
            assert answer.status_code in (200, 202), answer.text


def count(settings: Settings, table: str) -> int:
    with psycopg.connect(settings.database_url) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[arg-type]
    assert row is not None
    return int(row[0])


def denials(settings: Settings) -> list[str]:
    """What the broker has denied so far."""
    log = settings.home_path / "logs" / "kafka-server.log"
    return [line for line in log.read_text().splitlines() if "is Denied" in line]


@pytest.fixture(scope="module")
def published(platform: Settings) -> Settings:
    """The platform, with events in the ledger and one dead letter."""
    publish(platform, 0, EVENTS)
    sender = producer(platform.kafka)
    sender.produce(CARD_TRANSACTIONS.name, b"no event", b"c-0")
    assert sender.flush(30) == 0
    until(lambda: count(platform, "card_ledger") == EVENTS and count(platform, "dead_letters") >= 1)
    return platform


def test_every_process_works_and_none_is_denied_anything(published: Settings) -> None:
    """Events and a dead letter reach their tables, every process is ready, nothing had to be denied."""
    assert all(one["ready"] for one in processes(published))
    assert denials(published) == []


def test_events_are_told_as_they_come(published: Settings) -> None:
    """The API, whose name at the broker may read and nothing else, shows events of its live log to whom it
    may, and to nobody who does not say who they are."""
    told = {"topic": "card-transactions"}
    assert httpx.get(f"{published.api_url}/v1/events", params=told, trust_env=False).status_code == 401
    with (
        client(published, published.api_url) as api,
        api.stream("GET", "/v1/events", params=told) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        assert next(lines) == "event: started"
        publish(published, 500, 1)
        assert any('"event_id":"tx-500"' in line for line in lines)
    until(lambda: count(published, "card_ledger") == EVENTS + 1)
    assert denials(published) == []


def test_what_the_console_does_for_an_operator_is_let_through(published: Settings) -> None:
    """A replay that the API starts makes topics, reads and writes as the operator: the API may read alone."""
    of_api = {"MILLRACE_KAFKA_USER": "api", "MILLRACE_KAFKA_PASSWORD": published.secret("kafka-api")}
    process = Settings({**published.environ, **of_api})
    started = jobs.start(process, "replay-try", ["replay", "run", "fraud", "--json"], "anna")
    until(lambda: not started.running, 300)
    assert started.code == 0, started.told
    run = str(json.loads(started.output)["run"])
    assert millrace(published, "replay", "abort", run).returncode == 0
    assert denials(published) == []


def test_the_operator_can_do_all_that_the_command_line_offers(published: Settings) -> None:
    """Doctor, verify, trace, and a replay from plan to abort: all of it within the operator's grants."""
    for arguments in (
        ("doctor",),
        ("status",),
        ("verify", "fraud", "--settled"),
        ("trace", "--row", "card_ledger:tx-1"),
        ("replay", "plan", "fraud"),
        ("replay", "run", "fraud", "--json"),
    ):
        done = millrace(published, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    run = str(json.loads(done.stdout)["run"])
    for arguments in (("replay", "diff", run, "--exit-code"), ("replay", "abort", run)):
        done = millrace(published, *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert denials(published) == []


def test_a_letter_is_redriven(published: Settings, tmp_path: Path) -> None:
    """A corrected dead letter goes back onto its topic and into the ledger."""
    with psycopg.connect(published.database_url) as connection:
        rows = connection.execute("SELECT id FROM dead_letters WHERE status = 'open'").fetchall()
    (letter,) = [str(row[0]) for row in rows]
    event = {
        "event_id": "tx-redriven",
        "tenant": "default",
        "occurred_at": 1_767_323_045_000,
        "card_id": "c-redriven",
        "customer_id": "u-1",
        "merchant_id": "m-1",
        "amount_minor": 100,
        "currency": "EUR",
        "country": "DE",
        "home_country": "DE",
    }
    file = tmp_path / "event.json"
    file.write_text(json.dumps(event))
    edited = millrace(published, "dlq", "edit", letter, "--file", str(file), "--apply")
    assert edited.returncode == 0, edited.stderr
    sent = millrace(published, "dlq", "redrive", letter, "--apply")
    assert sent.returncode == 0, sent.stderr
    until(lambda: count(published, "card_ledger") == EVENTS + 2)


def test_passwords_are_in_nobodys_environment_or_command_line(published: Settings) -> None:
    """What other accounts of the machine could see of a process holds no password, also not its own."""
    passwords = [published.secret(f"kafka-{p}") for p in principals(PIPELINES)]
    assert all(passwords)
    running_now = living(published.home_path)
    assert len(running_now) >= len(processes(published))
    for process in (*running_now.values(), *children(published)):
        told = " ".join(process.cmdline()) + " ".join(process.environ().values())
        assert not any(password in told for password in passwords), process.name()


def children(settings: Settings) -> list[psutil.Process]:
    """The supervisor, and its fork server."""
    status = json.loads(millrace(settings, "status", "--json").stdout)
    supervisor = psutil.Process(status["supervisor"])
    return [supervisor, *supervisor.children()]


def test_a_process_goes_on_with_its_rotated_password(published: Settings) -> None:
    """After a rotation its process is started anew, and events go on into the ledger."""
    before, rows = published.secret("kafka-processor-fraud"), count(published, "card_ledger")
    done = millrace(published, "secret", "rotate", "kafka-processor-fraud")
    assert done.returncode == 0, done.stderr
    assert "processor-fraud starts anew" in done.stderr
    assert published.secret("kafka-processor-fraud") != before
    publish(published, 1_000, 5)
    until(lambda: count(published, "card_ledger") == rows + 5)


def test_it_comes_back_after_a_stop(published: Settings) -> None:
    """`down`, a new certificate, and `up` without the option: still secured, and everything goes on."""
    rows = count(published, "card_ledger")
    assert millrace(published, "down").returncode == 0
    renewed = millrace(published, "secret", "rotate", "kafka-certificate")
    assert renewed.returncode == 0, renewed.stderr
    up = millrace(published, "up")
    assert up.returncode == 0, up.stderr
    publish(published, 2_000, 3)
    until(lambda: count(published, "card_ledger") == rows + 3)
    assert published.kafka != KafkaAccess(published.kafka_bootstrap_servers)
    assert denials(published) == []
