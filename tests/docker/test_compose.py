"""The Docker way as one uses it: `millrace up` over compose, one pipeline end to end, `down`, `purge`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from infra.broker import producer
from infra.services import probe
from infra.services.docker import COMPOSE_FILE, CONTAINERS, DockerServices, run_docker
from infra.settings import PORT_PROMETHEUS, Settings
from infra.supervisor import specs
from schemas.fraud import CARD_TRANSACTIONS
from schemas.pipelines import PIPELINES

# The services' start and the platform's, several times in one test.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

CARD = "card-docker"


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Services and processes of an instance of its own, 1000 ports below the session's."""
    settings = Settings(
        {
            **os.environ,
            "MILLRACE_HOME": str(tmp_path_factory.mktemp("docker") / "home"),
            "MILLRACE_PORT_BASE": str(int(os.environ["MILLRACE_PORT_BASE"]) - 1000),
            "MILLRACE_SERVICES": "docker",
        }
    )
    try:
        up(settings)
        yield settings
    finally:
        done = millrace(settings, "down", "--purge")
    assert done.returncode == 0, done.stderr


def millrace(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(
        command, env=dict(settings.environ), capture_output=True, text=True, timeout=500, check=False
    )


def up(settings: Settings) -> None:
    done = millrace(settings, "up")
    assert done.returncode == 0, done.stderr


def until(ask: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not wanted(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(0.5)
    return answer


def containers(settings: Settings) -> dict[str, dict[str, Any]]:
    """What `docker inspect` says of each container of the instance, by compose service."""
    ids = mine(settings, "ps", "--all")
    found = json.loads(run_docker("inspect", *ids)) if ids else []
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def mine(settings: Settings, *listing: str) -> list[str]:
    """The ids that a listing of docker's has for this instance's compose project."""
    label = f"label=com.docker.compose.project={DockerServices(settings).project}"
    return run_docker(*listing, "--quiet", "--filter", label).split()


def transaction(event_id: str, minute: int) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "occurred_at": f"2026-01-02T03:{minute:02}:00Z",
        "card_id": CARD,
        "amount_minor": 1_000,
        "currency": "EUR",
    }


def submit(settings: Settings, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        f"{settings.gateway_url}/v1/transactions",
        json=body,
        headers={**settings.client_headers, "Prefer": "respond-async"},
        trust_env=False,
        timeout=20,
    )


def decided(settings: Settings) -> list[tuple[str, int]]:
    """The card's decisions by the API, oldest first: event id, and the transactions within the hour."""
    answer = httpx.get(
        f"{settings.api_url}/v1/cards/{CARD}/decisions",
        headers=settings.client_headers,
        trust_env=False,
        timeout=20,
    )
    return [(one["event_id"], one["count_1h"]) for one in reversed(answer.raise_for_status().json()["items"])]


def dead(settings: Settings) -> list[str]:
    """The error classes of the pipeline's dead letters, by the API."""
    answer = httpx.get(
        f"{settings.api_url}/v1/dead-letters",
        headers=settings.client_headers,
        params={"pipeline": "fraud"},
        trust_env=False,
        timeout=20,
    )
    return [one["error_class"] for one in answer.raise_for_status().json()["items"]]


def test_every_container_becomes_healthy(instance: Settings) -> None:
    """Each service's own health check in docker-compose.yml says healthy, and none restarted on the way."""
    names = set(instance.text("docker_services").split())
    states = until(
        lambda: {
            name: (one["State"]["Health"]["Status"], one["RestartCount"])
            for name, one in containers(instance).items()
        },
        lambda states: all(health == "healthy" for health, _ in states.values()),
    )
    assert states == dict.fromkeys(names, ("healthy", 0))


def test_images_are_those_that_the_variables_name(instance: Settings) -> None:
    """Each container runs the image that its variable names, and no other."""
    named = {n: os.environ[f"{n.upper()}_IMAGE"] for n in instance.text("docker_services").split()}
    assert {name: one["Config"]["Image"] for name, one in containers(instance).items()} == named


def test_nothing_is_published_beyond_loopback(instance: Settings) -> None:
    """Whatever listens on the instance's ports, containers and processes alike, listens on loopback alone."""
    base = int(instance.text("port_base"))
    listening = {
        (one.laddr.port - base, one.laddr.ip)
        for one in psutil.net_connections("tcp")
        if one.laddr and one.status == psutil.CONN_LISTEN and base <= one.laddr.port < base + 200
    }
    assert {ip for _, ip in listening} == {"127.0.0.1"}
    services = {CONTAINERS[name][1] for name in instance.text("docker_services").split()}
    assert services <= {distance for distance, _ in listening}
    bindings = [
        binding["HostIp"]
        for one in containers(instance).values()
        for published in (one["HostConfig"]["PortBindings"] or {}).values()
        for binding in published
    ]
    assert bindings == ["127.0.0.1"] * 5


def test_one_pipeline_end_to_end(instance: Settings) -> None:
    """Each transaction sent is decided once and found by the API; bytes that are none are a dead letter."""
    for body in (transaction("d-1", 0), transaction("d-2", 1), transaction("d-1", 0)):
        answer = submit(instance, body)
        assert answer.status_code == 202, answer.text
    refused = submit(instance, transaction("d-3", 2) | {"amount_minor": -1})
    assert refused.status_code == 422 and "amount_minor" in refused.text
    poison = producer(instance.kafka)
    poison.produce(CARD_TRANSACTIONS.name, b"\xff\xfe no event", CARD)
    assert poison.flush(20) == 0
    until(lambda: (decided(instance), dead(instance)), lambda found: len(found[0]) > 1 and found[1])
    assert (decided(instance), dead(instance)) == ([("d-1", 1), ("d-2", 2)], ["undecodable"])


def test_status_and_doctor(instance: Settings) -> None:
    """`status` shows every container and process as well, and `doctor` finds nothing to repair."""
    status = millrace(instance, "status", "--json")
    assert status.returncode == 0, status.stdout + status.stderr
    shown = json.loads(status.stdout)
    assert shown["kind"] == "docker"
    assert {one["name"]: one["state"] for one in shown["services"]} == dict.fromkeys(
        instance.text("docker_services").split(), "running"
    )
    assert {"connector", "processor", "sink", "api"} == {one["role"] for one in shown["processes"]}
    doctor = millrace(instance, "doctor")
    assert doctor.returncode == 0, doctor.stdout


def prometheus(instance: Settings, path: str) -> Any:
    """What Prometheus's API answers."""
    url = f"http://127.0.0.1:{instance.port(PORT_PROMETHEUS)}/api/v1/{path}"
    return httpx.get(url, trust_env=False).raise_for_status().json()["data"]


def test_prometheus_scrapes_the_platform(instance: Settings) -> None:
    """Prometheus in its container reaches every process, the supervisor too, on this machine's loopback."""
    wanted = {(s.role, s.pipeline) for s in specs(instance, PIPELINES, native=False)} | {
        ("supervisor", "all")
    }
    found = until(
        lambda: [
            (one["labels"]["role"], one["labels"]["pipeline"], one["health"], one["lastError"])
            for one in prometheus(instance, "targets")["activeTargets"]
        ],
        lambda targets: len(targets) == len(wanted) and all(health == "up" for _, _, health, _ in targets),
        seconds=30,
    )
    assert {target[:2] for target in found} == wanted


def test_prometheus_evaluates_every_alert_and_none_fires(instance: Settings) -> None:
    """The rules in the container are ours, and the running platform is healthy by all of them."""
    rules = until(
        lambda: [rule for group in prometheus(instance, "rules")["groups"] for rule in group["rules"]],
        lambda rules: rules and all(rule["health"] == "ok" for rule in rules),
        seconds=30,
    )
    text = (COMPOSE_FILE.parent / "infra" / "docker" / "rules.yml").read_text()
    assert [rule["name"] for rule in rules] == re.findall(r"- alert: (\w+)", text)
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_data_survives_down_and_up(instance: Settings) -> None:
    """After `down` no container is left; after `up` rows, windows and schemas are as they were."""
    schemas = probe.registry(instance.schema_registry_url)
    done = millrace(instance, "down")
    assert done.returncode == 0, done.stderr
    assert containers(instance) == {}
    up(instance)
    assert probe.registry(instance.schema_registry_url) == schemas
    assert decided(instance) == [("d-1", 1), ("d-2", 2)]
    for body in (transaction("d-2", 1), transaction("d-4", 3)):
        assert submit(instance, body).status_code == 202
    until(lambda: decided(instance), lambda found: len(found) > 2)
    assert decided(instance) == [("d-1", 1), ("d-2", 2), ("d-4", 3)]


def test_purge_leaves_nothing(instance: Settings) -> None:
    """`down --purge` leaves no container, volume or network, no process, and nothing in the state folder."""
    listings = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    assert all(mine(instance, *listing) for listing in listings)
    done = millrace(instance, "down", "--purge")
    assert done.returncode == 0, done.stderr
    assert [mine(instance, *listing) for listing in listings] == [[], [], []]
    assert json.loads(millrace(instance, "ps", "--json").stdout) == []
    assert [path.name for path in instance.home_path.glob("*")] == []
