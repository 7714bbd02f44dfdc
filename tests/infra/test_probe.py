"""Questions to things that are not what they should be."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from infra.kafka_access import KafkaAccess
from infra.services import probe
from infra.services.probe import ProbeError

Answering = Callable[[bytes], str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Listens once and gives one answer to whatever is said; returns the address."""
    threads: list[threading.Thread] = []

    def listen(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with closing(server), server.accept()[0] as client:
                client.recv(4096)
                client.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for thread in threads:
        thread.join()


def free_address() -> str:
    """An address on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "ask",
    [
        lambda address: probe.kafka(KafkaAccess(address)),
        lambda address: probe.postgres(f"postgresql://u:p@{address}/d"),
        lambda address: probe.redis(f"redis://{address}/0"),
        lambda address: probe.mqtt(f"mqtt://{address}"),
        lambda address: probe.registry(f"http://{address}"),
    ],
    ids=["kafka", "postgres", "redis", "mqtt", "registry"],
)
def test_nobody_there(ask: Callable[[str], str]) -> None:
    """Where nothing listens, every probe says so at once instead of waiting for its timeout."""
    with pytest.raises(ProbeError, match="refused"):
        ask(free_address())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(b"\x20\x02\x00\x05", "return code 5"), (b"HTTP/1.1 400", "instead of CONNACK"), (b"", "nothing")],
)
def test_not_a_willing_mqtt_broker(answering: Answering, answer: bytes, reason: str) -> None:
    """A broker that refuses, or something that speaks no MQTT, is not taken for a broker that answers."""
    with pytest.raises(ProbeError, match=reason):
        probe.mqtt(f"mqtt://user:password@{answering(answer)}")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "not a schema registry"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not a schema registry"),
        (b"\x00\x00", "BadStatusLine|\\x00"),
    ],
)
def test_not_a_schema_registry(answering: Answering, answer: bytes, reason: str) -> None:
    """An error, a web page or noise at the registry's URL is not taken for a registry."""
    with pytest.raises(ProbeError, match=reason):
        probe.registry(f"http://{answering(answer)}")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1:9092,127.0.0.2:9092", ("127.0.0.1", 9092)),
        ("http://registry", ("registry", 80)),
        ("postgresql://u:p@db/name", ("db", 5432)),
        ("redis://127.0.0.1:6379/0", ("127.0.0.1", 6379)),
    ],
)
def test_address_of(url: str, address: tuple[str, int]) -> None:
    """Host and port are found in every form in which the settings write them."""
    assert probe.address_of(url) == address
