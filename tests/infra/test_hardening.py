"""What protects every HTTP service: headers, foreign pages, time, the audit of what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import HTMLResponse
from starlette.websockets import WebSocketDisconnect

from infra import hardening, problems
from infra.audit import log as audit_module
from infra.audit.log import AuditLog
from infra.body_limit import AnswerTime, BodyLimit
from infra.hardening import admit
from infra.identity.principal import Principal
from infra.settings import SettingError, Settings

ANNA = Principal("anna", "person", "acme", frozenset({"fraud:read", "ops:write"}), {}, "token:1")
AWAY = {
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "DATABASE_AUDIT_URL": "postgresql://millrace_audit:x@127.0.0.1:1/millrace",
}
SCOPE = "x-millrace-scope"


def make_app(environ: dict[str, str] | None = None) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/cards/{card}")
    async def card(request: Request, card: str) -> dict[str, str]:
        await admit(request, ANNA, "fraud:read")
        request.state.rows = 3
        return {"card": card}

    @app.post("/v1/transactions", openapi_extra={SCOPE: "fraud:write"})
    async def transaction(request: Request) -> str:
        await admit(request, ANNA, "fraud:write")
        return "taken"

    @app.post("/v1/dead-letters/redrive", openapi_extra={SCOPE: "ops:write"})
    async def redrive(request: Request) -> str:
        await admit(request, ANNA, "ops:write")
        return "done"

    @app.get("/v1/forbidden")
    async def forbidden(request: Request) -> None:
        await admit(request, ANNA, "fraud:read")
        raise HTTPException(403)

    @app.post("/v1/oauth/token")
    async def token(request: Request) -> None:
        request.state.claimed = "ben"
        raise HTTPException(400)

    @app.get("/v1/unknown")
    async def unknown() -> None:
        raise HTTPException(401)

    @app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("inside")

    @app.get("/page")
    async def page() -> HTMLResponse:
        return HTMLResponse("<p>hello</p>", headers={"Cache-Control": "max-age=60"})

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await admit(socket, ANNA, "fraud:read")
        await socket.accept()
        await socket.close()

    problems.install(app)
    hardening.install(app, Settings({**AWAY, **(environ or {})}), "tests")
    return app


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setattr(audit_module, "AGAIN_S", 0.05)
    close = AuditLog.close
    # There is no database here: nothing is to be waited for at the end.
    monkeypatch.setattr(AuditLog, "close", lambda log: close(log, 0.01))
    return make_app()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def told(app: FastAPI) -> list[tuple[str, str, str, str, str]]:
    """What the audit log was told: subject, action, object, outcome and details."""
    log: AuditLog = app.state.audit
    entries = [*(entry for entry, _ in log._batch), *log._queue]
    return [
        (e.subject, e.action, e.object, e.outcome, e.details)
        for e in entries
        if not e.action.startswith("audit.")
    ]


@pytest.mark.parametrize(
    "path", ["/v1/cards/c1", "/v1/nothing", "/v1/broken", "/v1/unknown", "/v1/cards/c1?x"]
)
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    """Answers and errors of any kind forbid sniffing, framing, caching, referrers, and any active content."""
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "strict-transport-security" not in headers and "server" not in headers


def test_pages_may_load_what_is_ours_alone(client: TestClient) -> None:
    """A page's scripts and styles come from us, never inline; what a handler says of caching stays."""
    headers = client.get("/page").headers
    assert "script-src 'self';" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"] and headers["cache-control"] == "max-age=60"
    assert "'unsafe-inline'" in client.get("/docs").headers["content-security-policy"]


def test_tls_is_asked_for_where_it_is(app: FastAPI) -> None:
    """Over TLS a browser is told to come back by TLS alone."""
    with TestClient(app, base_url="https://testserver") as client:
        assert "max-age=31536000" in client.get("/page").headers["strict-transport-security"]


def test_no_foreign_page_reads_an_answer(client: TestClient) -> None:
    """CORS is closed: neither a request nor its preflight gets a permission."""
    origin = {"origin": "https://evil.example"}
    assert "access-control-allow-origin" not in client.get("/v1/cards/c1", headers=origin).headers
    preflight = client.options("/v1/cards/c1", headers={**origin, "access-control-request-method": "GET"})
    assert "access-control-allow-origin" not in preflight.headers and preflight.status_code == 405


