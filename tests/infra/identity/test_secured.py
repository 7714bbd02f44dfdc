"""Routes say which scope they need, or neither they nor their application come to be; who was known stays
known while the database is away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.datastructures import Headers
from starlette.testclient import WebSocketDenialResponse

from api.app import create_app as create_api
from connectors.gateway import create_app as create_gateway
from infra import hardening, problems
from infra.audit.log import AuditLog
from infra.identity import authenticator, secured
from infra.identity.authenticator import Authenticator, authenticating
from infra.identity.principal import Principal
from infra.identity.secured import OneOf, SecuredRouter, Unsecured
from infra.problems import Problem
from infra.settings import Settings
from tests.api.line import Line
from tests.signed_in import key_of, signed_in


class Known:
    """An authenticator that knows of one principal."""

    def __init__(self, *scopes: str) -> None:
        self._scopes = frozenset(scopes)

    async def principal(self, headers: Headers) -> Principal:
        if "x-api-key" not in headers:
            raise Problem(401, "Not authenticated", "Nobody.")
        return Principal("anna", "person", "acme", self._scopes, {}, "test")


Sender = Annotated[Principal, Depends(secured.principal)]


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """An application with one route that reads a body, one whose scope is told by its request, and a
    WebSocket."""
    router = SecuredRouter(prefix="/v1")

    @router.post("/things", scope="fraud:write")
    async def things(body: list[int], sender: Sender) -> str:
        return f"{sender.subject} {sum(body)}"

    @router.websocket("/feed", scope="fraud:read")
    async def feed(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.principal.subject)
        await websocket.close()

    @router.get("/readings/{of}", scope=OneOf(frozenset({"fraud:read", "fleet:read"})))
    async def readings(request: Request, of: str) -> str:
        if of == "forgotten":
            return (await secured.principal(request)).subject
        return (await secured.authorise(request, f"{of}:read", again=True)).subject

    app = FastAPI()
    app.state.authenticator = Known("fraud:write")
    app.include_router(router)
    problems.install(app)
    # Neither Redis nor Postgres are there: each counts for itself, and nothing is waited for at the end.
    close = AuditLog.close
    monkeypatch.setattr(AuditLog, "close", lambda log: close(log, 0.01))
    away = {
        "MILLRACE_LIMITS": "read=1/m:100 write=1/m:100",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "DATABASE_AUDIT_URL": "postgresql://x@127.0.0.1:1/x",
    }
    hardening.install(app, Settings({**away, "MILLRACE_HOME": str(tmp_path)}), "tests")
    secured.install(app)
    with TestClient(app, headers={"X-API-Key": "k"}) as made:
        yield made


def test_a_route_needs_a_scope_that_exists() -> None:
    """Without scope=, or with one that no role has, a module with such a route fails to import."""
    router = SecuredRouter()
    with pytest.raises(TypeError, match="scope"):
        router.get("/x")  # type: ignore[call-arg]
    for decorate in (router.get, router.websocket):
        for wrong in ("fraud:raed", OneOf(frozenset()), OneOf(frozenset({"fraud:read", "fraud:raed"}))):
            with pytest.raises(Unsecured, match="no role has"):
                decorate("/x", scope=wrong)
        with pytest.raises(Unsecured, match="does something"):
            decorate("/x", scope=OneOf(frozenset({"fraud:read", "fraud:write"})))
    with pytest.raises(Unsecured, match="declares no scope"):
        router.add_api_route("/x", lambda: None)
    with pytest.raises(Unsecured, match="declares no scope"):
        router.api_route("/x", methods=["GET"])(lambda: None)


def _bare(app: FastAPI) -> None:
    app.get("/v1/bare")(lambda: None)


def _pretending(app: FastAPI) -> None:
    app.get("/v1/bare", openapi_extra={secured.DECLARED: "fraud:read"})(lambda: None)


def _included(app: FastAPI) -> None:
    inner = APIRouter()
    inner.get("/bare")(lambda: None)
    outer = APIRouter()
    outer.include_router(inner, prefix="/v1")
    app.include_router(outer)


def _mounted(app: FastAPI) -> None:
    app.mount("/v1/bare", FastAPI())


def _socket(app: FastAPI) -> None:
    @app.websocket("/v1/bare")
    async def bare(websocket: WebSocket) -> None: ...


@pytest.mark.parametrize("create", [create_api, create_gateway])
@pytest.mark.parametrize("add", [_bare, _pretending, _included, _mounted, _socket])
def test_an_application_with_an_open_route_does_not_start(create: Any, add: Any, database: Settings) -> None:
    """However a route comes in, without a scope it is no route of ours: neither server starts with it."""
    app = create(database)
    add(app)
    with pytest.raises(Unsecured, match="/v1/bare"), TestClient(app):
        pytest.fail("it started")


def test_who_may_not_is_told_before_the_body_is_read(client: TestClient) -> None:
    """A body that is no JSON is of no interest to whoever may not send one."""
    assert client.post("/v1/things", json=[1, 2]).json() == "anna 3"
    assert client.post("/v1/things", content=b"{").status_code == 422
    assert (
        client.post(
            "/v1/things", content=b"{", headers={"X-API-Key": "k", "Millrace-Tenant": "x"}
        ).status_code
        == 403
    )
    client.headers.pop("X-API-Key")
    assert client.post("/v1/things", content=b"{").status_code == 401


def test_a_missing_scope_is_named(client: TestClient) -> None:
    """403 says which scope is missing, in words and as RFC 6750 does."""
    app: Any = client.app
    app.state.authenticator = Known("fraud:read")
    answer = client.post("/v1/things", json=[1])
    assert answer.status_code == 403
    assert "fraud:write" in answer.json()["detail"]
    assert 'error="insufficient_scope", scope="fraud:write"' in answer.headers["www-authenticate"]


def test_a_request_may_say_which_scope_it_needs(client: TestClient) -> None:
    """The door opens to who has one of the scopes; the handler asks for the one, and knows nobody before."""
    app: Any = client.app
    refused = client.get("/v1/readings/fraud")
    assert (
        refused.status_code == 403 and "one of the scopes fleet:read fraud:read" in refused.json()["detail"]
    )
    app.state.authenticator = Known("fraud:read")
    assert client.get("/v1/readings/fraud").json() == "anna"
    assert client.get("/v1/readings/fleet").status_code == 403
    assert client.get("/v1/readings/forgotten").status_code == 500
    (found,) = (route for route in secured.declared(app) if route.path == "/v1/readings/{of}")
    assert found.scope == OneOf(frozenset({"fraud:read", "fleet:read"}))
    operation = client.get("/openapi.json").json()["paths"]["/v1/readings/{of}"]["get"]
    assert operation[secured.DECLARED] == ["fleet:read", "fraud:read"]
    assert operation["security"] == [{"token": ["fleet:read"]}, {"token": ["fraud:read"]}, {"key": []}]


def test_who_is_refused_is_known_by_name_to_limits_and_audit(client: TestClient) -> None:
    """Whoever asks takes a token of theirs, also for a refusal; what goes on within an answer takes none."""
    app: Any = client.app
    app.state.authenticator = Known("fraud:read")
    left = [
        int(client.get(f"/v1/readings/{of}").headers["ratelimit-remaining"])
        for of in ("fraud", "fleet", "fraud")
    ]
    assert left[0] > left[1] > left[2] >= left[0] - 3


def test_a_websocket_is_opened_to_whom_it_may_concern(client: TestClient) -> None:
    """Without the scope the handshake is refused; with it the handler knows who is there."""
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/v1/feed"):
        pytest.fail("it was opened")
    assert refused.value.status_code == 403 and refused.value.json()["title"] == "Not allowed"
    app: Any = client.app
    app.state.authenticator = Known("fraud:read")
    with client.websocket_connect("/v1/feed") as socket:
        assert socket.receive_text() == "anna"


def test_the_description_names_scopes_and_ways(client: TestClient) -> None:
    """openapi.json says of each operation which scope it needs, and how one authenticates."""
    schema = client.get("/openapi.json").json()
    operation = schema["paths"]["/v1/things"]["post"]
    assert operation[secured.DECLARED] == "fraud:write"
    assert {"token": ["fraud:write"]} in operation["security"]
    assert schema["components"]["securitySchemes"].keys() == {"token", "key", "receiver"}


def test_who_is_known_goes_on_while_the_database_is_away(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingestion outlives Postgres: a known sender is answered, for a while; another is told to come back."""
    signed_in(database)
    line = Line(database.database_gateway_url)
    line.open()
    app = create_gateway(Settings({**database.environ, "DATABASE_GATEWAY_URL": line.url}))
    monkeypatch.setattr(authenticator, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(authenticator, "AWAY_SECONDS", 0.0)
    known = key_of(database, "till-8", "default", ["producer:orders"])
    new = key_of(database, "till-9", "default", ["producer:orders"])
    try:
        with TestClient(app) as client:

            def ask(headers: dict[str, str]) -> int:
                # 422: who asks may do so, and is told what is wrong.
                return int(client.post("/v1/orders", json={}, headers=headers).status_code)

            assert ask(known) == 422
            line.cut()
            assert (ask(known), ask(new)) == (422, 503)
            monkeypatch.setattr(authenticator, "STALE_SECONDS", 0.0)
            assert ask(known) == 503
            line.open()
            assert (ask(known), ask(new)) == (422, 422)
    finally:
        line.cut()


def test_the_gateways_role_sees_no_passwords(database: Settings) -> None:
    """The gateway asks who is there by a role that may read neither password hashes nor refresh tokens."""
    import psycopg

    from infra.postgres import connect

    signed_in(database)
    with connect(database.database_gateway_url) as connection:
        connection.execute("SELECT subject, grants FROM identity.subjects")
        for query in (
            "SELECT secret_hash FROM identity.subjects",
            "SELECT hash FROM identity.refresh_tokens",
            "SELECT card_id FROM card_ledger",
            "SELECT amount_minor FROM card_ledger",
            "UPDATE identity.api_keys SET revoked_at = NULL",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(query.encode())


def test_an_api_whose_role_passes_the_wall_serves_nothing(database: Settings) -> None:
    """With the owner's address for the API's, rows of every tenant would be open: it answers 503 instead."""
    headers = signed_in(database)
    app = create_api(Settings({**database.environ, "DATABASE_API_URL": database.database_url}))
    with TestClient(app, headers=headers) as client:
        assert client.get("/v1/stock").status_code == 503
        assert client.get("/v1/pipelines").status_code == 200


def test_an_authenticator_asks_once_for_many(database: Settings) -> None:
    """A hundred requests at once with one key are one question to the database."""
    import asyncio

    headers = Headers(signed_in(database))
    app = FastAPI()
    asked = 0

    async def main() -> None:
        nonlocal asked
        async with authenticating(app, database, lambda: database.database_gateway_url, "test"):
            found: Authenticator = app.state.authenticator
            identities = found._identities
            ask = identities.ask

            async def counted(question: Any) -> Any:
                nonlocal asked
                asked += 1
                return await ask(question)

            identities.ask = counted  # type: ignore[method-assign]
            principals = await asyncio.gather(*(found.principal(headers) for _ in range(100)))
            assert {p.subject for p in principals} == {"admin"}

    asyncio.run(main())
    assert asked == 1
