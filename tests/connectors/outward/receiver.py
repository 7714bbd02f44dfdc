"""A real receiver of webhooks, which behaves as a test wants: fails, hangs, loses answers, is down."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Received"], object]
"""What to do with a request: an HTTP status, or one of the words below, or (status, headers)."""

LOSE, HANG, ENDLESS, HUGE = "lose", "hang", "endless", "huge"


@dataclass
class Received:
    """A request, whether or not it was answered well."""

    headers: dict[str, str]
    body: bytes
    at: float
    n: int
    """Its number among all, from 0."""
    answered: bool = False

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def event(self) -> str:
        return str(self.told["data"]["event_id"])

    @property
    def merchant(self) -> str | None:
        merchant: str | None = self.told["data"]["merchant_id"]
        return merchant


@dataclass
class Receiver:
    """Listens from `up` to `down`, always on the same port; what it has seen stays."""

    behave: Behaviour = lambda _: 200
    seen: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def taken(self) -> list[Received]:
        """What was answered with 2xx, in order."""
        return [r for r in self.seen if r.answered]

    def up(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver._connections.add(self.connection)

            def finish(self) -> None:
                receiver._connections.discard(self.connection)
                try:
                    super().finish()
                except OSError:
                    return  # who asked has gone

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # who asked was killed while asking: that is no delivery
                headers = {name.lower(): value for name, value in self.headers.items()}
                with receiver._lock:
                    received = Received(headers, body, time.time(), len(receiver.seen))
                    receiver.seen.append(received)
                receiver._answer(self, received)

            def log_message(self, *_: object) -> None:
                """Nothing: a failing test shows `seen`."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Killed deliverers reset their connections: that is meant."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):  # kept alive, it would go on answering
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        wanted = self.behave(received)
        status, headers = wanted if isinstance(wanted, tuple) else (wanted, {})
        try:
            match status:
                case "lose":
                    handler.close_connection = True
                    handler.connection.shutdown(socket.SHUT_RDWR)
                case "hang":
                    handler.close_connection = True
                    time.sleep(5)
                case "endless":
                    handler.close_connection = True
                    handler.send_response(200)
                    handler.end_headers()
                    while True:
                        handler.wfile.write(b" ")
                        time.sleep(0.05)
                case "huge":
                    received.answered = True
                    handler.close_connection = True
                    handler.send_response(200)
                    handler.end_headers()
                    while True:
                        handler.wfile.write(b"x" * 65_536)
                case int():
                    received.answered = 200 <= status < 300
                    handler.send_response(status)
                    for name, value in headers.items():
                        handler.send_header(name, value)
                    handler.send_header("content-length", "2")
                    handler.end_headers()
                    handler.wfile.write(b"ok")
        except OSError:
            handler.close_connection = True
