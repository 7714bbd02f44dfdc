"""The gateway: an answer only after the broker's, readiness that is really looked up, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from confluent_kafka import Consumer, TopicPartition
from fastapi import Depends
from fastapi.testclient import TestClient

from connectors.__main__ import main
from connectors.gateway import create_app
from connectors.publish import Accepted, Event, Publisher, publisher
from infra.codec import Codec
from infra.identity.secured import SecuredRouter
from infra.settings import PORT_GATEWAY, Settings
from schemas.declare import Topic
from schemas.pipelines import PIPELINES
from tests.signed_in import signed_in

ROOT = Path(__file__).parents[2]

EVENT = {"event_id": "event-1", "occurred_at": 1_700_000_000_000, "device": "a", "reading": 5}

NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "SCHEMA_REGISTRY_URL": "http://127.0.0.1:1"}


@pytest.fixture
def client(registry: Settings, topic: Topic) -> Iterator[TestClient]:
    app = create_app(registry)
    router = SecuredRouter()

    @router.post("/v1/readings", scope="fleet:write", status_code=202)
    async def readings(body: Event, publisher: Annotated[Publisher, Depends(publisher)]) -> Accepted:
        return Accepted.of(body["event_id"], await publisher.publish(topic, body))

    app.include_router(router)
    with TestClient(app, headers=signed_in(registry)) as client:
        yield client


def value_at(bootstrap: str, topic: str, partition: int, offset: int) -> bytes:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader"})
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(20)
        assert message is not None
        value = message.value()
        assert isinstance(value, bytes)
        return value
    finally:
        consumer.close()


def test_an_accepted_event_is_in_the_topic(
    registry: Settings, codec: Codec, topic: Topic, client: TestClient
) -> None:
    """202 carries event id, topic, partition and offset, where the record then stands."""
    answer = client.post("/v1/readings", json=EVENT)
    assert answer.status_code == 202
    accepted = answer.json()
    assert (accepted["event_id"], accepted["topic"]) == ("event-1", topic.name)
    value = value_at(registry.kafka_bootstrap_servers, topic.name, accepted["partition"], accepted["offset"])
    assert codec.decode(topic, value).event["reading"] == 5


def test_an_event_the_schema_refuses_is_a_problem(client: TestClient) -> None:
    """422 from the encoder is a problem document with field and reason, as any other."""
    answer = client.post("/v1/readings", json={**EVENT, "reading": "high"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [e["field"] for e in answer.json()["errors"]] == ["reading"]


def test_ready_means_that_broker_and_registry_answer(client: TestClient) -> None:
    """/health/ready is 200 once both were reached; /docs and /metrics are there."""
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["conditions"]) == (200, {"broker": "ok", "registry": "ok"})
    assert client.get("/docs").status_code == 200
    assert "millrace_ready 1.0" in client.get("/metrics").text.splitlines()


def test_without_broker_and_registry_it_starts_and_says_so() -> None:
    """The gateway starts where nothing else runs; it lives, is not ready, and names what is away."""
    with TestClient(create_app(Settings(NOWHERE))) as client:
        assert client.get("/health/live").status_code == 200
        answer = client.get("/health/ready")
    assert answer.status_code == 503
    conditions = answer.json()["conditions"]
    assert "broker does not answer" in conditions["broker"]
    assert "registry does not answer" in conditions["registry"]


def test_every_domain_with_a_gateway_file_is_included() -> None:
    """A declared pipeline's connectors/<domain>/http.py has its routes in the gateway's description."""
    paths = create_app(Settings(NOWHERE)).openapi()["paths"]
    for pipeline in PIPELINES:
        if not (ROOT / "connectors" / pipeline.name / "http.py").exists():
            continue
        module = __import__(f"connectors.{pipeline.name}.http", fromlist=["router"])
        for route in module.router.routes:
            assert route.path.replace(":path", "") in paths


SLOW_GATEWAY = """
import asyncio, json, sys
from typing import Annotated
from fastapi import Depends
from connectors.gateway import create_app
from connectors.publish import Accepted, Publisher, publisher
from infra import web
from infra.identity.secured import SecuredRouter
from infra.settings import Settings
from infra.telemetry import logs
from pathlib import Path
from schemas import declare
declare.SCHEMAS_FOLDER = Path(sys.argv[1])
topic = declare.Topic(domain="readings", name=sys.argv[2], key="device", owner="tests", about="Readings.")
settings = Settings.load()
logs.configure("connector")
app = create_app(settings)
router = SecuredRouter()
@router.post("/v1/readings", scope="fleet:write", status_code=202)
async def readings(body: dict, publisher: Annotated[Publisher, Depends(publisher)]) -> Accepted:
    await asyncio.sleep(1.0)
    return Accepted.of(body["event_id"], await publisher.publish(topic, body))
app.include_router(router)
web.run(app, settings.gateway_url, 10)
"""


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.get(url, timeout=1)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.1)


def test_a_request_under_way_is_answered_before_the_end(registry: Settings, topic: Topic) -> None:
    """SIGTERM ends the gateway only after the request in hand has its acknowledgement; its log is JSON."""
    environ = {**os.environ, **registry.environ, "PYTHONPATH": str(ROOT)}
    headers = signed_in(registry)
    folder = str(topic.schema_path.parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_GATEWAY, folder, topic.name],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(f"{registry.gateway_url}/health/live")
            with httpx.Client(timeout=15, headers=headers) as client:
                # Shortly after the request has arrived.
                threading.Timer(0.4, process.send_signal, (signal.SIGTERM,)).start()
                answer = client.post(f"{registry.gateway_url}/v1/readings", json=EVENT)
            assert answer.status_code == 202
            _, errors = process.communicate(timeout=15)
        finally:
            process.kill()
    accepted = answer.json()
    assert value_at(registry.kafka_bootstrap_servers, topic.name, accepted["partition"], accepted["offset"])
    lines = [json.loads(line) for line in errors.splitlines()]
    assert {line["role"] for line in lines} == {"connector"}


def test_the_command_serves_the_gateway(registry: Settings) -> None:
    """`python -m connectors gateway` answers at GATEWAY_URL, on loopback only, until SIGTERM."""
    environ = {**os.environ, **registry.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "connectors", "gateway"], env=environ, cwd=ROOT) as process:
        try:
            wait_for(f"{registry.gateway_url}/health/live")
            assert httpx.get(f"{registry.gateway_url}/health/ready", timeout=10).status_code == 200
            listening = f"{registry.port(PORT_GATEWAY):04X}"
            bound = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            assert f"0100007F:{listening}" in bound
            assert f"00000000:{listening}" not in bound
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) in (0, -signal.SIGTERM)
        finally:
            process.kill()


@pytest.mark.parametrize("arguments", [[], ["carrier-pigeon"], ["gateway", "twice"]])
def test_an_unknown_connector_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a known name the command says which there are, and ends with 2."""
    assert main(arguments) == 2
    assert "connectors gateway" in capsys.readouterr().err
