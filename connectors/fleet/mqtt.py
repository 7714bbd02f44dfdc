"""The MQTT bridge: `telemetry/<tenant>/<truck_id>`, JSON, to topic truck-telemetry.

A message is acknowledged (PUBACK) only after Kafka's delivery report. The session is persistent and its
client id fixed, so whatever was not acknowledged comes again, in order, after any interruption; the
processor drops what it has applied. Another bridge that takes the session over fences this process, where
the broker tells (Mosquitto 2.0.11 does not: two bridges then alternate, and still nothing is lost).

A message that is no fix (not JSON, wrong fields) is neither lost nor in the way of others: its bytes go to
the topic as they are, keyed by the truck of its MQTT topic and with the reason in a header. They cannot be
decoded there, so the processor makes them a dead letter with that reason.

Backpressure is the protocol's own: the broker sends at most `RECEIVE_MAXIMUM` messages beyond those that
were acknowledged, and keeps the others. One thread does everything; there is nothing to race with.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from confluent_kafka import KafkaError, KafkaException, Message
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import ValidationError

from connectors.fleet.telemetry import Telemetry
from infra import process
from infra.broker import producer
from infra.checkpoints import Fenced
from infra.codec import Codec, RegistryUnavailable, Unencodable, Unregistered
from infra.dead_letters import REASON_HEADER
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.telemetry.metrics import MQTT_CONNECTED, MQTT_MESSAGES, PRODUCE_FAILURES, RECORDS_PRODUCED
from schemas.declare import RECORD_BYTES
from schemas.fleet import TRUCK_TELEMETRY

log = logging.getLogger(__name__)

SUBSCRIPTION = "telemetry/+/+"
CLIENT_ID = "millrace-bridge"
RECEIVE_MAXIMUM = 500
KEEPALIVE_SECONDS = 20
NEVER_EXPIRES = 0xFFFFFFFF
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
STALLED_SECONDS = 10.0
DRAIN_SECONDS = 5.0
LARGEST_BYTES = RECORD_BYTES - 70_000
"""Payloads beyond this do not fit a record; room is left for the longest key and the headers."""
KEPT_BYTES = 10_000
SESSION_TAKEN_OVER = 0x8E


class Bridge:
    """One bridge. `run` does everything, in the calling thread."""

    def __init__(self, settings: Settings, health: Health, client_id: str = CLIENT_ID) -> None:
        self._health = health
        for condition in ("mqtt", "broker"):
            health.failing(condition, "starting")
        self._codec = Codec(settings.schema_registry_url)
        self._producer = producer(settings.kafka, error_cb=self._on_kafka_error)
        self._url = urlsplit(settings.mqtt_url)
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, manual_ack=True
        )
        if self._url.username:
            self._client.username_pw_set(unquote(self._url.username), unquote(self._url.password or ""))
        if self._url.scheme == "mqtts":
            self._client.tls_set()
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._connection = 0
        self._undelivered: dict[int, float] = {}
        self._numbers = 0
        self._broken: str | None = None
        self._fatal: str | None = None
        self._taken_over = False
        self._steady = False
        self._draining = False
        self._acknowledged = MQTT_MESSAGES.labels(TRUCK_TELEMETRY.name, "acknowledged")
        self._invalid = MQTT_MESSAGES.labels(TRUCK_TELEMETRY.name, "invalid")
        self._unacknowledged = MQTT_MESSAGES.labels(TRUCK_TELEMETRY.name, "unacknowledged")
        self._produced = RECORDS_PRODUCED.labels("mqtt", TRUCK_TELEMETRY.name)
        self._failed = PRODUCE_FAILURES.labels("mqtt", TRUCK_TELEMETRY.name, "unknown")

    def run(self, ending: threading.Event) -> None:
        """Bridge until `ending`; then acknowledge what is delivered within seconds, and leave the rest.

        Raises `Fenced` when another process took the session over, RuntimeError when the producer is broken.
        """
        failures = 0
        while not ending.is_set():
            self._broken, self._steady = None, False
            try:
                self._check_kafka()
                self._connect()
                while not ending.is_set() and self._broken is None:
                    self._turn()
            except (OSError, KafkaException) as error:
                self._broken = str(error)
            if self._taken_over:
                raise Fenced(
                    f"another process took the MQTT session of client id {self._client._client_id.decode()!r}"
                    " over; run one bridge only"
                )
            if self._fatal is not None:
                # No retry mends this producer; the supervisor starts the process anew.
                raise RuntimeError(f"the producer cannot go on: {self._fatal}")
            if self._broken is None:
                break
            failures = 0 if self._steady else failures + 1
            self._disconnect(self._broken)
            self._wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)], ending)
        self._draining = True
        self._producer.flush(DRAIN_SECONDS)
        self._disconnect("ending")

    def _turn(self) -> None:
        """Wait for the MQTT broker, a moment only while delivery reports are due; then take those."""
        code = self._client.loop(0.005 if self._undelivered else 0.2)
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS and self._broken is None:
            self._broken = f"the MQTT connection broke ({code.name})"
        self._producer.poll(0)
        # In the order in which they were produced: the first is the oldest.
        oldest = next(iter(self._undelivered.values()), None)
        if oldest is not None and time.monotonic() - oldest > STALLED_SECONDS:
            self._health.failing(
                "broker", f"no delivery report for {STALLED_SECONDS:g} s; look at `millrace status`"
            )

    def _wait(self, seconds: float, ending: threading.Event) -> None:
        until = time.monotonic() + seconds
        while not ending.is_set() and time.monotonic() < until:
            self._producer.poll(0.1)

    # Kafka

    def _check_kafka(self) -> None:
        try:
            self._producer.list_topics(TRUCK_TELEMETRY.name, timeout=5)
        except KafkaException as error:
            self._health.failing("broker", f"the broker does not answer ({error}); look at `millrace status`")
            raise
        self._health.ok("broker")

    def _produce(self, message: MQTTMessage) -> None:
        _, tenant, truck_id = message.topic.split("/")
        payload = bytes(message.payload)
        headers: list[tuple[str, str | bytes | None]] = []
        try:
            value = self._codec.encode(TRUCK_TELEMETRY, _event(payload, tenant, truck_id))
        except Unregistered as error:
            self._give_up(f"{error}")
            return
        except RegistryUnavailable as error:
            self._give_up(f"the registry does not answer: {error}")
            return
        except (ValidationError, Unencodable, ValueError) as error:
            value = payload if len(payload) <= LARGEST_BYTES else payload[:KEPT_BYTES]
            headers.append((REASON_HEADER, _reason(error, len(payload)).encode()))
            self._invalid.inc()
        self._numbers += 1
        self._undelivered[self._numbers] = time.monotonic()
        acknowledge = partial(self._delivered, self._numbers, self._connection, message.mid, message.qos)
        try:
            self._producer.produce(
                TRUCK_TELEMETRY.name, value, truck_id.encode(), headers=headers, on_delivery=acknowledge
            )
        except (BufferError, KafkaException) as error:
            del self._undelivered[self._numbers]
            self._give_up(f"the record could not be produced: {error}")

    def _delivered(
        self, number: int, connection: int, mid: int, qos: int, error: KafkaError | None, _: Message
    ) -> None:
        del self._undelivered[number]
        if error is not None:
            self._failed.inc()
            self._give_up(f"the broker did not take a record: {error.str()}")
            return
        self._produced.inc()
        self._health.ok("broker")
        # A message id belongs to its connection: on the next one it may name a message not yet delivered.
        if connection == self._connection and self._broken is None:
            if qos:
                self._client.ack(mid, qos)
            self._acknowledged.inc()
            self._steady = True
        else:
            self._unacknowledged.inc()

    def _on_kafka_error(self, error: KafkaError) -> None:
        log.warning("the producer reports", extra={"reason": error.str()})
        if error.fatal():
            self._fatal = error.str()
            self._give_up(self._fatal)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._health.failing("broker", "no broker answers; look at `millrace status`")

    def _give_up(self, reason: str) -> None:
        """End this connection: everything unacknowledged then comes again, in order."""
        if self._broken is None:
            self._broken = reason

    # MQTT

    def _connect(self) -> None:
        self._connection += 1
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = NEVER_EXPIRES
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self._client.connect(
            self._url.hostname or "127.0.0.1",
            self._url.port or (8883 if self._url.scheme == "mqtts" else 1883),
            KEEPALIVE_SECONDS,
            clean_start=False,
            properties=properties,
        )

    def _disconnect(self, reason: str) -> None:
        if not self._draining:
            log.warning("the bridge interrupts", extra={"reason": reason})
        self._health.failing("mqtt", reason)
        MQTT_CONNECTED.set(0)
        self._connection += 1
        self._client.disconnect()
        self._client.loop(0.1)

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        if code.is_failure:
            self._give_up(f"the MQTT broker refuses the bridge: {code}")
            return
        log.info("connected to the MQTT broker", extra={"session_present": flags.session_present})
        # Retained messages only with a new subscription: at each reconnection they would be duplicates.
        client.subscribe(SUBSCRIPTION, options=SubscribeOptions(qos=1, retainHandling=1))

    def _on_subscribe(
        self, _: Client, __: Any, ___: int, codes: list[ReasonCode], ____: Properties | None
    ) -> None:
        if any(code.is_failure for code in codes):
            self._give_up(f"the MQTT broker refuses the subscription to {SUBSCRIPTION}: {codes[0]}")
            return
        self._health.ok("mqtt")
        MQTT_CONNECTED.set(1)

    def _on_disconnect(
        self, _: Client, __: Any, flags: DisconnectFlags, code: ReasonCode, ___: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server and code.value == SESSION_TAKEN_OVER:
            self._taken_over = True
        self._give_up(f"the MQTT broker ended the connection: {code}")

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        # After a failure nothing more is produced: what comes again must keep its order.
        if self._broken is None and not self._draining:
            self._produce(message)


def _event(payload: bytes, tenant: str, truck_id: str) -> dict[str, Any]:
    """The event in a payload. Raises ValueError (pydantic's is one) with the reason where there is none."""
    if len(payload) > LARGEST_BYTES:
        raise ValueError("payload")
    fix = Telemetry.model_validate_json(payload)
    for name, given, level in (("tenant", fix.tenant, tenant), ("truck_id", fix.truck_id, truck_id)):
        if given is not None and given != level:
            raise ValueError(f"{name} is {given!r}, but the MQTT topic says {level!r}; send what is true")
    # Of what the message says, so that it is the same when it comes again.
    event_id = f"{truck_id}/{fix.sequence}/{fix.occurred_at}"
    return fix.event(event_id=event_id, tenant=tenant, truck_id=truck_id)


def _reason(error: ValueError, payload_bytes: int) -> str:
    if payload_bytes > LARGEST_BYTES:
        return (
            f"the payload has {payload_bytes} bytes, of which the first {KEPT_BYTES} are kept; send one fix"
        )
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "payload"
    return f"{field}: {first['msg'].removeprefix('Value error, ')}; correct the device's message"


def main() -> None:
    """Run the bridge as a process until SIGTERM. Never returns."""

    def bridge(settings: Settings, health: Health) -> None:
        ending = threading.Event()
        process.on_termination(ending.set)
        health.ok("running")
        Bridge(settings, health).run(ending)

    process.run("connector", "mqtt", bridge)
