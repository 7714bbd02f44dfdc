"""GraphQL: bounds before anything is read, refusals as problem documents, and each reading counted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from graphql import get_introspection_query
from httpx2 import Response

import api.fleet
from api.app import create_app
from api.graphql.limits import MOST_COST, MOST_DEEP, READING
from api.graphql.readings import READINGS, UNPAGED_ROWS
from api.graphql.routes import MEDIA_TYPE, PATH, SCHEMA
from infra.postgres import connect
from infra.settings import Settings
from tests.authorisation.rows import OWNERS, fill
from tests.signed_in import key_of, signed_in

SEEN = OWNERS[0]


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """A database with rows of two tenants."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
    return database


@pytest.fixture(scope="module")
def headers(filled: Settings) -> dict[str, str]:
    """Of an operator, who reads all of a tenant."""
    return key_of(filled, "graphql", SEEN.tenant, ["operator"])


@pytest.fixture(scope="module")
def client(filled: Settings, headers: dict[str, str]) -> Iterator[TestClient]:
    with TestClient(create_app(filled), headers=headers) as made:
        yield made


def ask(client: TestClient, query: str, **more: Any) -> Response:
    return client.post(PATH, json={"query": query, **more})


def refused(answer: Response, title: str) -> str:
    """All that a 422 problem document says."""
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["title"], problem["instance"]) == (title, PATH)
    return str(answer.text)


def test_one_query_reads_what_several_routes_hold(client: TestClient) -> None:
    """A row, what leads on from it and another domain's, each as its REST route answers it."""
    answer = ask(
        client,
        """query Of($truck: String!, $order: String!) {
            truck(truckId: $truck) { truckId occurredAt latitude path(limit: 1) { items { eventId isLate } } }
            order(orderId: $order) { status totalMinor lines { sku quantity } history { items { version } } }
        }""",
        variables={"truck": f"{SEEN}-truck", "order": f"{SEEN}-order"},
    )
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    truck = client.get(f"/v1/trucks/{SEEN}-truck").json()
    path = client.get(f"/v1/trucks/{SEEN}-truck/path").json()["items"]
    assert data["truck"]["latitude"] == truck["latitude"]
    assert data["truck"]["path"]["items"] == [
        {"eventId": p["event_id"], "isLate": p["is_late"]} for p in path
    ]
    order = client.get(f"/v1/orders/{SEEN}-order").json()
    history = client.get(f"/v1/orders/{SEEN}-order/history").json()["items"]
    assert data["order"] == {
        "status": order["status"],
        "totalMinor": order["total_minor"],
        "lines": [{"sku": line["sku"], "quantity": line["quantity"]} for line in order["lines"]],
        "history": {"items": [{"version": change["version"]} for change in history]},
    }


def test_pages_go_on_by_their_cursor(client: TestClient) -> None:
    """A cursor of GraphQL is one of the REST route, and leads to the rest."""
    query = "query ($after: String) { trucks(limit: 1, cursor: $after) { items { truckId } nextCursor } }"
    first = ask(client, query).json()["data"]["trucks"]
    second = ask(client, query, variables={"after": first["nextCursor"]}).json()["data"]["trucks"]
    by_rest = client.get("/v1/trucks", params={"limit": 1, "cursor": first["nextCursor"]}).json()
    assert second["items"] == [{"truckId": by_rest["items"][0]["truck_id"]}] != first["items"]
    assert second["nextCursor"] is None


def test_what_is_not_there_is_null_beside_the_rest(client: TestClient) -> None:
    """With the problem document of the REST route; what is there is answered."""
    query = f'{{ order(orderId: "none") {{ status }} truck(truckId: "{SEEN}-truck") {{ truckId }} }}'
    body = ask(client, query).json()
    assert body["data"] == {"order": None, "truck": {"truckId": f"{SEEN}-truck"}}
    [error] = body["errors"]
    assert error["path"] == ["order"] and error["extensions"]["problem"]["status"] == 404
    assert error["message"] == client.get("/v1/orders/none").json()["detail"]


