"""Health: named conditions with reasons, and the small server that shows them.

A process is ready when every condition it has named holds; it tells the truth because whoever sees a
condition change says so at once: a partition that stands still, a broker that is away.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infra.settings import Settings
from infra.telemetry.metrics import CONDITION, READY


class Health:
    """The conditions of one process; safe to use from any thread.

    Conditions named at the start fail with the reason "starting" until they are said to be ok.
    """

    def __init__(self, *starting: str) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[str, str | None] = {}
        for name in starting:
            self.failing(name, "starting")
        READY.set_function(lambda: float(self.ready()[0]))

    def ok(self, name: str) -> None:
        """The condition holds."""
        self._set(name, None)

    def failing(self, name: str, reason: str) -> None:
        """The condition does not hold; `reason` is one sentence, with the remedy where there is one."""
        self._set(name, reason)

    def forget(self, name: str) -> None:
        """The condition concerns this process no longer, as a partition that was revoked."""
        with self._lock:
            if name in self._reasons:
                del self._reasons[name]
                CONDITION.remove(name)

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Whether every condition holds, and the reason of each that does not."""
        with self._lock:
            failing = {name: reason for name, reason in self._reasons.items() if reason is not None}
        return not failing, failing

    def document(self) -> dict[str, Any]:
        """What /health/ready answers: `ready`, `conditions` (each "ok" or its reason)."""
        with self._lock:
            conditions = {name: reason or "ok" for name, reason in sorted(self._reasons.items())}
            ready = all(reason is None for reason in self._reasons.values())
        return {"ready": ready, "conditions": conditions}

    def _set(self, name: str, reason: str | None) -> None:
        with self._lock:
            self._reasons[name] = reason
            CONDITION.labels(name).set(reason is None)


class HealthServer:
    """A running server of /metrics, /health/live and /health/ready; `close` ends it."""

    def __init__(self, health: Health, port: int, host: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
                elif self.path == "/health/live":
                    self._answer(200, "application/json", b'{"live":true}')
                elif self.path == "/health/ready":
                    document = health.document()
                    status = 200 if document["ready"] else 503
                    self._answer(status, "application/json", orjson.dumps(document))
                else:
                    self._answer(404, "text/plain", b"use /metrics, /health/live or /health/ready\n")

            def _answer(self, status: int, media_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: a probe every second is no news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(health: Health, port: int, host: str = "127.0.0.1") -> HealthServer:
    """Serve /metrics, /health/live and /health/ready on a thread. Port 0 takes a free one (`.port`)."""
    return HealthServer(health, port, host)


def serve_if_asked(health: Health, settings: Settings) -> HealthServer | None:
    """As `serve`, on the port that the supervisor gave in MILLRACE_METRICS_PORT; None where it gave none."""
    return serve(health, settings.number("metrics_port")) if settings.text("metrics_port") else None
