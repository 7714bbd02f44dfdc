"""What every test may use: an environment of its own, and one running instance of the real services."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest

from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.postgres import connect, migrate
from infra.services import choose
from infra.settings import PORT_REGISTRY, SETTINGS, Settings
from tests.accounts import Accounts

_NUMBERS = count(1)

HOME = Path(__file__).parents[1] / ".millrace" / "test"

PORT_BASE = os.environ.get("MILLRACE_TEST_PORT_BASE", "31000")
"""Below the ephemeral ports (32768 upwards), where any outgoing connection may sit on one of ours."""

KEPT = {"MILLRACE_SERVICES", "MILLRACE_CACHE", "MILLRACE_KAFKA_JVM"}
"""How the services run may be chosen by the calling shell; where they are may not."""


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
    end = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            break
        except httpx.HTTPError:
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.1)
    yield services
    if process is not None:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(scope="session")
def database(services: Settings) -> Settings:
    """As `services`, with the database migrated."""
    migrate(services.database_url)
    return services


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
    ensure_topics(database.kafka_bootstrap_servers, [TopicSpec.of(x) for t in topics for x in (t, t.dlq)])
    for topic in topics:
        codec.register(topic)
        codec.register(topic.dlq)
    with connect(database.database_url) as connection:
        connection.execute(made.ddl)
    return made