def test_a_query_in_a_circle_is_too_deep(client: TestClient) -> None:
    """Refused before anything is read, with the bound and the remedy."""
    inner, depth = "truckId", 2
    while depth <= MOST_DEEP:
        inner, depth = f"alerts(limit: 1) {{ items {{ truck {{ {inner} }} }} }}", depth + 3
    text = refused(ask(client, f'{{ truck(truckId: "x") {{ {inner} }} }}'), "Too deep a query")
    assert f"more than {MOST_DEEP}" in text and "step by step" in text


@pytest.mark.parametrize(
    ("query", "cost"),
    [
        ("{ trucks(limit: 500) { items { truckId } } }", READING + 500),
        ("{ pipelines { name } }", READING + UNPAGED_ROWS),
        (
            "query ($n: Int = 10) { trucks(limit: $n) { items { path(limit: 3) { nextCursor } } } }",
            READING + 10 + 10 * (READING + 3),
        ),
        (
            "{ a: trucks(limit: 2) { ...on TruckPage { nextCursor } } ...B } fragment B on Query"
            " { b: trucks(limit: 3) { nextCursor } }",
            2 * READING + 5,
        ),
    ],
)
def test_the_cost_counts_rows_and_readings(client: TestClient, query: str, cost: int) -> None:
    """Each row one, each reading as declared, and what stands below a list as often as its limit says."""
    answer = ask(client, query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["extensions"]["cost"] == cost


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        ("{ trucks(limit: 1000) { items { path(limit: 1000) { items { eventId } } } } }", {}),
        ("query ($n: Int!) { trucks(limit: $n) { items { alerts { nextCursor } } } }", {"n": 1000}),
        ("{ " + " ".join(f"a{n}: trucks(limit: 1000) {{ nextCursor }}" for n in range(3)) + " }", {}),
    ],
    ids=["nested", "by a variable", "by aliases"],
)
def test_a_query_that_may_bring_too_much_is_refused(
    client: TestClient, query: str, variables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what its limits allow, before anything is read."""
    monkeypatch.setattr(api.fleet, "_ALL", "not SQL")
    text = refused(ask(client, query, variables=variables), "Too costly a query")
    assert f"more than {MOST_COST}" in text and "lower a limit" in text


def test_fragments_of_fragments_end(client: TestClient) -> None:
    """A text of some lines that would be a million fields is refused."""
    names = [f"f{n}" for n in range(20)]
    chain = " ".join(f"fragment {a} on Query {{ ...{b} ...{b} }}" for a, b in pairwise(names))
    last = f"fragment {names[-1]} on Query {{ __typename }}"
    text = refused(ask(client, f"{{ ...f0 }} {chain} {last}"), "Too large a query")
    assert "more than 2000 fields" in text


@pytest.mark.parametrize(
    ("query", "more", "reason"),
    [
        ("{ order", {}, "Syntax Error"),
        ("{ orders { status } }", {}, "Cannot query field"),
        ('{ order(orderId: "x") { secret } }', {}, "Cannot query field"),
        ("{ __typename " + "a: __typename " * 1_000 + "}", {}, "2000 tokens"),
        ("mutation { order }", {}, "mutation"),
        ("query A { __typename } query B { __typename }", {"operationName": "C"}, "operationName"),
        ("query A { __typename } query B { __typename }", {}, "operation"),
        ("", {}, "query"),
        ('{ order(orderId: "a/b") { status } }', {}, "orderId"),
        ('{ alerts(from: "monday") { nextCursor } }', {}, "monday"),
        ("{ trucks(limit: 0) { nextCursor } }", {}, "greater than or equal to 1"),
        ('{ alerts(from: "2026-01-01T00:00:00") { nextCursor } }', {}, "from"),
        ("query ($n: Int!) { trucks(limit: $n) { nextCursor } }", {"variables": {"n": "many"}}, "Int"),
        ('{ trucks(cursor: "!") { nextCursor } }', {}, "no cursor"),
        ('{ studies(studyDate: "monday") { patientID } }', {}, "StudyDate"),
        ('{ order(orderId: "\\u0000") { status } }', {}, "orderId"),
    ],
)
def test_a_query_that_cannot_be_used_is_refused_with_the_reason(
    client: TestClient, query: str, more: dict[str, Any], reason: str
) -> None:
    """As a problem document, whoever finds it out: the grammar, the schema, or the route's own bounds."""
    answer = ask(client, query, **more)
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert reason in answer.text and "Traceback" not in answer.text


def test_an_argument_is_named_in_the_problem(client: TestClient) -> None:
    """Where a route bounds it, the field at fault is the argument."""
    [error] = ask(client, '{ order(orderId: "a/b") { status } }').json()["errors"]
    assert error["field"] == "orderId" and "pattern" in error["reason"]


def test_each_reading_counts_as_a_request(filled: Settings) -> None:
    """Who may read five times in a long while has read five orders, by one query or by five."""
    few = Settings({**filled.environ, "MILLRACE_LIMITS": "read=1/h:5"})
    names = "abcdef"
    with TestClient(
        create_app(few), headers=key_of(filled, "five-reads", SEEN.tenant, ["operator"])
    ) as client:
        five = " ".join(f'{n}: order(orderId: "{SEEN}-order") {{ status }}' for n in names[:5])
        answer = ask(client, f"{{ {five} }}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["ratelimit-remaining"] == "0"
        again = ask(client, f"{{ {five} }}")
    assert again.status_code == 429 and again.headers["retry-after"]
    assert again.headers["content-type"] == "application/problem+json"


def test_a_table_that_is_away_is_a_problem(client: TestClient, filled: Settings) -> None:
    """503 with Retry-After as on the REST route, and nothing of the database's words."""
    with connect(filled.database_url) as connection:
        connection.execute("ALTER TABLE truck_alerts RENAME TO away_for_a_moment")
        try:
            answer = ask(client, "{ alerts { nextCursor } }")
        finally:
            connection.execute("ALTER TABLE away_for_a_moment RENAME TO truck_alerts")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "truck_alerts" not in answer.text


def test_what_nobody_expected_tells_nothing(
    filled: Settings, headers: dict[str, str], monkeypatch: Any
) -> None:
    """An error in a handler is a 500 problem as on the REST route; its reason stands in the log alone."""
    monkeypatch.setattr(api.fleet, "_ALL", "SELECT no_such_function()")
    with TestClient(create_app(filled), headers=headers) as client:
        answer = ask(client, "{ trucks { nextCursor } }")
    assert answer.status_code == 500 and "no_such_function" not in answer.text


def test_the_schema_tells_of_itself(client: TestClient) -> None:
    """Introspection costs nothing and gives the schema that is published in docs/schema.graphql."""
    answer = ask(client, get_introspection_query())
    assert answer.status_code == 200, answer.text
    assert answer.json()["extensions"] == {"cost": 0, "depth": 0}
    names = {t["name"] for t in answer.json()["data"]["__schema"]["types"]}
    assert READINGS.keys() <= names
    published = Path(__file__).parents[2] / "docs" / "schema.graphql"
    assert published.read_text() == SCHEMA.as_str() + "\n"


def test_the_media_type_of_graphql_over_http(client: TestClient) -> None:
    """Given to who accepts it, and JSON to everybody else."""
    query = {"query": "{ __typename }"}
    for accept, given in ((MEDIA_TYPE, MEDIA_TYPE), ("*/*", "application/json")):
        answer = client.post(PATH, json=query, headers={"Accept": accept})
        assert answer.headers["content-type"] == given


def test_the_audit_log_tells_what_was_read(client: TestClient, filled: Settings) -> None:
    """An entry by the principal's name, with the fields and nothing that was in them."""
    answer = ask(client, f'{{ order(orderId: "{SEEN}-order") {{ status }} stock {{ nextCursor }} }}')
    assert answer.is_success, answer.text
    assert client.app.state.audit.written(10)  # type: ignore[attr-defined]
    with connect(filled.database_url) as connection:
        found = connection.execute(
            "SELECT action, object, outcome, details ->> 'object' FROM audit.entries"
            " WHERE subject = 'graphql'"
        ).fetchall()
    assert ("read", f"POST {PATH}", "done", "order stock") in found


@pytest.mark.parametrize("of", ["Int", "String"])
def test_half_a_character_is_refused(client: TestClient, of: str) -> None:
    """In a variable, where JSON lets it through: with a reason, whatever it was to be."""
    field = "trucks(limit: $v) { nextCursor }" if of == "Int" else "order(orderId: $v) { status }"
    body = f'{{"query": "query ($v: {of}!) {{ {field} }}", "variables": {{"v": "\\ud800"}}}}'
    answer = client.post(PATH, content=body.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
