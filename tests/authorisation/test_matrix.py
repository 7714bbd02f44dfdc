"""Role × tenant × object × route: every cell answers as declared, with either wall alone as well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from psycopg import sql

import api.database
import api.fleet
import api.fraud
import api.imaging
import api.orders
import api.pipelines
import api.webhooks
import connectors.fleet.http
import connectors.fraud.decisions
import connectors.fraud.http
import connectors.imaging.http
import connectors.orders.http
from api.app import create_app as create_api
from connectors.fraud import ledger
from connectors.fraud.ledger import Ledger
from connectors.gateway import create_app as create_gateway
from connectors.publish import publisher
from infra.identity import secured
from infra.identity.principal import Principal
from infra.postgres import connect
from infra.settings import Settings
from tests.authorisation.askers import askers_of
from tests.authorisation.matrix import (
    SEEN,
    Asker,
    Failed,
    Sent,
    check_reading,
    check_telling,
    check_writing,
    objects_of,
)
from tests.authorisation.rows import NOBODYS, OWNERS, TENANTS, Owner, fill, owners_in
from tests.signed_in import signed_in


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """A database with rows of two tenants."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
    return database


@pytest.fixture(scope="module")
def askers(filled: Settings) -> list[Asker]:
    """A key for each role, tenant and choice of objects."""
    return askers_of(filled)


@pytest.fixture
def first_wall(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The API by a role that the second wall does not hold: its queries' own conditions are all there is."""
    monkeypatch.setattr(api.database, "_ABOVE_THE_WALL", "SELECT false")
    return Settings({**filled.environ, "DATABASE_API_URL": filled.database_reader_url})


def read_all(settings: Settings, askers: list[Asker], only: str = "") -> int:
    app = create_api(settings)
    with TestClient(app) as client:
        return check_reading(app, client, askers, only)


def write_all(settings: Settings, askers: list[Asker], only: str = "") -> int:
    app, sent = create_gateway(settings), Sent()
    app.dependency_overrides[publisher] = lambda: sent
    with TestClient(app) as client:
        return check_writing(app, client, sent, askers, only)


def test_every_route_of_the_api(filled: Settings, askers: list[Asker]) -> None:
    """Rows are seen by those alone whose scope, tenant and objects they are; others have 401, 403 or 404."""
    assert read_all(filled, askers) > 1_500


def test_the_queries_alone_hold(first_wall: Settings, askers: list[Asker]) -> None:
    """Without row-level security the conditions of the queries give the same answers."""
    assert read_all(first_wall, askers) > 1_500


def test_every_route_of_the_gateway(filled: Settings, askers: list[Asker]) -> None:
    """An event is taken from those alone whose scope, tenant and objects it is, and bears their tenant."""
    assert write_all(filled, askers) > 1_000


def tell_all(settings: Settings, askers: list[Asker]) -> int:
    app = create_gateway(settings)
    with TestClient(app) as client:
        return check_telling(app, client, askers)


@pytest.mark.parametrize("wall", ["both", "the query alone", "row-level security alone"])
def test_the_gateway_repeats_decisions_to_their_own_alone(
    filled: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, wall: str
) -> None:
    """Whoever may send hears of decisions of their tenant and merchants, by either wall."""
    if wall == "the query alone":
        reader = Settings({**filled.environ, "DATABASE_GATEWAY_URL": filled.database_reader_url})
        monkeypatch.setattr(connectors.fraud.decisions, "Ledger", lambda _: Ledger(reader))
    if wall == "row-level security alone":
        query = "$1::text IS NOT NULL AND ($2::text[] IS NULL OR true) AND event_id = $3 "
        before, _, after = ledger._DECISION.partition("tenant = $1")
        monkeypatch.setattr(ledger, "_DECISION", before + query + after[after.index("ORDER") :])
    assert tell_all(filled, askers) > 80


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("tenant", TENANTS)
def test_row_level_security_alone_holds(filled: Settings, tenant: str, seen: str) -> None:
    """By the API's role a query without any condition finds the rows of its transaction's tenant and objects,
    in every table; without a transaction's word, or after it, none; and nothing can be written."""
    asker = Asker((), tenant, seen, {})
    with connect(filled.database_api_url) as connection:
        tables = _readable(filled)
        assert {"card_ledger", "dead_letters", "stock", "study_overview"} <= tables.keys()
        for table, nobodys in tables.items():
            count = sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))
            assert connection.execute(count).fetchall() == [], table
            with connection.transaction():
                connection.execute(
                    "SELECT set_config('millrace.tenant', %s, true),"
                    " set_config('millrace.objects', %s, true)",
                    (tenant, json.dumps(objects_of(tenant, seen))),
                )
                found = [owners_in(str(row)) for (row,) in connection.execute(count)]
            if nobodys:
                wanted = set() if asker.limited else {Owner(tenant, NOBODYS)}
            else:
                wanted = {owner for owner in OWNERS if asker.sees(owner)}
            assert set().union(*found) == wanted, table
            assert connection.execute(count).fetchall() == [], table
            with pytest.raises(Exception, match=r"permission denied|cannot"):
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


def _readable(settings: Settings) -> dict[str, bool]:
    """What the API's role may read of rows that belong to somebody, and whether they are no object's.
    Found in the database: a table that is granted later is among them."""
    with connect(settings.database_url) as connection:
        names = [
            str(name)
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class c"
                " WHERE relnamespace IN ('public'::regnamespace, 'live'::regnamespace)"
                " AND relkind IN ('r', 'p', 'v') AND has_table_privilege('millrace_api', c.oid, 'SELECT')"
                " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
            )
        ]
    return {
        name: name in ("stock", "stock_ledger", "dead_letters")
        for name in names
        if name not in ("checkpoints", "generations")
    }


