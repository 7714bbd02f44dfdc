"""Decisions are found by transaction and by card, page by page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from psycopg import sql

from api.app import create_app
from infra.postgres import connect
from infra.settings import Settings
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER
from sinks.fraud import ROWS
from sinks.rows import from_ms
from tests.signed_in import signed_in

EXAMPLE: dict[str, Any] = json.loads(
    (CARD_DECISIONS.schema_path.parent / "examples" / "card-decisions.json").read_text()
)[0]
CARD = "card-of-test-api"
HOUR_MS = 3_600_000
ANSWERS = ("APPROVE", "REVIEW", "DECLINE")
DECISIONS = [
    EXAMPLE
    | {
        "event_id": f"api-{n:02d}",
        "card_id": CARD,
        # Pairs of the same time: paging must not lose or repeat one of them.
        "occurred_at": EXAMPLE["occurred_at"] + n // 2 * HOUR_MS,
        "decision": ANSWERS[n % 3],
        "reasons": [f"reason {n}"],
    }
    for n in range(11)
]


@pytest.fixture(scope="module")
def api(database: Settings) -> Iterator[TestClient]:
    """The query API over a ledger with eleven decisions on one card."""
    columns = (*CARD_LEDGER.columns, "source_partition", "source_offset")
    insert = sql.SQL("INSERT INTO card_ledger ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
    )
    with connect(database.database_url) as connection:
        for n, decision in enumerate(DECISIONS):
            at = from_ms(decision["occurred_at"])
            connection.execute("SELECT millrace_ensure_partitions('card_ledger', %s, %s)", (at, at))
            for row in ROWS[0].rows(decision):
                connection.execute(insert, (*row, 0, n))
    with TestClient(create_app(database), headers=signed_in(database)) as client:
        yield client


def pages(api: TestClient, **query: Any) -> list[list[str]]:
    """The event ids on each page until there is no next one."""
    found = []
    while True:
        answer = api.get(f"/v1/cards/{CARD}/decisions", params=query)
        assert answer.status_code == 200, answer.text
        found.append([item["event_id"] for item in answer.json()["items"]])
        if answer.json()["next_cursor"] is None:
            return found
        query["cursor"] = answer.json()["next_cursor"]


def test_a_decision_by_its_transaction(api: TestClient) -> None:
    """The decision on a transaction comes with everything that the ledger holds of it."""
    found = api.get("/v1/decisions/api-03").json()
    assert datetime.fromisoformat(found.pop("occurred_at")) == from_ms(DECISIONS[3]["occurred_at"])
    assert found == {k: v for k, v in DECISIONS[3].items() if k != "occurred_at"}


def test_no_decision_is_a_problem(api: TestClient) -> None:
    """An unknown transaction is 404 with what that can mean; whoever names another's tenant is refused."""
    answer = api.get("/v1/decisions/nothing")
    assert answer.status_code == 404 and "dead letter" in answer.json()["detail"]
    for asked in ({"params": {"tenant": "other"}}, {"headers": {"Millrace-Tenant": "other"}}):
        assert api.get("/v1/decisions/api-03", **asked).status_code == 403
    assert api.get("/v1/decisions/api-03", params={"tenant": "default"}).status_code == 200


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_a_cards_decisions_newest_first(api: TestClient, limit: int) -> None:
    """Pages of any size hold each decision once, newest first, also where times are equal."""
    found = pages(api, limit=limit)
    assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1) and found[-1]
    assert [event_id for page in found for event_id in page] == [f"api-{n:02d}" for n in range(10, -1, -1)]


def test_filters(api: TestClient) -> None:
    """Decision and span of time narrow the list; `from` is included, `to` is not."""
    assert pages(api, decision="DECLINE", limit=2) == [["api-08", "api-05"], ["api-02"]]
    start = from_ms(DECISIONS[4]["occurred_at"]).isoformat()
    end = from_ms(DECISIONS[8]["occurred_at"]).isoformat()
    span = {"from": start, "to": end}
    assert pages(api, **span) == [["api-07", "api-06", "api-05", "api-04"]]
    assert pages(api, decision="APPROVE", **span) == [["api-06"]]


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"cursor": "x"}, {"decision": "MAYBE"}, {"from": "yesterday"}, {"to": "2025-01-01"}],
)
def test_wrong_queries_are_refused(api: TestClient, query: dict[str, Any]) -> None:
    """A query that cannot be answered is 422 and names its parameter."""
    answer = api.get(f"/v1/cards/{CARD}/decisions", params=query)
    assert answer.status_code == 422
    assert next(iter(query)) in json.dumps(answer.json())
