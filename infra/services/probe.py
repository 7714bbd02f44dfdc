"""Does it answer? One real question per kind of service; used by `up`, `status` and `doctor`.

Each function returns a short description of what answered, and raises `ProbeError` with the reason
otherwise. None waits longer than `TIMEOUT_S`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from urllib.parse import urlsplit

from infra.kafka_access import KafkaAccess

TIMEOUT_S = 5.0


class ProbeError(RuntimeError):
    """The service did not answer as one of its kind; the message is the reason."""


def address_of(url: str) -> tuple[str, int]:
    """Host and port of a URL or of `host:port`; of the first where several stand between commas."""
    first = url.split(",")[0]
    parts = urlsplit(first if "//" in first else f"//{first}")
    return parts.hostname or "127.0.0.1", parts.port or {"http": 80, "https": 443, "postgresql": 5432}.get(
        parts.scheme, 0
    )


@contextlib.contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    host, port = address_of(url)
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            yield connection
    except OSError as error:
        raise ProbeError(f"{host}:{port}: {error.strerror or error}") from None


def connect(url: str) -> None:
    """Whether something listens there at all."""
    with _connection(url):
        pass


def brokers(access: KafkaAccess) -> list[str]:
    """The addresses that the registered brokers advertise; fails while there is none."""
    return _cluster(access)[0]


def kafka(access: KafkaAccess) -> str:
    """Asks for the cluster's metadata, and for every address that its brokers advertise."""
    advertised, topics = _cluster(access)
    for address in advertised:
        try:
            connect(address)
        except ProbeError as error:
            raise ProbeError(f"advertises an address that does not answer, {error}") from None
    return f"advertises {', '.join(advertised)}, {topics} topics"


def _cluster(access: KafkaAccess) -> tuple[list[str], int]:
    connect(access.servers)  # a refused connection is told at once, librdkafka would retry until the timeout
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient

    client = AdminClient({**access.config(), "log_level": 0})
    try:
        metadata = client.list_topics(timeout=TIMEOUT_S)
    except KafkaException as error:
        cause = error.args[0]
        raise ProbeError(cause.str() if isinstance(cause, KafkaError) else str(cause)) from None
    advertised = [f"{broker.host}:{broker.port}" for broker in metadata.brokers.values()]
    if not advertised:
        raise ProbeError("no broker is registered with the controller yet")
    return advertised, len(metadata.topics)


def select_one(database_url: str) -> None:
    """SELECT 1, in any database."""
    import psycopg

    try:
        with psycopg.connect(database_url, connect_timeout=int(TIMEOUT_S)) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise ProbeError(" ".join(str(error).split())) from None


def postgres(database_url: str) -> str:
    """The versions of the server and of PostGIS, asked in the database itself."""
    import psycopg

    try:
        with psycopg.connect(database_url, connect_timeout=int(TIMEOUT_S)) as connection:
            row = connection.execute(
                "SELECT current_setting('server_version'),"
                " (SELECT extversion FROM pg_extension WHERE extname = 'postgis'),"
                " (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')"
            ).fetchone()
    except psycopg.Error as error:
        raise ProbeError(" ".join(str(error).split())) from None
    assert row is not None
    if row[1] is None:
        raise ProbeError(f"PostgreSQL {row[0]} answers, but the extension postgis is not created")
    timescale = f", TimescaleDB {row[2]}" if row[2] else ""
    return f"PostgreSQL {row[0]}, PostGIS {row[1]}{timescale}"


def clock_skew_ms(database_url: str) -> float:
    """How far the database's clock is ahead of ours, in ms; exact to half of one round trip."""
    import psycopg

    try:
        with psycopg.connect(database_url, connect_timeout=int(TIMEOUT_S)) as connection:
            before = time.time()
            row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            after = time.time()
    except psycopg.Error as error:
        raise ProbeError(" ".join(str(error).split())) from None
    assert row is not None
    return float(row[0] - (before + after) / 2) * 1000


def redis(redis_url: str) -> str:
    """PING, with the server's version."""
    from redis import Redis, RedisError

    client = Redis.from_url(redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    try:
        client.ping()
        info = client.info("server")
    except RedisError as error:
        raise ProbeError(str(error)) from None
    finally:
        client.close()
    assert isinstance(info, dict)
    return f"Redis {info['redis_version']}"


def mqtt(mqtt_url: str) -> str:
    """CONNECT (MQTT 3.1.1, clean session, no credentials unless the URL has them) and its CONNACK."""
    parts = urlsplit(mqtt_url)
    fields = [b""]  # an empty client id: the broker gives one
    flags = 0x02
    for given, bit in ((parts.username, 0x80), (parts.password, 0x40)):
        if given is not None:
            fields.append(given.encode())
            flags |= bit
    body = struct.pack("!H4sBBH", 4, b"MQTT", 4, flags, 10)
    body += b"".join(struct.pack("!H", len(field)) + field for field in fields)
    with _connection(mqtt_url) as connection:
        connection.sendall(struct.pack("!BB", 0x10, len(body)) + body)
        answer = connection.recv(4)
        connection.sendall(b"\xe0\x00")
    if answer[:1] != b"\x20" or len(answer) < 4:
        raise ProbeError(f"answered {answer.hex() or 'nothing'} instead of CONNACK")
    if answer[3] != 0:
        raise ProbeError(f"refused the connection with return code {answer[3]}")
    return "CONNACK"


def registry(url: str) -> str:
    """Asks a schema registry for its subjects."""
    body = _get(f"{url}/subjects")
    try:
        subjects = json.loads(body)
    except ValueError:
        subjects = None
    if not isinstance(subjects, list):
        raise ProbeError(f"{url}/subjects is not a schema registry's list of subjects")
    return f"{len(subjects)} subjects"


def http(url: str) -> str:
    """Any answer with a status below 400."""
    _get(url)
    return "answers"


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - from our own settings
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        error.close()
        raise ProbeError(f"{url}: status {error.code}") from None
    except urllib.error.URLError as error:
        raise ProbeError(f"{url}: {error.reason}") from None
    except (OSError, HTTPException) as error:
        raise ProbeError(f"{url}: {error or type(error).__name__}") from None
