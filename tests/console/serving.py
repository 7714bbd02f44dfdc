"""The API with its console, served on a port of its own as a browser would reach it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest
import uvicorn

import api.app
from api.app import create_app
from infra.settings import Settings
from schemas.declare import Pipelines
from tests.signed_in import unlimited


@contextmanager
def serving(
    settings: Settings,
    pipelines: Pipelines,
    monkeypatch: pytest.MonkeyPatch,
    headers: Mapping[str, str] | None = None,
) -> Iterator[httpx.Client]:
    """A client of the API over these pipelines, who sends these headers."""
    settings = unlimited(settings)
    monkeypatch.setattr(api.app, "PIPELINES", pipelines)
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=headers
        ) as client:
            yield client
    finally:
        app.state.ending.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def streamed(
    client: httpx.Client, path: str, seconds: float = 30
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Names and data of a stream's events, for at most so many seconds."""
    until = time.monotonic() + seconds
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = "message"
        for line in answer.iter_lines():
            assert time.monotonic() < until, f"nothing came of {path} within {seconds} s"
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, orjson.loads(line.removeprefix("data: "))
                name = "message"
