"""Telemetry of an HTTP service: requests counted and timed, /metrics, /health/live and /health/ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.telemetry.health import Health
from infra.telemetry.metrics import HTTP_REQUESTS, HTTP_SECONDS

Checks = Callable[[], Awaitable[Mapping[str, str | None]]]
"""Looks at what the service depends on: condition name to None (holds) or the reason why it does not."""

FRAMEWORKS_OWN: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False}
"""For `FastAPI(telemetry=…)`: by itself it sends what it sees, bodies too, where the environment says so, and
looks at each request whether it does."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def install(app: FastAPI, service: str, health: Health, check: Checks) -> None:
    """Give `app` its telemetry. Call it last: what the other middlewares answer is then measured, too.

    `check` runs when /health/ready is asked for, at most once a second however often that is.
    """
    probe = _Probe(health, check)

    @app.get("/metrics", tags=["platform"], include_in_schema=False)
    async def metrics() -> Response:
        # Whoever only scrapes must learn of it too, but not wait: a service that hangs would cost the scrape.
        probe.look_soon()
        return Response(await asyncio.to_thread(generate_latest), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health/live", tags=["platform"], summary="Whether this process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get(
        "/health/ready",
        tags=["platform"],
        summary="Whether everything this service needs is there",
        description="200, or 503 with the reason of each condition that does not hold.",
        responses={503: {"description": "Degraded", "content": {"application/json": {}}}},
    )
    async def ready() -> Response:
        await probe.look()
        document = health.document()
        status = 200 if document["ready"] else 503
        return Response(orjson.dumps(document), status, media_type="application/json")

    app.add_middleware(_Measured, service=service)


class _Probe:
    """Runs the checks, one run at a time, and keeps the outcome for a second."""

    def __init__(self, health: Health, check: Checks) -> None:
        self._health = health
        self._check = check
        self._lock = asyncio.Lock()
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    def look_soon(self) -> None:
        """Look without waiting for what comes of it."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self.look())

    async def look(self) -> None:
        async with self._lock:
            if time.monotonic() < self._looked_at + 1.0:
                return
            for name, reason in (await self._check()).items():
                if reason is None:
                    self._health.ok(name)
                else:
                    self._health.failing(name, reason)
            self._looked_at = time.monotonic()


class _Measured:
    """Counts and times each request under its route's template, never under its path.

    An answer that goes on for hours (server-sent events) is timed to its beginning: no answer was slow.
    """

    def __init__(self, app: ASGIApp, service: str) -> None:
        self._app = app
        self._service = service
        # Looked up by their labels' values, which takes the client library longer than all that it then does.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._timers: dict[tuple[str, str], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        started, took_s = time.perf_counter(), 0.0

        async def watched(message: Message) -> None:
            nonlocal status, took_s
            if message["type"] == "http.response.start":
                status = message["status"]
                if b"text/event-stream" in dict(message["headers"]).get(b"content-type", b""):
                    took_s = time.perf_counter() - started
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "unmatched")
            counter = self._counters.get((method, route, status))
            if counter is None:
                counter = HTTP_REQUESTS.labels(self._service, method, route, str(status or "disconnected"))
                self._counters[method, route, status] = counter
            counter.inc()
            timer = self._timers.get((method, route))
            if timer is None:
                timer = self._timers[method, route] = HTTP_SECONDS.labels(self._service, method, route)
            timer.observe(took_s or time.perf_counter() - started)
