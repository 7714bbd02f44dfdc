"""Role × tenant × object × topic: live events are heard by those alone whose they are, at both doors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from api import streams
from api.app import create_app
from infra.codec import Codec
from infra.identity import secured
from infra.identity.principal import Principal
from infra.identity.secured import SecuredRouter
from infra.settings import Settings
from schemas.declare import Topic
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS
from schemas.orders import ORDER_LOG
from tests.authorisation.askers import askers_of
from tests.authorisation.listening import DOORS, TOPICS, check_listening, doors, prepare
from tests.authorisation.matrix import Asker, Failed
from tests.signed_in import signed_in

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def ready(database: Settings, codec: Codec) -> Settings:
    """Every topic, and the identities' tables. Whoever proves nothing here does so often."""
    signed_in(database)
    prepare(database, codec)
    return Settings({**database.environ, "MILLRACE_LIMITS": "stream=10000/s anonymous=10000/s"})


@pytest.fixture(scope="module")
def askers(ready: Settings) -> list[Asker]:
    return askers_of(ready)


@pytest.fixture(scope="module")
def app(ready: Settings) -> FastAPI:
    return create_app(ready)


@pytest.fixture(scope="module")
def port(app: FastAPI) -> Iterator[int]:
    """Where the API is served."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    app.state.ending.set()
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears nothing is told where it stands at once."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.5)


def test_every_topic_at_both_doors(
    ready: Settings, codec: Codec, port: int, askers: list[Asker], app: FastAPI
) -> None:
    """Events are heard by those alone whose scope, tenant and objects they are; others have 401 or 403."""
    assert tuple(doors(app)) == DOORS
    cells = asyncio.run(check_listening(ready, codec, port, askers))
    assert cells > 2 * len(askers) * len(TOPICS)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_without_its_scope_fails_the_matrix(
    ready: Settings, codec: Codec, port: int, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """One door that lets in whoever is known, and the matrix names it."""
    checked = secured.authorise

    async def unchecked(connection: Any, scope: Any, *, again: bool = False) -> Principal:
        if connection.url.path != door:
            return await checked(connection, scope, again=again)
        found: Principal = await connection.app.state.authenticator.principal(connection.headers)
        return found

    monkeypatch.setattr(secured, "authorise", unchecked)
    with pytest.raises(Failed, match=f"{door} of card-decisions: .* instead of 403"):
        asyncio.run(check_listening(ready, codec, port, askers, [CARD_DECISIONS]))


def test_topics_without_their_scope_fail_the_matrix(
    ready: Settings, codec: Codec, port: int, askers: list[Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doors that take one topic's scope for another's, and the matrix names the cell."""
    checked = secured.authorise

    async def any_of_them(connection: Any, scope: Any, *, again: bool = False) -> Principal:
        return await checked(connection, streams.BY_TOPIC, again=again)

    monkeypatch.setattr(secured, "authorise", any_of_them)
    with pytest.raises(Failed, match=r"viewer:\w+ of .* instead of 403"):
        asyncio.run(check_listening(ready, codec, port, askers, [CARD_DECISIONS]))


def _all_tenants(share: streams.Share, record: Any) -> bool:
    return share.objects is None or record.event.get(share.field) in share.objects


def _all_objects(share: streams.Share, record: Any) -> bool:
    return record.tenant in share.tenants


@pytest.mark.parametrize("believing", [_all_tenants, _all_objects])
def test_a_share_without_its_check_fails_the_matrix(
    ready: Settings,
    codec: Codec,
    port: int,
    askers: list[Asker],
    monkeypatch: pytest.MonkeyPatch,
    believing: Any,
) -> None:
    """Events of another tenant, or of another object, that come through, and the matrix names the cell."""
    monkeypatch.setattr(streams.Share, "__contains__", believing)
    with pytest.raises(Failed, match="hears"):
        asyncio.run(check_listening(ready, codec, port, askers, [CARD_TRANSACTIONS]))


@pytest.mark.parametrize("topic", [ORDER_LOG, CARD_DECISIONS.dlq], ids=lambda t: t.name)
def test_nobodys_events_for_those_who_see_some_fail_the_matrix(
    ready: Settings,
    codec: Codec,
    port: int,
    askers: list[Asker],
    monkeypatch: pytest.MonkeyPatch,
    topic: Topic,
) -> None:
    """A topic whose events do not say whose they are, open to who sees only some, and the matrix names it."""

    def believing(_: Any, shown: streams.Shown, principal: Principal) -> streams.Share:
        return streams.Share(frozenset({principal.tenant}), "", None)

    monkeypatch.setattr(streams.Share, "of", classmethod(believing))
    with pytest.raises(Failed, match=f"of {topic.name}: .* instead of 403"):
        asyncio.run(check_listening(ready, codec, port, askers, [topic]))


def test_a_door_that_nobody_thought_of_fails_the_matrix(ready: Settings) -> None:
    """A new route by topic is not in the matrix until somebody says how it is tried."""
    app = create_app(ready)
    router = SecuredRouter()

    @router.get("/v1/new", scope=streams.BY_TOPIC)
    async def new() -> None: ...

    app.include_router(router)
    with pytest.raises(Failed, match="/v1/new"):
        list(doors(app))
