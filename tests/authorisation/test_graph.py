"""Role × tenant × object × field of GraphQL: each cell answers as declared, by the first wall alone too."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

import api.database
import api.fleet
import api.fraud
import api.imaging
import api.orders
import api.pipelines
from api.app import create_app
from api.graphql import readings
from api.graphql.readings import QUERY, READINGS
from api.graphql.routes import PATH
from infra.identity import secured
from infra.identity.principal import Principal
from infra.postgres import connect
from infra.settings import Settings
from tests.authorisation import graph
from tests.authorisation.askers import askers_of
from tests.authorisation.graph import check_asking
from tests.authorisation.matrix import Asker, Failed
from tests.authorisation.rows import OWNERS, fill
from tests.signed_in import signed_in


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """A database with rows of two tenants."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
        assert connection.execute("SELECT count(*) FROM card_ledger").fetchone() == (len(OWNERS),)
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


def ask_all(settings: Settings, askers: list[Asker], only: str = "") -> int:
    app = create_app(settings)
    with TestClient(app) as client:
        return check_asking(app, client, askers, only)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("wall", ["both", "the queries alone"])
def test_every_field(
    filled: Settings, askers: list[Asker], wall: str, request: pytest.FixtureRequest
) -> None:
    """Rows are seen by those alone whose scope, tenant and objects they are; others have 401, 403 or null."""
    settings = filled if wall == "both" else request.getfixturevalue("first_wall")
    assert ask_all(settings, askers) > 3_000


@pytest.mark.parametrize("field", ["Query.order", "Query.studies", "Query.deadLetters", "Truck.path"])
def test_a_field_without_its_scope_fails_the_matrix(
    filled: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """One field that lets in whoever has passed the door, and the matrix names it."""
    checked = secured.authorise

    async def unchecked(connection: Any, scope: secured.Needed, *, again: bool = False) -> Principal:
        if isinstance(scope, secured.OneOf):
            return await checked(connection, scope, again=again)
        found: Principal = await connection.app.state.authenticator.principal(connection.headers)
        connection.state.principal = found
        return found

    monkeypatch.setattr(secured, "authorise", unchecked)
    with pytest.raises(Failed, match=f"{re.escape(field)} .*instead of 403"):
        ask_all(filled, askers, field)


OBJECT = r"\(\$2::text\[\] IS NULL OR [\w.]+ = ANY\(\$2\)\)"
CHECKS: dict[str, tuple[str, Any, str, str, str]] = {
    "tenant of a decision": ("Query.decision", api.fraud, "_ONE", r"tenant = \$1(?!\d)", "$1 <> ''"),
    "fleet of an alert": ("Query.alerts", api.fleet, "_ALERTS", OBJECT, "($2::text[] = $2 OR true)"),
    "customer of an order": ("Query.order", api.orders, "_ONE", OBJECT, "($2::text[] = $2 OR true)"),
    "objects of dead letters": (
        "Query.deadLetters",
        api.pipelines,
        "_OWN",
        r" AND \$3$",
        " AND ($3 OR true)",
    ),
}
"""By check: the field, the query that has it, the condition, and what is put in its place."""


@pytest.mark.parametrize("check", CHECKS)
def test_a_query_without_its_check_fails_the_matrix(
    first_wall: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    """One condition taken out of one query, and the matrix names the field."""
    field, module, name, condition, instead = CHECKS[check]
    query, cuts = re.subn(condition, lambda _: instead, getattr(module, name))
    assert cuts == 1
    monkeypatch.setattr(module, name, query)
    with pytest.raises(Failed, match=f"{re.escape(field)} .*with rows of"):
        ask_all(first_wall, askers, field)


def test_a_field_that_trusts_its_asker_fails_the_matrix(
    first_wall: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches for GraphQL that leave the patients out, and the matrix names the field."""
    conditions = api.imaging.Conditions
    monkeypatch.setattr(
        api.imaging,
        "Conditions",
        lambda attributes, tenant, _, aliases: conditions(attributes, tenant, None, aliases),
    )
    with pytest.raises(Failed, match=r"Study\.series .*with rows of"):
        ask_all(first_wall, askers, "Study.series")


def test_a_route_that_no_field_reads_as_fails_the_matrix(
    filled: Settings, askers: list[Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What REST has, GraphQL has, or the matrix says why not."""
    without = {name: reading for name, reading in READINGS[QUERY].items() if name != "alerts"}
    for module in (readings, graph):
        monkeypatch.setattr(module, "READINGS", {**READINGS, QUERY: without})
    with pytest.raises(Failed, match="/v1/alerts"):
        ask_all(filled, askers, "nothing")


def test_whoever_reads_nothing_learns_nothing(filled: Settings, askers: list[Asker]) -> None:
    """The schema is told to those who may read anything at all, by the door that data has."""
    with TestClient(create_app(filled)) as client:
        for asker in askers:
            answer = client.post(
                PATH, json={"query": "{ __schema { types { name } } }"}, headers=asker.headers
            )
            assert answer.status_code == (200 if asker.scopes & readings.SCOPES else 403), asker
