"""The MQTT bridge between a real Mosquitto and a real Kafka."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from connectors.fleet.mqtt import CLIENT_ID, KEPT_BYTES, LARGEST_BYTES, NEVER_EXPIRES, SESSION_TAKEN_OVER
from infra import exit_codes
from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec, Undecodable
from infra.dead_letters import reason_given
from infra.settings import Settings
from schemas.fleet import TRUCK_TELEMETRY

METRICS_OFFSET = 150
QUIET_SECONDS = 3.0
"""A broker that has sent nothing for so long has nothing more to send, on a busy machine too."""


@pytest.fixture(scope="module")
def telemetry(database: Settings, codec: Codec) -> Settings:
    """An instance with the telemetry's topic and schema."""
    ensure_topics(database.kafka, [TopicSpec.of(TRUCK_TELEMETRY)])
    codec.register(TRUCK_TELEMETRY)
    until(lambda: has_leaders(database))
    return database


def has_leaders(settings: Settings) -> bool:
    """Whether the broker leads every partition already, a moment after the topic was created."""
    try:
        return bool(ends(settings))
    except KafkaException:
        return False


def client(settings: Settings, client_id: str, **options: Any) -> Client:
    """A connected client whose session outlives its connection."""
    url = urlsplit(settings.mqtt_url)
    made = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, **options)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = NEVER_EXPIRES
    made.connect(str(url.hostname), url.port or 1883, clean_start=False, properties=properties)
    return made


@contextmanager
def publisher(settings: Settings, name: str) -> Iterator[Callable[[str, bytes], None]]:
    """Sends messages, quality of service 1; at the end all have been acknowledged by Mosquitto."""
    made = client(settings, name)
    made.loop_start()
    infos = []
    yield lambda topic, payload: infos.append(made.publish(topic, payload, qos=1))
    for info in infos:
        info.wait_for_publish(30)
        assert info.is_published()
    made.disconnect()
    made.loop_stop()


class Bridge:
    """The bridge as a process of its own."""

    def __init__(self, settings: Settings, offset: int) -> None:
        self.port = settings.port(offset)
        environment = os.environ | {"MILLRACE_METRICS_PORT": str(self.port)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "connectors", "mqtt"], env=environment, stderr=subprocess.PIPE
        )
        self.log: list[str] = []
        assert self.process.stderr is not None
        stderr = self.process.stderr
        self._reader = threading.Thread(target=lambda: self.log.extend(line.decode() for line in stderr))
        self._reader.start()

    def condition(self) -> dict[str, Any]:
        """What /health/ready answers; empty while it does not."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2) as response:
                document: dict[str, Any] = json.load(response)
                return document
        except OSError as error:
            body = getattr(error, "read", lambda: b"{}")()
            return dict(json.loads(body or b"{}"))

    def until_ready(self) -> None:
        until = time.monotonic() + 60
        while not self.condition().get("ready"):
            assert self.process.poll() is None and time.monotonic() < until, "".join(self.log)
            time.sleep(0.05)

    def end(self) -> int:
        """Asks the process to end; returns its exit code."""
        self.process.terminate()
        return self.process.wait(20)

    def reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def bridge(settings: Settings, offset: int = METRICS_OFFSET) -> Iterator[Bridge]:
    made = Bridge(settings, offset)
    try:
        yield made
    finally:
        made.reap()


def in_topic(settings: Settings, starts: dict[int, int] | None = None) -> list[Message]:
    """The records of the topic from `starts` on, partition by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": "reader",
            "enable.auto.commit": False,
        }
    )
    found: list[list[Message]] = [[] for _ in range(TRUCK_TELEMETRY.partitions)]
    try:
        first = [TopicPartition(TRUCK_TELEMETRY.name, n, (starts or {}).get(n, 0)) for n in range(len(found))]
        last = [consumer.get_watermark_offsets(at, timeout=10)[1] for at in first]
        due = {at.partition for at, end in zip(first, last, strict=True) if at.offset < end}
        consumer.assign(first)
        while due:
            message = consumer.poll(10)
            assert message is not None and message.error() is None
            n = message.partition() or 0
            found[n].append(message)
            if (message.offset() or 0) + 1 >= last[n]:
                due.discard(n)
    finally:
        consumer.close()
    return [message for messages in found for message in messages]


