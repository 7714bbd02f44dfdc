"""What `millrace doctor` looks at: each check says what it found, what it expected, and what repairs it."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import psycopg
from confluent_kafka import KafkaException

from infra.broker import admin, topic_ids
from infra.checkpoints import TopicPartition
from infra.postgres import connect
from infra.services import ServiceError, choose, probe
from infra.services.component import program
from infra.services.kafka import Kafka
from infra.services.postgres import Postgres
from infra.services.probe import ProbeError
from infra.settings import Settings
from infra.topic_log import LogUnreadable, ends, starts

LEAST_FREE_BYTES = 2 * 1024**3
MOST_SKEW_MS = 1000.0
VERSIONS = ("confluent-kafka", "faust-streaming", "fastavro", "psycopg", "asyncpg")
PINNED = {"faust-streaming": "0.15.3"}


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table; `repair` is what to type when it is not `ok`."""

    name: str
    ok: bool
    found: str
    expected: str
    repair: str

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


def examine(settings: Settings) -> list[Check]:
    """All checks, side by side; none raises and none waits longer than a few seconds."""
    kind = choose(settings).kind
    checks: list[Callable[[], Check]] = [_python, _versions]
    if kind == "native":
        checks += [_java, lambda: _broker_jars(settings), lambda: _postgres_programs(settings)]
        checks += [lambda: _installed("redis-server"), lambda: _installed("mosquitto")]
    checks += [
        lambda: _broker(settings),
        lambda: _advertised(settings),
        lambda: _registry(settings),
        lambda: _database(settings),
        lambda: _answers("redis", settings.redis_url, probe.redis, "answers PING"),
        lambda: _answers("mqtt", settings.mqtt_url, probe.mqtt, "accepts CONNECT"),
        lambda: _positions(settings),
        lambda: _disk(settings),
        lambda: _clock(settings),
    ]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda check: check(), checks))


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "python", sys.version_info >= (3, 11), found, "3.11 or newer", "install it, then `make setup`"
    )


def _versions() -> Check:
    found: dict[str, str] = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    ok = "missing" not in found.values() and all(found[name] == pin for name, pin in PINNED.items())
    expected = ", ".join(f"{name} {pin}" for name, pin in PINNED.items())
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("versions", ok, listed, f"all installed, {expected}", "`make setup`")


def _java() -> Check:
    expected = "Java 17 or newer"
    try:
        java = program("java", "Java")
        told = subprocess.run([java, "-version"], capture_output=True, text=True).stderr.splitlines()
        found = told[0] if told else "no answer"
        major = int(found.split('"')[1].split(".")[0].split("-")[0])
    except (ServiceError, IndexError, ValueError) as error:
        return Check("java", False, str(error), expected, "`make setup`")
    return Check("java", major >= 17, found, expected, "`make setup`")


def _broker_jars(settings: Settings) -> Check:
    try:
        found = Kafka(settings).libraries().name
    except ServiceError as error:
        return Check("broker jars", False, str(error), "Kafka's jars", "`make setup`")
    return Check("broker jars", True, found, "Kafka's jars", "")


def _postgres_programs(settings: Settings) -> Check:
    expected = "PostgreSQL with PostGIS"
    try:
        return Check("postgres programs", True, str(Postgres(settings).binaries()), expected, "")
    except ServiceError as error:
        return Check("postgres programs", False, str(error), expected, "`make setup`")


def _installed(name: str) -> Check:
    try:
        return Check(name, True, program(name, name), "installed", "")
    except ServiceError as error:
        return Check(name, False, str(error), "installed", "`make setup`")


def _answers(name: str, url: str, ask: Callable[[str], str], expected: str) -> Check:
    try:
        return Check(name, True, ask(url), expected, "")
    except ProbeError as error:
        return Check(name, False, str(error), expected, "`millrace up`; `millrace status` shows what runs")


