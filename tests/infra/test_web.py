"""HTTP services: routers by name, requests measured by route, readiness looked at once a second."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from infra import problems, web
from infra.telemetry import web as telemetry
from infra.telemetry.health import Health


def test_a_module_that_does_not_exist_is_left_out() -> None:
    """A domain without the file has no routes; neither a missing package nor a missing module is an error."""
    assert list(web.routers(["no_such_package.http", "connectors.no_such_domain.http"])) == []


def test_a_module_that_is_broken_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a service does not start: a failing import, or a module without router, raises."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "broken_domain"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "http.py").write_text("import a_library_that_is_not_there\n")
    (package / "empty.py").write_text("")
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        list(web.routers(["broken_domain.http"]))
    with pytest.raises(TypeError, match="APIRouter"):
        list(web.routers(["broken_domain.empty"]))
    sys.modules.pop("broken_domain", None)


def count(**labels: str) -> float:
    return REGISTRY.get_sample_value("millrace_http_requests_total", {"service": "test", **labels}) or 0.0


def test_requests_are_counted_by_route_and_not_by_path() -> None:
    """Each request counts under its template, what has no route under `unmatched`, and a 500 as 500."""
    app = FastAPI()

    @app.get("/things/{name}")
    async def thing(name: str) -> str:
        if name == "broken":
            raise RuntimeError
        return name

    async def check() -> dict[str, str | None]:
        return {}

    problems.install(app)
    telemetry.install(app, "test", Health(), check)
    with TestClient(app) as client:
        for path in ("/things/1", "/things/2", "/things/broken", "/else/3"):
            client.get(path)
        client.request("BREW", "/things/1")
        served = client.get("/metrics")
    assert served.headers["content-type"].startswith("text/plain")
    assert count(method="GET", route="/things/{name}", status="200") == 2
    assert count(method="GET", route="/things/{name}", status="500") == 1
    assert count(method="GET", route="unmatched", status="404") == 1
    assert count(method="other", route="/things/{name}", status="405") == 1
    assert 'millrace_http_requests_total{method="GET",route="/things/{name}",service="test"' in served.text


def test_readiness_is_looked_at_once_a_second() -> None:
    """Probes more often than once a second do not reach the broker; a change is seen after that second."""
    app = FastAPI()
    asked: list[int] = []
    reasons: dict[str, str | None] = {"broker": "is away"}

    async def check() -> dict[str, str | None]:
        asked.append(1)
        return reasons

    telemetry.install(app, "test", Health(), check)
    with TestClient(app) as client:
        for _ in range(3):
            answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {"ready": False, "conditions": {"broker": "is away"}}
        assert len(asked) == 1
        reasons["broker"] = None
        time.sleep(1.1)
        assert client.get("/health/ready").status_code == 200
        assert client.get("/health/live").json() == {"live": True}
    assert len(asked) == 2


ENDLESS = """
import asyncio, threading
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from infra import web
import sys

app = FastAPI()
app.state.ending = threading.Event()

@app.get("/")
async def endless():
    async def ticks():
        while not app.state.ending.is_set():
            yield b"tick\\n"
            await asyncio.sleep(0.05)
    return StreamingResponse(ticks())

web.run(app, sys.argv[1], 30.0)
"""


def test_an_answer_without_end_ends_when_the_service_does() -> None:
    """SIGTERM while somebody streams: the stream is told, ends well, and nobody waits for the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, url], cwd=Path(__file__).parents[2]) as process:
        try:
            until = time.monotonic() + 30
            while True:
                try:
                    with httpx.stream("GET", url, timeout=10, trust_env=False) as answer:
                        chunks = answer.iter_bytes()
                        assert next(chunks).startswith(b"tick")
                        process.send_signal(signal.SIGTERM)
                        began = time.monotonic()
                        for _ in chunks:
                            pass
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < until
                    time.sleep(0.1)
            assert process.wait(10) in (0, -signal.SIGTERM)
            assert time.monotonic() - began < 5
        finally:
            process.kill()