def ends(settings: Settings) -> dict[int, int]:
    """The end offset of each partition."""
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "reader"})
    try:
        return {
            n: consumer.get_watermark_offsets(TopicPartition(TRUCK_TELEMETRY.name, n), timeout=10)[1]
            for n in range(TRUCK_TELEMETRY.partitions)
        }
    finally:
        consumer.close()


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.1)


def message(run: str, n: int) -> tuple[str, bytes]:
    fix = {
        "event_id": f"{run}-{n}",
        "occurred_at": 1_767_258_000_000 + n,
        "sequence": n,
        "latitude": 51.9,
        "longitude": 4.4,
    }
    return f"telemetry/acme/{run}-truck-{n % 20}", json.dumps(fix).encode()


def unacknowledged(settings: Settings) -> set[str]:
    """The event ids that the bridge's session still holds, looked at in its place and left there."""
    seen: set[str] = set()
    probe = client(settings, CLIENT_ID, manual_ack=True)
    probe.on_message = lambda _, __, m: seen.add(json.loads(m.payload)["event_id"])
    quiet = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < quiet:
        before = len(seen)
        probe.loop(0.1)
        if len(seen) > before:
            quiet = time.monotonic() + QUIET_SECONDS
    probe.disconnect()
    probe.loop(0.1)
    return seen


def test_killed_in_the_middle(telemetry: Settings, codec: Codec) -> None:
    """Killed while 1,600 messages pass: what it had acknowledged is in the topic, after a restart all is."""
    starts = ends(telemetry)
    run = f"kill-{os.getpid()}"
    expected = {f"{run}-{n}" for n in range(1_600)}

    def arrived() -> list[dict[str, Any]]:
        found = [codec.decode(TRUCK_TELEMETRY, m.value()).event for m in in_topic(telemetry, starts)]
        return [event for event in found if event["event_id"].startswith(run)]

    with bridge(telemetry) as first:
        first.until_ready()
        with publisher(telemetry, f"{run}-publisher") as publish:
            for n in range(1_600):
                publish(*message(run, n))
                if n == 1_200:
                    until(lambda: sum(ends(telemetry).values()) - sum(starts.values()) > 900)
                    first.process.kill()
        assert first.process.wait(10) == -signal.SIGKILL
    held = unacknowledged(telemetry)
    in_time = {event["event_id"] for event in arrived()}
    assert 0 < len(held) < 1_600
    assert expected - held <= in_time

    with bridge(telemetry) as second:
        second.until_ready()
        until(lambda: {event["event_id"] for event in arrived()} == expected)
        assert second.end() == 0
    assert unacknowledged(telemetry) == set()
    events = arrived()
    assert {event["tenant"] for event in events} == {"acme"}
    # In order by truck: what came twice came again as a whole, so each first arrival follows the one before.
    firsts: dict[str, list[int]] = {}
    known: set[str] = set()
    for event in events:
        if event["event_id"] not in known:
            known.add(event["event_id"])
            firsts.setdefault(event["truck_id"], []).append(event["sequence"])
    assert all(sequences == sorted(sequences) for sequences in firsts.values())


def test_messages_that_are_no_fix(telemetry: Settings, codec: Codec) -> None:
    """What is no fix goes to the topic as it is, with its reason and key, and holds up nobody behind it."""
    run = f"poison-{os.getpid()}"
    _, good = message(run, 1)
    fix = json.loads(good)
    poison: list[tuple[bytes, str]] = [
        (b"\xff\xfe not JSON", "payload: Invalid JSON"),
        (b"", "payload: Invalid JSON"),
        (json.dumps(fix | {"latitude": "north"}).encode(), "latitude: Input should be a valid number"),
        (json.dumps({"sequence": 1}).encode(), "occurred_at: Field required"),
        (json.dumps(fix | {"truck_id": "other"}).encode(), "truck_id is 'other', but the MQTT topic says"),
        (b"[" * 100_000, "payload: Invalid JSON"),
        (b" " * (LARGEST_BYTES + 1), f"the payload has {LARGEST_BYTES + 1} bytes"),
    ]
    starts = ends(telemetry)
    with bridge(telemetry) as running:
        running.until_ready()
        with publisher(telemetry, f"{run}-publisher") as publish:
            for payload, _ in poison:
                publish(f"telemetry/acme/{run}", payload)
            publish(f"telemetry/acme/{run}", good)
        until(lambda: sum(ends(telemetry).values()) - sum(starts.values()) >= len(poison) + 1)
        assert running.end() == 0
    found = [m for m in in_topic(telemetry, starts) if m.key() == run.encode()]
    assert len(found) == len(poison) + 1
    for record, (payload, reason) in zip(found, poison, strict=False):
        assert record.value() == (payload if len(payload) <= LARGEST_BYTES else payload[:KEPT_BYTES])
        assert reason in str(reason_given(record))
        with pytest.raises(Undecodable):
            codec.decode(TRUCK_TELEMETRY, record.value())
    assert codec.decode(TRUCK_TELEMETRY, found[-1].value()).event["event_id"] == f"{run}-1"
    assert unacknowledged(telemetry) == set()


