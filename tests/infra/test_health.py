"""Health: ready exactly while every named condition holds, and the server says why not."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from infra.settings import Settings
from infra.telemetry.health import Health, HealthServer, serve, serve_if_asked


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    running = serve(health, 0)
    yield running
    running.close()


def test_ready_only_while_every_condition_holds(health: Health) -> None:
    """One failing condition makes the process unready with its reason, until it is ok or forgotten."""
    assert health.ready() == (True, {})
    health.ok("broker")
    health.failing("card-transactions/3", "position has stood still for 12 s")
    assert health.ready() == (False, {"card-transactions/3": "position has stood still for 12 s"})
    health.failing("card-transactions/4", "likewise")
    health.ok("card-transactions/3")
    assert health.ready() == (False, {"card-transactions/4": "likewise"})
    health.forget("card-transactions/4")
    health.forget("never heard of")
    assert health.ready() == (True, {})


def test_conditions_named_at_the_start_fail_until_said_ok() -> None:
    """A process is not ready before it has looked."""
    health = Health("database")
    assert health.ready() == (False, {"database": "starting"})
    health.ok("database")
    assert health.ready() == (True, {})


def test_the_server_tells_the_truth(health: Health, server: HealthServer) -> None:
    """/health/ready answers 200 or 503 with reasons, /metrics the same as a gauge; live stays 200."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        health.ok("broker")
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "conditions": {"broker": "ok"}})
        assert "millrace_ready 1.0" in client.get("/metrics").text.splitlines()

        health.failing("orders/0", "position has stood still for 12 s")
        degraded = client.get("/health/ready")
        assert degraded.status_code == 503
        assert degraded.json()["conditions"]["orders/0"] == "position has stood still for 12 s"
        metrics = client.get("/metrics").text.splitlines()
        assert "millrace_ready 0.0" in metrics
        assert 'millrace_condition{condition="orders/0"} 0.0' in metrics
        assert client.get("/health/live").status_code == 200
        assert client.get("/elsewhere").status_code == 404


def test_the_server_is_bound_to_loopback(server: HealthServer) -> None:
    """Nothing beyond this machine reaches metrics and health."""
    assert server._server.server_address[0] == "127.0.0.1"


def test_it_serves_only_where_asked(health: Health) -> None:
    """Without MILLRACE_METRICS_PORT no port is opened; with it, that one is."""
    assert serve_if_asked(health, Settings({})) is None
    free = serve(health, 0)
    port = free.port
    free.close()
    server = serve_if_asked(health, Settings({"MILLRACE_METRICS_PORT": str(port)}))
    assert server is not None
    assert server.port == port
    server.close()
