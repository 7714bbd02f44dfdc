"""The native services, really started and stopped in a state folder and on ports of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from paho.mqtt import publish
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from redis import Redis

from infra.doctor import examine
from infra.services import ServiceError
from infra.services.component import program
from infra.services.credentials import ensure_secret
from infra.services.kafka import Kafka
from infra.services.native import NativeServices
from infra.services.postgres import Postgres
from infra.services.probe import address_of
from infra.settings import PORT_KAFKA, PORT_MQTT, PORT_POSTGRES, PORT_REDIS, Settings

ALL = ["kafka", "postgres", "redis", "mosquitto"]


def settings_in(home: Path, distance: int, **more: str) -> Settings:
    """An instance of its own, `distance` above the ports of the session's."""
    base = str(int(os.environ["MILLRACE_PORT_BASE"]) + distance)
    kept = {name: os.environ[name] for name in ("MILLRACE_CACHE",) if name in os.environ}
    return Settings({**kept, "MILLRACE_HOME": str(home), "MILLRACE_PORT_BASE": base, **more})


def silent(line: str) -> None:
    """Progress for nobody."""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Running services in a temporary folder, which nobody but we may enter."""
    settings = settings_in(tmp_path_factory.mktemp("native") / "home", 400)
    NativeServices(settings).up(silent)
    yield settings
    NativeServices(settings).down(purge=True, progress=silent)


def pids(settings: Settings) -> dict[str, int | None]:
    """The services' processes by name."""
    return {one.name: one.pid for one in NativeServices(settings).status()}


def test_every_service_answers_on_its_own_port(instance: Settings) -> None:
    """After `up` all services answer a real question at the address that `status` names."""
    found = NativeServices(instance).status()
    assert [one.name for one in found] == ALL
    assert [one.state for one in found] == ["running"] * 4
    offsets = (PORT_KAFKA, PORT_POSTGRES, PORT_REDIS, PORT_MQTT)
    assert [one.address for one in found] == [f"127.0.0.1:{instance.port(offset)}" for offset in offsets]
    assert "PostGIS" in found[1].detail


def test_second_up_changes_nothing(instance: Settings) -> None:
    """`up` on running services says nothing and leaves every process as it is."""
    before, lines = pids(instance), list[str]()
    NativeServices(instance).up(lines.append)
    assert lines == []
    assert pids(instance) == before


def test_postgres_is_strict_and_durable(instance: Settings) -> None:
    """The database wants the password, commits durably, speaks UTC and English, and does not run as root."""
    host, port = address_of(instance.database_url)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://millrace:wrong@{host}:{port}/millrace")
    with psycopg.connect(instance.database_url) as connection:
        for name, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "TimeZone": "UTC",
            "lc_messages": "C",
            "password_encryption": "scram-sha-256",
            "listen_addresses": "127.0.0.1",
        }.items():
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)
        row = connection.execute("SELECT ST_AsText(ST_Point(1, 2)), pg_postmaster_start_time()").fetchone()
        assert row is not None and row[0] == "POINT(1 2)"
    pid = pids(instance)["postgres"]
    assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_doctor_finds_only_what_does_not_run(instance: Settings) -> None:
    """On running services the doctor misses the registry alone, which the platform starts."""
    assert [check.name for check in examine(instance) if not check.ok] == ["registry"]


def retained(topic: str, port: int) -> bytes:
    """The message that the MQTT broker keeps for `topic`."""
    client, messages = Client(CallbackAPIVersion.VERSION2), list[bytes]()

    def on_message(client: Client, userdata: object, message: MQTTMessage) -> None:
        messages.append(bytes(message.payload))

    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.subscribe(topic)
    deadline = time.monotonic() + 20
    while not messages and time.monotonic() < deadline:
        client.loop(0.1)
    client.disconnect()
    return messages[0]