def test_a_named_origin_may_and_no_other() -> None:
    """Only origins of the setting are let in, each by its name, and never with cookies."""
    app = make_app({"MILLRACE_CORS_ORIGINS": "https://console.example http://localhost:5173"})
    with TestClient(app) as client:
        for origin, allowed in (("https://console.example", True), ("https://console.example.evil", False)):
            headers = client.get("/v1/nothing", headers={"origin": origin}).headers
            assert headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in headers
        preflight = {"origin": "https://console.example", "access-control-request-method": "PUT"}
        assert client.options("/v1/cards/c1", headers=preflight).status_code == 200
    for wrong in ("*", "console.example", "https://console.example/", "null"):
        with pytest.raises(SettingError, match="is no origin"):
            make_app({"MILLRACE_CORS_ORIGINS": wrong})


def test_a_foreign_page_opens_no_websocket(client: TestClient) -> None:
    """An Origin other than ours is refused; ours and none (no browser) are taken."""
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/v1/live", headers={"origin": origin}),
        ):
            pass
    for headers in ({"origin": "http://testserver"}, {}):
        with client.websocket_connect("/v1/live", headers=headers):
            pass


def test_reads_refusals_and_logins_are_told(client: TestClient, app: FastAPI) -> None:
    """Who read which route and how many rows, and who was refused, known or not; never what was in it."""
    client.get("/v1/cards/secret-card")
    client.get("/v1/forbidden")
    client.get("/v1/unknown")
    client.post("/v1/oauth/token")
    client.post("/v1/transactions")
    client.get("/v1/nothing")
    with client.websocket_connect("/v1/live"):
        pass
    found = told(app)
    assert [entry[:4] for entry in found] == [
        ("anna", "read", "GET /v1/cards/{card}", "done"),
        ("anna", "denied", "GET /v1/forbidden", "denied"),
        ("", "denied", "GET /v1/unknown", "denied"),
        ("", "login", "POST /v1/oauth/token", "failed"),
        ("anna", "read", "WEBSOCKET /v1/live", "done"),
    ]
    assert found[3][4] == '{"address":"testclient","claimed":"ben","status":400}'
    assert found[0][4] == '{"address":"testclient","rows":3,"status":200}'
    assert "secret-card" not in str(found)


def test_what_cannot_be_told_is_not_done(
    client: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once entries wait for too long an operator's action is answered 503 and not done; reads go on."""
    assert client.post("/v1/dead-letters/redrive").text == '"done"'
    monkeypatch.setattr(audit_module, "MUST_WAITED_S", 0.0)
    refused = client.post("/v1/dead-letters/redrive")
    assert refused.status_code == 503 and refused.json()["title"] == "Audit log is away"
    assert client.get("/v1/cards/c1").status_code == 200
    assert [entry[1:4] for entry in told(app)] == [
        ("do", "POST /v1/dead-letters/redrive", "done"),
        ("do", "POST /v1/dead-letters/redrive", "failed"),
        ("read", "GET /v1/cards/{card}", "done"),
    ]


def test_the_log_is_closed_with_the_application(app: FastAPI) -> None:
    """Before the server hears that the application has ended, its chain has."""
    with TestClient(app) as client:
        client.get("/v1/cards/c1")
    assert app.state.audit._thread is not None and not app.state.audit._thread.is_alive()


def _slow(works_s: float, middleware: Any, **options: Any) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/answer")
    async def answer(request: Request) -> int:
        size = len(await request.body())
        await asyncio.sleep(works_s)
        return size

    problems.install(app)
    app.add_middleware(middleware, **options)
    return app


async def _post(app: FastAPI, pause_s: float) -> httpx.Response:
    async def body() -> Any:
        for _ in range(4):
            await asyncio.sleep(pause_s)
            yield b"x"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post("/v1/answer", content=body())


def test_an_answer_has_its_time() -> None:
    """What takes longer is ended with 503; the time counts from the last part of the request."""
    slow = asyncio.run(_post(_slow(30, AnswerTime, seconds=0.3), 0))
    assert slow.status_code == 503 and slow.json()["title"] == "Took too long"
    patient = asyncio.run(_post(_slow(0, AnswerTime, seconds=1.0), 0.4))
    assert (patient.status_code, patient.text) == (200, "4")


def test_a_body_has_its_time() -> None:
    """One that trickles in is ended with 408; one that comes in time is not."""
    limits = {"json_bytes": 100, "upload_bytes": 100}
    slow = asyncio.run(_post(_slow(0, BodyLimit, seconds=0.3, **limits), 0.2))
    assert slow.status_code == 408 and slow.headers["connection"] == "close"
    assert asyncio.run(_post(_slow(0.5, BodyLimit, seconds=0.4, **limits), 0.01)).status_code == 200
