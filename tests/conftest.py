"""What every test may use: an environment of its own, and one running instance of the real services."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import hypothesis
import pytest
from confluent_kafka import KafkaException

from infra.broker import TopicSpec, admin, ensure_topics
from infra.codec import Codec
from infra.postgres import connect, migrate
from infra.services import choose
from infra.settings import PORT_REGISTRY, SETTINGS, Settings
from tests.accounts import Accounts

_NUMBERS = count(1)

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""Which of the processes this is that run the tests between them; each has services of its own."""

HOME = Path(__file__).parents[1] / ".millrace" / f"test{WORKER}"

PORT_BASE = str(int(os.environ.get("MILLRACE_TEST_PORT_BASE", "26000")) + 2_000 * int(WORKER[2:] or 0))
"""Below the ephemeral ports (32768 upwards), where any outgoing connection may sit on one of ours."""

KEPT = {"MILLRACE_SERVICES", "MILLRACE_DOCKER_SERVICES", "MILLRACE_CACHE", "MILLRACE_KAFKA_JVM"}
"""How the services run may be chosen by the calling shell; where they are may not."""


# How long an example takes depends on what else the machine does; each test has its own time limit.
hypothesis.settings.register_profile("millrace", deadline=None)
hypothesis.settings.load_profile("millrace")


def pytest_configure() -> None:
    """Points this process, and all that it starts, to the test instance and to nothing else."""
    for setting in SETTINGS.values():
        if setting.variable not in KEPT:
            os.environ.pop(setting.variable, None)
    for variable in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[variable]
    os.environ["MILLRACE_HOME"] = str(HOME)
    os.environ["MILLRACE_PORT_BASE"] = PORT_BASE


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """The settings of an instance whose broker and databases run, empty at the start of the session."""
    settings = Settings.load()
    instance = choose(settings)
    if instance.kind == "docker":
        from tests.containers import ContainerServices  # an import that takes a second

        instance = ContainerServices(settings)
    instance.down(purge=True, progress=print)  # what a killed session left
    instance.up(progress=print)
    yield settings
    instance.down(purge=True, progress=print)


@pytest.fixture(scope="session")
def registry(services: Settings) -> Iterator[Settings]:
    """As `services`, with a schema registry that answers."""
    url = f"{services.schema_registry_url}/subjects"
    process = None
    if choose(services).kind == "native":  # with Docker it is a container among the services
        state = str(services.home_path / "registry")
        argv = ("--port", str(services.port(PORT_REGISTRY)), "--state-dir", state)
        process = subprocess.Popen((sys.executable, "-m", "schemas.registry", *argv))
    await_answer(url)
    yield services
    if process is not None:
        process.terminate()
        process.wait(timeout=10)


def await_answer(url: str) -> None:
    """Wait until a service of HTTP answers well."""
    end = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def database(registry: Settings) -> Settings:
    """As `registry`, with no topic and the database migrated and empty: no module sees another's records."""
    _delete_topics(registry)
    _renew_database(registry)
    return registry


def _delete_topics(settings: Settings) -> None:
    client = admin(settings.kafka)

    def ours() -> list[str]:
        return [name for name in client.list_topics(timeout=10).topics if not name.startswith("_")]

    end = time.monotonic() + 60
    while names := ours():
        assert time.monotonic() < end, f"topics stay: {names}"
        # Again and again: the deletion of one whose creation is still under way may come to nothing.
        for deleted in client.delete_topics(names, operation_timeout=30).values():
            with suppress(KafkaException):
                deleted.result()
        time.sleep(0.1)


def _renew_database(settings: Settings) -> None:
    """From a copy of the migrated database, which is made once."""
    name = urlsplit(settings.database_url).path.strip("/")
    with connect(settings.database_url.removesuffix(name) + "postgres") as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = 'migrated'").fetchone() is None:
            migrate(settings.database_url)
            connection.execute(f"CREATE DATABASE migrated TEMPLATE {name}".encode())
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated".encode())
    for heads in (settings.audit_heads, settings.ledger_heads):
        heads.unlink(missing_ok=True)  # of a database that is no more


@pytest.fixture(scope="session")
def codec(registry: Settings) -> Iterator[Codec]:
    """The codec over the test instance's registry."""
    codec = Codec(registry.schema_registry_url)
    yield codec
    codec.close()


@pytest.fixture
def accounts(codec: Codec, database: Settings) -> Accounts:
    """The example pipeline under names of its own: topics, schemas and tables are there and empty."""
    made = Accounts(f"t{next(_NUMBERS)}")
    topics = made.pipeline.topics
    ensure_topics(database.kafka, [TopicSpec.of(x) for t in topics for x in (t, t.dlq)])
    for topic in topics:
        codec.register(topic)
        codec.register(topic.dlq)
    with connect(database.database_url) as connection:
        connection.execute(made.ddl)
    return made