def test_data_survives_a_restart(instance: Settings) -> None:
    """Topics, rows, keys and queued messages are still there after `down` and `up`."""
    admin = AdminClient({"bootstrap.servers": instance.kafka_bootstrap_servers})
    admin.create_topics([NewTopic("kept", 3, 1)])["kept"].result(20)
    with psycopg.connect(instance.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with Redis.from_url(instance.redis_url) as redis:
        redis.set("kept", "42")
    publish.single("kept", "42", qos=1, retain=True, hostname="127.0.0.1", port=instance.port(PORT_MQTT))
    before = pids(instance)

    services = NativeServices(instance)
    services.down(purge=False, progress=silent)
    assert [one.state for one in services.status()] == ["stopped"] * 4
    services.up(silent)

    assert not set(pids(instance).values()) & set(before.values())
    topics = (
        AdminClient({"bootstrap.servers": instance.kafka_bootstrap_servers}).list_topics(timeout=20).topics
    )
    assert len(topics["kept"].partitions) == 3
    with psycopg.connect(instance.database_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    with Redis.from_url(instance.redis_url) as redis:
        assert redis.get("kept") == b"42"
    assert retained("kept", instance.port(PORT_MQTT)) == b"42"


def test_purge_leaves_nothing(instance: Settings) -> None:
    """`down --purge` ends every process and deletes cluster, data, secrets and signed heads."""
    assert instance.secret("postgres")
    for heads in (instance.audit_heads, instance.ledger_heads):
        heads.parent.mkdir(parents=True)
        heads.touch()
    cluster = Postgres(instance).cluster
    assert (cluster / "PG_VERSION").exists()
    NativeServices(instance).down(purge=True, progress=silent)
    assert not cluster.exists()
    assert not instance.home_path.exists()
    assert set(pids(instance).values()) == {None}


def test_foreign_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A port that somebody else uses is told with its number, its owner and the variable to set."""
    settings = settings_in(tmp_path, 800)
    with contextlib.ExitStack() as owners:
        for offset in (PORT_KAFKA, PORT_POSTGRES, PORT_REDIS, PORT_MQTT):
            owners.enter_context(socket.create_server(("127.0.0.1", settings.port(offset))))
        with pytest.raises(ServiceError) as refused:
            NativeServices(settings).up(silent)
    assert f"kafka needs port {settings.port(PORT_KAFKA)}" in str(refused.value)
    assert f"(pid {os.getpid()})" in str(refused.value)
    assert "MILLRACE_PORT_BASE=" in str(refused.value)
    assert set(pids(settings).values()) == {None}


def test_service_that_ends_while_starting_tells_why(tmp_path: Path) -> None:
    """A service that cannot start is told with its last words and its log; the others run."""
    settings = settings_in(tmp_path, 800, MILLRACE_KAFKA_JVM="-XX:+NoSuchOption")
    services = NativeServices(settings)
    try:
        with pytest.raises(
            ServiceError, match=r"kafka ended while starting: .*Unrecognized VM option.*kafka\.log"
        ):
            services.up(silent)
        assert {name for name, pid in pids(settings).items() if pid} == {"postgres", "redis", "mosquitto"}
    finally:
        services.down(purge=True, progress=silent)
    assert set(pids(settings).values()) == {None}


def test_what_is_not_installed_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing program, jar or PostgreSQL version names the command that installs it."""
    with pytest.raises(ServiceError, match=r"kafka's jars are not in .*run `make setup`"):
        Kafka(settings_in(tmp_path, 800, MILLRACE_CACHE=str(tmp_path))).command()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match=r"Redis is not installed .*run `make setup`"):
        program("redis-server", "Redis")
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServiceError, match="apt-get install postgresql-9-postgis-3"):
        Postgres(settings_in(tmp_path, 800)).command()


def test_secret_is_made_once_for_its_owner(tmp_path: Path) -> None:
    """A secret is generated once, and only its owner may read it."""
    settings = settings_in(tmp_path, 800)
    first = ensure_secret(settings, "postgres")
    assert len(first) >= 32
    assert ensure_secret(settings, "postgres") == first == settings.secret("postgres")
    assert ensure_secret(settings, "other") != first
    file = tmp_path / "secrets" / "postgres"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
