"""Limits as a client of a service meets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from infra import problems
from infra.identity.principal import Principal
from infra.limits import web
from infra.limits.rates import Rate
from infra.limits.tokens import Tokens
from infra.limits.web import address_of
from infra.problems import Problem
from infra.quick_redis import QuickRedis

RATES = {"read": Rate(0.05, 16), "login": Rate(0.05, 8), "anonymous": Rate(0.05, 12)}
"""Four times what this process alone may: there is no Redis here."""


def make_app(under_way: int = 100) -> FastAPI:
    app = FastAPI()
    app.state.entered, app.state.leave = asyncio.Event(), asyncio.Event()

    async def charged(request: Request) -> None:
        name = request.headers.get("x-name", "anna")
        await web.charge(request, Principal(name, "person", "acme", frozenset(), {}, ""), "read")

    @app.get("/v1/things", dependencies=[Depends(charged)])
    async def things() -> str:
        return "things"

    @app.post("/v1/oauth/token")
    async def token() -> str:
        return "token"

    @app.get("/v1/private")
    async def private() -> None:
        raise HTTPException(401)

    @app.get("/v1/slow")
    async def slow() -> str:
        app.state.entered.set()
        await app.state.leave.wait()
        return "done"

    @app.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await app.state.leave.wait()

        return StreamingResponse(body(), media_type="text/event-stream")

    @app.websocket("/v1/private/live")
    async def private_live(socket: WebSocket) -> None:
        raise Problem(401, "Not authenticated", "Say who you are.")

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    @app.get("/health/live")
    async def health() -> str:
        return "live"

    problems.install(app)
    web.install(app, Tokens(QuickRedis("redis://127.0.0.1:1/0"), RATES), under_way)
    return app


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(make_app()) as client:
        yield client
        assert client.portal is not None
        client.portal.call(client.app.state.limits.close)  # type: ignore[attr-defined]


def test_a_principal_has_so_many_and_no_more(client: TestClient) -> None:
    """Every answer says what is left; beyond it come 429 problems with the time to wait; another is free."""
    answers = [client.get("/v1/things") for _ in range(6)]
    assert [a.status_code for a in answers] == [200] * 4 + [429] * 2
    assert [a.headers["ratelimit-remaining"] for a in answers] == ["3", "2", "1", "0", "0", "0"]
    assert answers[0].headers["ratelimit-limit"] == "4"
    refused = answers[-1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert int(refused.headers["retry-after"]) > 1 and "at once" in refused.json()["detail"]
    assert client.get("/v1/things", headers={"x-name": "ben"}).status_code == 200


def test_logins_are_counted_by_address(client: TestClient) -> None:
    """Whoever they are for, logins of one address are limited before their password is looked at."""
    assert [client.post("/v1/oauth/token").status_code for _ in range(4)] == [200, 200, 429, 429]


def test_who_proves_nothing_again_and_again_is_turned_away(client: TestClient) -> None:
    """After so many 401 an address is not heard any more for a while, whatever it asks for; probes are."""
    statuses = [client.get("/v1/private").status_code for _ in range(6)]
    assert statuses == [401] * 4 + [429] * 2
    turned_away = client.get("/v1/things")
    assert turned_away.status_code == 429 and int(turned_away.headers["retry-after"]) >= 1
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/live"):
        pass
    assert client.get("/health/live").status_code == 200


def test_a_websockets_handshake_is_no_way_around(client: TestClient) -> None:
    """Who proves nothing at a WebSocket's door is counted as elsewhere, and told when to come back."""
    refused = []
    for _ in range(6):
        with pytest.raises(WebSocketDenialResponse) as denial, client.websocket_connect("/v1/private/live"):
            pass
        refused.append(denial.value)
    assert [answer.status_code for answer in refused] == [401] * 4 + [429] * 2
    assert int(refused[-1].headers["retry-after"]) >= 1
    assert client.get("/v1/things").status_code == 429


def test_a_websocket_is_not_counted_among_requests(client: TestClient) -> None:
    """Where nobody is turned away, a WebSocket opens."""
    with client.websocket_connect("/v1/live"):
        pass


@asynccontextmanager
async def asking(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.state.limits.close()


def test_what_is_beyond_the_work_under_way_is_shed() -> None:
    """With all places taken a request is answered 503 at once, health is not; once one is free, 200 again."""

    async def run() -> None:
        app = make_app(under_way=2)
        async with asking(app) as client:
            slow = [asyncio.create_task(client.get("/v1/slow")) for _ in range(2)]
            await app.state.entered.wait()
            await asyncio.sleep(0.05)
            shed = await client.get("/v1/slow")
            assert shed.status_code == 503 and 1 <= int(shed.headers["retry-after"]) <= 3
            assert shed.headers["content-type"] == "application/problem+json"
            assert (await client.get("/health/live")).status_code == 200
            app.state.leave.set()
            assert [(await task).status_code for task in slow] == [200, 200]
            assert (await client.get("/v1/slow")).status_code == 200

    asyncio.run(run())


def test_a_client_that_leaves_frees_its_place() -> None:
    """A request that is cancelled counts no longer."""

    async def run() -> None:
        app = make_app(under_way=1)
        async with asking(app) as client:
            slow = asyncio.create_task(client.get("/v1/slow"))
            await app.state.entered.wait()
            slow.cancel()
            await asyncio.gather(slow, return_exceptions=True)
            app.state.leave.set()
            assert (await client.get("/v1/slow")).status_code == 200

    asyncio.run(run())


def test_an_open_stream_holds_no_place() -> None:
    """Server-sent events count until they have begun."""

    async def run() -> None:
        app = make_app(under_way=1)
        began = asyncio.Event()

        async def receive() -> dict[str, object]:
            await asyncio.sleep(3600)
            return {}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.body":
                began.set()

        scope = {
            "type": "http", "method": "GET", "path": "/v1/stream", "raw_path": b"/v1/stream", "headers": [],
            "query_string": b"", "scheme": "http", "server": ("test", 80), "client": ("192.0.2.1", 1),
            "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "root_path": "",
        }  # fmt: skip
        stream = asyncio.create_task(app(scope, receive, send))  # type: ignore[arg-type]
        await began.wait()
        async with asking(app) as client:
            app.state.leave.set()
            assert (await client.get("/v1/slow")).status_code == 200
        await stream

    asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_one_customers(host: str, counted_as: str) -> None:
    """Of IPv6 the /64 counts, as one customer has all of it; IPv4 within IPv6 is IPv4."""
    assert address_of({"type": "http", "client": (host, 1)}) == counted_as


def test_without_an_address_there_is_one_bucket() -> None:
    """A server that knows no client's address counts all of them as one."""
    assert address_of({"type": "http", "client": None}) == "unknown"
