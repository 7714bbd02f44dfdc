"""The traffic engine against a real HTTP server that fails, hangs up and is restarted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

import pytest

from connectors.traffic import Http, Step, Traffic, TrafficError
from infra.settings import SETTINGS, Settings

STEPS = 200


class Gateway:
    """A small gateway on a port: remembers each acknowledged body, and misbehaves on some requests."""

    def __init__(self, port: int = 0, misbehave: Callable[[int], str] = lambda n: "") -> None:
        self.acknowledged: list[str] = []
        self.requests = 0
        self.connections: list[socket.socket] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                gateway.connections.append(self.request)
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                gateway.requests += 1
                manner = misbehave(gateway.requests)
                if manner == "hang up before":
                    self.close_connection = True
                    return
                if manner in ("503", "422"):
                    self._answer(int(manner))
                    return
                gateway.acknowledged.append(json.loads(body)["event_id"])
                if manner == "hang up after":
                    self.close_connection = True
                    return
                self._answer(202)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A closed connection is what these tests are about."""

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:  # kept alive, they would be served on
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()


def steps(rng: Random, now_ms: Callable[[], int]) -> Iterator[Step]:
    for n in range(STEPS):
        yield Http("POST", "/v1/things", json={"event_id": f"e{n}", "at": now_ms()})


def traffic(port: int) -> Traffic:
    settings = Settings({SETTINGS["gateway_url"].variable: f"http://127.0.0.1:{port}"})
    return Traffic(settings, {"things": (steps, 500.0)})


def until(holds: Callable[[], bool], deadline_s: float = 20) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_every_step_is_acknowledged_by_a_gateway_that_fails() -> None:
    """503s and connections that break before or after the effect lose no step; repeats keep their id."""
    manners = {0: "503", 1: "hang up before", 2: "hang up after"}
    gateway = Gateway(misbehave=lambda n: manners.get(n % 9, ""))
    running = traffic(gateway.port)
    running.start()
    try:
        until(lambda: running.tallies["things"].acknowledged == STEPS)
        running.stop(20)
    finally:
        gateway.close()
    assert set(gateway.acknowledged) == {f"e{n}" for n in range(STEPS)}
    assert len(gateway.acknowledged) > STEPS
    assert running.tallies["things"].repeated > 0
    assert running.tallies["things"].waiting == 0


def test_a_restarted_gateway_gets_the_steps_that_were_under_way() -> None:
    """While the gateway is away steps wait, and arrive once it is back on the same port."""
    first = Gateway()
    running = traffic(first.port)
    running.start()
    until(lambda: len(first.acknowledged) >= 20)
    first.close()
    until(lambda: running.tallies["things"].repeated > 3)
    second = Gateway(port=first.port)
    try:
        until(lambda: running.tallies["things"].acknowledged == STEPS)
        running.stop(20)
    finally:
        second.close()
    assert {*first.acknowledged, *second.acknowledged} == {f"e{n}" for n in range(STEPS)}


def test_a_refusal_is_final_and_counted() -> None:
    """A 4xx is an answer: the step is not repeated, and its reason is kept."""
    gateway = Gateway(misbehave=lambda n: "422" if n % 10 == 0 else "")
    running = traffic(gateway.port)
    running.start()
    tally = running.tallies["things"]
    try:
        until(lambda: tally.acknowledged + tally.refused == STEPS)
        running.stop(20)
    finally:
        gateway.close()
    assert (tally.refused, tally.acknowledged, gateway.requests) == (STEPS // 10, STEPS * 9 // 10, STEPS)
    assert "422" in tally.trouble


def test_stopping_tells_what_was_never_acknowledged() -> None:
    """Where no answer comes before the deadline, stop says how many steps wait and what they met."""
    gateway = Gateway(misbehave=lambda n: "503")
    running = traffic(gateway.port)
    running.start()
    try:
        until(lambda: running.tallies["things"].waiting > 0)
        with pytest.raises(TrafficError, match=r"things: \d+ .*503"):
            running.stop(1)
        until(lambda: gateway.requests > 3)
    finally:
        gateway.close()


def test_steps_are_started_at_the_rate_asked_for() -> None:
    """Open loop: 200 steps at 500 a second start within about 0.4 s, neither in a burst nor late."""
    gateway = Gateway()
    running = traffic(gateway.port)
    began = time.monotonic()
    running.start()
    try:
        until(lambda: running.tallies["things"].acknowledged == STEPS)
        took_s = time.monotonic() - began
        running.stop(20)
    finally:
        gateway.close()
    assert 0.38 <= took_s < 5