def test_event_id_of_a_message_without_one(telemetry: Settings, codec: Codec) -> None:
    """A message without an event id gets one made of its content: sent again, it is the same event."""
    run = f"bare-{os.getpid()}"
    payload = json.dumps({"occurred_at": 1_767_258_000_000, "sequence": 5, "latitude": 1, "longitude": 2})
    starts = ends(telemetry)
    with bridge(telemetry) as running:
        running.until_ready()
        with publisher(telemetry, f"{run}-publisher") as publish:
            for _ in range(2):
                publish(f"telemetry/acme/{run}", payload.encode())
        until(lambda: sum(ends(telemetry).values()) - sum(starts.values()) >= 2)
        assert running.end() == 0
    ids = [codec.decode(TRUCK_TELEMETRY, m.value()).event["event_id"] for m in in_topic(telemetry, starts)]
    assert ids == [f"{run}/5/1767258000000"] * 2


def test_two_bridges(telemetry: Settings, codec: Codec) -> None:
    """Two bridges by mistake take the session from each other in turn; still every message arrives."""
    run = f"two-{os.getpid()}"
    starts = ends(telemetry)
    expected = {f"{run}-{n}" for n in range(200)}

    def arrived() -> set[str]:
        return {
            codec.decode(TRUCK_TELEMETRY, m.value()).event["event_id"] for m in in_topic(telemetry, starts)
        }

    with bridge(telemetry) as one:
        one.until_ready()
        with bridge(telemetry, METRICS_OFFSET + 1) as other, publisher(telemetry, f"{run}-pub") as publish:
            until(lambda: "interrupts" in "".join(one.log), 30)
            for n in range(200):
                publish(*message(run, n))
            until(lambda: arrived() >= expected, 60)
            assert one.process.poll() is None and other.process.poll() is None
            assert other.end() == 0
        assert one.end() == 0
    assert unacknowledged(telemetry) == set()


def test_told_of_a_takeover(telemetry: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that says who took the session ends the bridge with the code that is not restarted.

    Mosquitto 2.0.11 closes the connection without a word, so three packets of one that speaks are played.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def play() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1_000)  # CONNECT
                connection.sendall(bytes.fromhex("20 03 01 00 00"))
                packet_id = connection.recv(1_000)[2:4]  # SUBSCRIBE
                connection.sendall(b"\x90\x04" + packet_id + b"\x00\x01")
                connection.sendall(bytes([0xE0, 0x02, SESSION_TAKEN_OVER, 0x00]))
                connection.recv(1_000)

        broker = threading.Thread(target=play)
        broker.start()
        monkeypatch.setenv("MQTT_URL", f"mqtt://127.0.0.1:{server.getsockname()[1]}")
        with bridge(telemetry) as running:
            assert running.process.wait(60) == exit_codes.FENCED
        broker.join(10)
    assert "run one bridge only" in "".join(running.log)


def test_mqtt_broker_away(telemetry: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its MQTT broker the bridge is not ready and says why; SIGTERM still ends it cleanly."""
    monkeypatch.setenv("MQTT_URL", "mqtt://127.0.0.1:1")
    with bridge(telemetry) as running:
        until(lambda: "refused" in str(running.condition()))
        assert running.condition()["ready"] is False
        assert running.end() == 0
