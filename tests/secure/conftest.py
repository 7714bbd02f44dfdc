"""A secured broker of its own, alone, with every declared topic and two of a replay's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from infra.broker import TopicSpec, ensure_topics
from infra.kafka_access import KafkaAccess
from infra.services.kafka import Kafka
from infra.services.kafka_principals import root
from infra.services.native import NativeServices
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from schemas.replayed import run_topic_name
from tests.conftest import HOME, PORT_BASE

DECLARED = sorted(t.name for p in PIPELINES for topic in p.topics for t in (topic, topic.dlq))
RUNS = [run_topic_name(name, 7) for name in ("card-decisions", "card-transactions-dlq")]
STRANGER = "nobodys-topic"
TOPICS = [*DECLARED, *RUNS, STRANGER]


def make_topics(settings: Settings) -> None:
    """Those that are missing, each with one partition: what may be done to it does not depend on more."""
    ensure_topics(root(settings), [TopicSpec(name, 1, 86_400_000, 1 << 20) for name in TOPICS])


def access(settings: Settings, principal: str) -> KafkaAccess:
    """The broker as this principal."""
    password = settings.secret(f"kafka-{principal}")
    assert password
    return Settings(
        {**settings.environ, "MILLRACE_KAFKA_USER": principal, "MILLRACE_KAFKA_PASSWORD": password}
    ).kafka


@pytest.fixture(scope="session")
def secured() -> Iterator[Settings]:
    """The settings of an instance whose broker runs secured."""
    environ = {
        "MILLRACE_HOME": str(HOME.parent / f"{HOME.name}-secured"),
        "MILLRACE_PORT_BASE": str(int(PORT_BASE) + 1600),
        "MILLRACE_SECURE": "1",
        **{name: os.environ[name] for name in ("MILLRACE_CACHE",) if name in os.environ},
    }
    settings = Settings(environ)
    services = NativeServices(settings, [Kafka(settings)])
    services.down(purge=True, progress=print)  # what a killed session left
    services.up(print)
    make_topics(settings)
    yield settings
    services.down(purge=True, progress=print)


@pytest.fixture
def elsewhere(secured: Settings) -> KafkaAccess:
    """The secured broker's address for clients, without any proof of who asks."""
    return replace(secured.kafka, security={})