def _broker(settings: Settings) -> Check:
    expected = f"{settings.kafka_bootstrap_servers} gives its metadata"
    try:
        return Check("broker", True, f"{len(probe.brokers(settings.kafka))} broker", expected, "")
    except ProbeError as error:
        return Check(
            "broker", False, str(error), expected, "`millrace up`; `millrace status` shows what runs"
        )


def _advertised(settings: Settings) -> Check:
    """A client uses the bootstrap address once, and from then on what the broker advertises."""
    expected = "every advertised listener can be reached from here"
    repair = "set the broker's advertised.listeners to an address of this machine and restart it"
    try:
        advertised = probe.brokers(settings.kafka)
        for address in advertised:
            probe.connect(address)
    except ProbeError as error:
        return Check("advertised listener", False, str(error), expected, repair)
    return Check("advertised listener", True, ", ".join(advertised), expected, "")


def _registry(settings: Settings) -> Check:
    return _answers("registry", settings.schema_registry_url, probe.registry, "lists its subjects")


def _database(settings: Settings) -> Check:
    return _answers(
        "database", settings.database_url, probe.postgres, "PostgreSQL with the extension postgis"
    )


def _positions(settings: Settings) -> Check:
    """After something was restored: does the database belong to the topics, and how far is it behind?"""
    expected = "every position lies in the log of its topic"
    repair = "put back what belongs together: docs/runbook.md, Backups"
    try:
        with connect(settings.database_url, "millrace-doctor") as connection:
            if connection.execute("SELECT to_regclass('checkpoints')").fetchone() == (None,):
                return Check("positions", True, "none yet", expected, "")
            rows = connection.execute(
                "SELECT consumer, topic, partition, topic_id, next_offset FROM checkpoints ORDER BY 1, 2, 3"
            ).fetchall()
        stored = [
            (
                str(consumer),
                TopicPartition(str(topic), int(str(partition))),
                str(topic_id),
                int(str(position)),
            )
            for consumer, topic, partition, topic_id, position in rows
        ]
        client = admin(settings.kafka)
        there = set(client.list_topics(timeout=5).topics)
        wanted = {at for _, at, _, _ in stored if at.topic in there}
        ids = topic_ids(settings.kafka, {at.topic for at in wanted}) if wanted else {}
        first, end = (starts(client, wanted), ends(client, wanted)) if wanted else ({}, {})
    except (psycopg.Error, KafkaException, LogUnreadable) as error:
        found = f"unknown: {' '.join(str(error).split())}"
        return Check("positions", False, found, expected, "`millrace up --services-only`")
    behind, wrong = 0, []
    for consumer, at, topic_id, position in stored:
        if at not in wanted:
            wrong.append(f"{consumer}: there is no topic {at.topic}")
        elif ids[at.topic] != topic_id:
            wrong.append(f"{consumer}: topic {at.topic} was deleted and created anew")
        elif not first[at] <= position <= end[at]:
            wrong.append(f"{consumer} stands at {position} of {at}, which has {first[at]} to {end[at]}")
        else:
            behind += end[at] - position
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return Check("positions", False, wrong[0] + more, expected, repair)
    return Check("positions", True, f"{len(stored)}, {behind} records behind", expected, "")


def _disk(settings: Settings) -> Check:
    folder = next(path for path in (settings.home_path, *settings.home_path.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    return Check(
        "disk",
        free >= LEAST_FREE_BYTES,
        f"{free / 1024**3:.1f} GiB free in {folder}",
        f"at least {LEAST_FREE_BYTES / 1024**3:.0f} GiB",
        "free some space, or set MILLRACE_HOME to another disk",
    )


def _clock(settings: Settings) -> Check:
    """The broker's append time decides what is too far ahead, so all clocks must agree."""
    expected = f"the database's clock within {MOST_SKEW_MS:.0f} ms of ours"
    try:
        skew = probe.clock_skew_ms(settings.database_url)
    except ProbeError as error:
        return Check("clock", False, f"unknown: {error}", expected, "`millrace up`")
    return Check(
        "clock", abs(skew) <= MOST_SKEW_MS, f"{skew:+.0f} ms", expected, "synchronise both clocks by NTP"
    )