def test_every_sink_table_is_behind_the_wall(filled: Settings) -> None:
    """A declared table without forced row-level security would be open, or be forgotten."""
    from schemas.pipelines import PIPELINES

    with connect(filled.database_url) as connection:
        forced = {
            str(name)
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity"
            )
        }
    assert {table.name for pipeline in PIPELINES for table in pipeline.tables} <= forced


TENANT = r"tenant = \$1(?!\d)"
OBJECT = r"\(\$2::text\[\] IS NULL OR [\w.]+ = ANY\(\$2\)\)"
# The parameter stays in use: its type is told by that.
READING: dict[str, tuple[str, Any, str, str, str]] = {
    "tenant of a decision": ("/v1/decisions/{event_id}", api.fraud, "_ONE", TENANT, "$1 <> ''"),
    "merchant of a card's decisions": (
        "/v1/cards/{card_id}/decisions", api.fraud, "_OF_CARD", OBJECT, "($2::text[] = $2 OR true)",
    ),
    "customer of an order": (
        "/v1/orders/{order_id}", api.orders, "_ONE", OBJECT, "($2::text[] = $2 OR true)",
    ),
    "tenant of the stock": ("/v1/stock", api.orders, "_ALL_STOCK", TENANT, "$1 <> ''"),
    "patient of a thumbnail": (
        "/v1/instances/{sop_uid}/thumbnail", api.imaging, "_THUMBNAIL", OBJECT, "($2::text[] = $2 OR true)",
    ),
    "fleet of an alert": ("/v1/alerts", api.fleet, "_ALERTS", OBJECT, "($2::text[] = $2 OR true)"),
    "merchant of missed events": (
        "/v1/webhooks/{endpoint_id}/events", api.webhooks, "_EVENTS",
        r"\(e\.merchant_id IS NULL OR o\.merchant_id = e\.merchant_id\)", "true",
    ),
    "tenant of dead letters": ("/v1/dead-letters", api.pipelines, "_OWN", TENANT, "$1 <> ''"),
    "objects of dead letters": ("/v1/dead-letters", api.pipelines, "_OWN", r" AND \$3$", " AND ($3 OR true)"),
}  # fmt: skip
"""By check: the path, the query that has it, the condition, and what is put in its place."""


@pytest.mark.parametrize("check", READING)
def test_a_query_without_its_check_fails_the_matrix(
    first_wall: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    """One condition taken out of one query, and the matrix names the cell."""
    path, module, name, condition, instead = READING[check]
    query, cuts = re.subn(condition, lambda _: instead, getattr(module, name))
    assert cuts == 1
    monkeypatch.setattr(module, name, query)
    with pytest.raises(Failed, match="with rows of"):
        read_all(first_wall, askers, path)


@pytest.mark.parametrize("path", ["/v1/trucks", "/v1/pipelines", "/dicomweb/studies"])
def test_a_route_without_its_scope_fails_the_matrix(
    filled: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """One route that lets in whoever is known, and the matrix names it."""
    checked = secured.authorise

    async def unchecked(connection: Any, scope: secured.Needed, *, again: bool = False) -> Principal:
        if connection.url.path != path:
            return await checked(connection, scope, again=again)
        found: Principal = await connection.app.state.authenticator.principal(connection.headers)
        connection.state.principal = found
        return found

    monkeypatch.setattr(secured, "authorise", unchecked)
    with pytest.raises(Failed, match=path):
        read_all(filled, askers, path)


@pytest.mark.parametrize(
    ("path", "module", "check"),
    [
        ("/v1/transactions/batch", connectors.fraud.http, "tenant_of"),
        ("/v1/transactions", connectors.fraud.http, "require_object"),
        ("/v1/telemetry", connectors.fleet.http, "require_object"),
        ("/v1/orders", connectors.orders.http, "tenant_of"),
        ("/v1/orders/{order_id}/cancel", connectors.orders.http, "require_object"),
        ("/v1/dicom", connectors.imaging.http, "require_object"),
    ],
)
def test_a_gateway_without_its_check_fails_the_matrix(
    filled: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, path: str, module: Any, check: str
) -> None:
    """A handler that believes what it is told, and the matrix names it."""
    believing = (lambda sender, given: given or sender.tenant) if check == "tenant_of" else lambda *_: None
    monkeypatch.setattr(module, check, believing)
    with pytest.raises(Failed, match=r"instead of 403|all the same"):
        write_all(filled, askers, path)


def test_a_route_that_nobody_thought_of_fails_the_matrix(filled: Settings, askers: list[Asker]) -> None:
    """A new route is not in the matrix until somebody says how it is tried."""
    app = create_api(filled)
    router = secured.SecuredRouter()

    @router.get("/v1/new", scope="ops:read")
    async def new() -> None: ...

    app.include_router(router)
    with TestClient(app) as client, pytest.raises(Failed, match="/v1/new"):
        check_reading(app, client, askers)


@pytest.fixture(autouse=True)
def _rows_are_there(filled: Settings) -> Iterator[None]:
    """The matrix proves nothing on an empty database."""
    with connect(filled.database_url) as connection:
        assert connection.execute("SELECT count(*) FROM card_ledger").fetchone() == (len(OWNERS),)
    yield
