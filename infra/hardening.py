"""What protects an HTTP service whoever asks: `install` is one line, and the last, of each application."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.audit.log import AuditAway, AuditLog, open_log
from infra.audit.web import Audited
from infra.body_limit import AnswerTime, BodyLimit
from infra.identity.principal import Principal
from infra.limits import web as limits
from infra.limits.rates import class_of, rates
from infra.limits.tokens import Tokens
from infra.problems import Problem
from infra.quick_redis import QuickRedis
from infra.settings import SETTINGS, SettingError, Settings
from infra.telemetry.health import Health

EVENTS = "text/event-stream"
TOLD_FIRST = frozenset({"ops:write", "identity:write", "scoring:write"})
"""Scopes of what must not be done while the audit log cannot tell of it."""

API_POLICY = b"default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    b" connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = (
    b"default-src 'none'; script-src https: 'unsafe-inline'; style-src https: 'unsafe-inline';"
    b" img-src https: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""FastAPI's pages take Swagger UI from elsewhere. They hold nothing, and show the description alone."""
DOCS_PAGES = frozenset({"/docs", "/redoc", "/docs/oauth2-redirect"})

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    (b"cache-control", b"no-store"),
)
_TRANSPORT = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")


def install(app: FastAPI, settings: Settings, service: str, health: Health | None = None) -> None:
    """Harden `app`: audit, limits, time and size of requests, headers. Call it when all else is added.

    Gives it `app.state.audit` and `app.state.limits`, and closes both when it ends. Raises `SettingError`.
    """
    app.state.audit = open_log(settings, service, health)
    tokens = Tokens(QuickRedis(settings.redis_url), rates(settings))
    seconds = float(settings.number("request_s"))
    origins = _origins(settings)
    app.add_middleware(
        BodyLimit,
        json_bytes=settings.number("max_json_bytes"),
        upload_bytes=settings.number("max_upload_bytes"),
        seconds=seconds,
    )
    app.add_middleware(AnswerTime, seconds=seconds)
    limits.install(app, tokens, settings.number("max_under_way"))
    app.add_middleware(Audited, log=app.state.audit)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "Last-Event-ID",
                "If-None-Match",
                "Idempotency-Key",
                "Prefer",
            ],
            expose_headers=[
                "ETag",
                "Location",
                "Preference-Applied",
                "Retry-After",
                "RateLimit-Limit",
                "RateLimit-Remaining",
                "RateLimit-Reset",
            ],
            max_age=600,
        )
    app.add_middleware(ForeignPages, origins=origins)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(_Closing, tokens=tokens, log=app.state.audit)


async def admit(connection: HTTPConnection, principal: Principal, scope: str) -> None:
    """Let `principal` go on to a route that needs this scope. Call it once for each request, as soon as it is
    known who asks, and before whether they may: a refusal is then told with their name.

    Raises `Problem`: 429 where their tokens are used up, 503 where what they are to do could not be told.
    """
    connection.state.asking = principal
    await limits.charge(connection, principal, class_of(scope, _goes_on(connection)))
    if scope in TOLD_FIRST:
        log: AuditLog = connection.app.state.audit
        try:
            log.check()
        except AuditAway:
            raise Problem(
                503,
                "Audit log is away",
                "What you ask for is done only where the audit log can tell of it; ask again later.",
                headers={"Retry-After": "10"},
            ) from None


def _goes_on(connection: HTTPConnection) -> bool:
    """Whether the answer has no end of its own: a WebSocket, or what its route declares as events."""
    declared = getattr(connection.scope.get("route"), "response_class", None)
    return connection.scope["type"] == "websocket" or getattr(declared, "media_type", None) == EVENTS


class SecurityHeaders:
    """Headers on every answer, also on errors; a handler's own `Cache-Control` and policy stay."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message["headers"])
                page = given.get(b"content-type", b"").startswith(b"text/html")
                # Of a page without a referrer browsers send forms with `Origin: null`, as a foreign page's.
                referrer = (b"referrer-policy", b"same-origin" if page else b"no-referrer")
                policy = (b"content-security-policy", _policy(scope["path"], page))
                ours = [*_HEADERS, referrer, policy]
                if scope["scheme"] == "https":
                    ours.append(_TRANSPORT)
                message["headers"] = [*message["headers"], *(h for h in ours if h[0] not in given)]
            await send(message)

        await self._app(scope, receive, with_headers)


class ForeignPages:
    """Refuses WebSockets that another site's page opens: browsers ask no permission for those, as they do by
    CORS for requests."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            headers = Headers(scope=scope)
            origin = headers.get("origin", "")
            ours = not origin or urlsplit(origin).netloc == headers.get("host")
            if not ours and origin not in self._origins:
                await send({"type": "websocket.close", "code": 1008, "reason": "foreign origin"})
                return
        await self._app(scope, receive, send)


class _Closing:
    """Closes what `install` opened, before the server hears that the application has ended."""

    def __init__(self, app: ASGIApp, tokens: Tokens, log: AuditLog) -> None:
        self._app, self._tokens, self._log = app, tokens, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await self._tokens.close()
                await asyncio.to_thread(self._log.close)
            await send(message)

        await self._app(scope, receive, closing)


def _policy(path: str, page: bool) -> bytes:
    if not page:
        return API_POLICY
    return DOCS_POLICY if path in DOCS_PAGES else PAGE_POLICY


def _origins(settings: Settings) -> list[str]:
    origins = settings.text("cors_origins").split()
    for origin in origins:
        parts = urlsplit(origin)
        if (
            parts.scheme not in ("http", "https")
            or not parts.netloc
            or origin != f"{parts.scheme}://{parts.netloc}"
        ):
            raise SettingError(
                f"{SETTINGS['cors_origins'].variable}: {origin!r} is no origin; write scheme and host"
                " alone, as https://console.example"
            )
    return origins
