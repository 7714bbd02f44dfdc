"""A card's transactions by filter and page, its balance and its profile, with Redis and without."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from psycopg import sql
from redis import Redis

from api.app import create_app
from infra.postgres import connect
from infra.settings import Settings
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER
from sinks.fraud import ROWS
from sinks.rows import from_ms
from tests.signed_in import key_of, signed_in

EXAMPLE: dict[str, Any] = json.loads(
    (CARD_DECISIONS.schema_path.parent / "examples" / "card-decisions.json").read_text()
)[0]
CARD = "card-of-test-cards"
HOUR_MS = 3_600_000
ANSWERS = ("APPROVE", "REVIEW", "DECLINE")


def made(n: int) -> dict[str, Any]:
    """The n-th of the card's decisions. Pairs have the same time."""
    amount = 100 * (n + 1)
    return EXAMPLE | {
        "event_id": f"cards-{n:02d}",
        "card_id": CARD,
        "occurred_at": EXAMPLE["occurred_at"] + n // 2 * HOUR_MS,
        "amount_minor": amount,
        "currency": "EUR" if n % 4 else "USD",
        "merchant_id": f"m-{n % 3}",
        "country": ("IE", "DE")[n % 2],
        "decision": ANSWERS[n % 3],
        **{name: 10**6 for name in CARD_DECISIONS.fields if name.startswith(("sum_", "max_"))},
    }


DECISIONS = [made(n) for n in range(12)]


def store(settings: Settings, decisions: list[dict[str, Any]]) -> None:
    """Rows as the sink would write them, with its position."""
    columns = (*CARD_LEDGER.columns, "source_partition", "source_offset")
    insert = sql.SQL("INSERT INTO card_ledger ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
    )
    with connect(settings.database_url) as connection:
        for decision in decisions:
            at = from_ms(decision["occurred_at"])
            connection.execute("SELECT millrace_ensure_partitions('card_ledger', %s, %s)", (at, at))
            n = int(decision["event_id"][-2:])
            for row in ROWS[0].rows(decision):
                connection.execute(insert, (*row, 3, n))
            connection.execute(
                "INSERT INTO checkpoints (consumer, topic, partition, topic_id, epoch, next_offset)"
                " VALUES ('fraud-sink', 'card-decisions', 3, 'none', 1, %s)"
                " ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
                (n + 1,),
            )


@pytest.fixture(scope="module")
def api(database: Settings) -> Iterator[TestClient]:
    """The query API over a ledger with twelve decisions on one card."""
    store(database, DECISIONS)
    with TestClient(create_app(database), headers=signed_in(database)) as client:
        yield client


def ids(api: TestClient, **query: Any) -> list[str]:
    """All pages' event ids."""
    found: list[str] = []
    while True:
        page = api.get(f"/v1/cards/{CARD}/transactions", params={"limit": 5, **query})
        assert page.status_code == 200, page.text
        found += [item["event_id"] for item in page.json()["items"]]
        if page.json()["next_cursor"] is None:
            return found
        query["cursor"] = page.json()["next_cursor"]


def wanted(holds: Any) -> list[str]:
    ordered = sorted(DECISIONS, key=lambda d: (d["occurred_at"], d["event_id"]), reverse=True)
    return [d["event_id"] for d in ordered if holds(d)]


def test_every_filter_chooses_its_own(api: TestClient) -> None:
    """Pages of what a filter, or several, leave are in order and whole."""
    assert ids(api) == wanted(lambda d: True)
    assert ids(api, merchant_id="m-1") == wanted(lambda d: d["merchant_id"] == "m-1")
    assert ids(api, country="DE") == wanted(lambda d: d["country"] == "DE")
    assert ids(api, currency="USD") == wanted(lambda d: d["currency"] == "USD")
    assert ids(api, decision="REVIEW", country="IE") == wanted(
        lambda d: d["decision"] == "REVIEW" and d["country"] == "IE"
    )
    between = {"amount_from": 300, "amount_to": 900}
    assert ids(api, **between) == wanted(lambda d: 300 <= d["amount_minor"] < 900)
    at = from_ms(DECISIONS[4]["occurred_at"]).isoformat()
    assert ids(api, **{"from": at}) == wanted(lambda d: d["occurred_at"] >= DECISIONS[4]["occurred_at"])
    assert ids(api, to=at) == wanted(lambda d: d["occurred_at"] < DECISIONS[4]["occurred_at"])
    assert ids(api, channel="no such") == []


@pytest.mark.parametrize("last", [None, 3])
def test_the_balance_is_the_sum_by_decision(api: TestClient, last: int | None) -> None:
    """Approved is spent, review is held, declined is neither; of all, or up to an event time."""
    until = None if last is None else DECISIONS[last]["occurred_at"]
    query = {} if until is None else {"at": from_ms(until).isoformat()}
    found = api.get(f"/v1/cards/{CARD}/balance", params=query).json()
    counted = [d for d in DECISIONS if until is None or d["occurred_at"] <= until]
    names = dict(zip(ANSWERS, ("spent_minor", "held_minor", "declined_minor"), strict=True))
    for entry in found["currencies"]:
        own = [d for d in counted if d["currency"] == entry["currency"]]
        assert entry["transactions"] == len(own)
        for answer, name in names.items():
            assert entry[name] == sum(d["amount_minor"] for d in own if d["decision"] == answer)
    assert {e["currency"] for e in found["currencies"]} == {d["currency"] for d in counted}


def expected(decisions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "transactions": len(decisions),
        "declined": sum(d["decision"] == "DECLINE" for d in decisions),
        "merchants": dict(Counter(d["merchant_id"] for d in decisions)),
        "countries": dict(Counter(d["country"] for d in decisions)),
        "hours": dict(Counter(str(from_ms(d["occurred_at"]).hour) for d in decisions)),
    }


def test_a_profile_is_never_an_old_one(api: TestClient, database: Settings) -> None:
    """It is remembered in Redis, counts the next transaction at once, and is the same without Redis."""
    away = Settings({**database.environ, "REDIS_URL": "redis://127.0.0.1:1/0"})
    url = f"/v1/cards/{CARD}/profile"
    with (
        TestClient(create_app(away), headers=signed_in(database)) as without,
        Redis.from_url(database.redis_url) as redis,
    ):
        redis.flushall()
        for decisions in (DECISIONS, [*DECISIONS, made(12)]):
            store(database, decisions[len(DECISIONS) :])
            first = api.get(url).json()
            assert {name: first[name] for name in expected(decisions)} == expected(decisions)
            assert redis.keys("millrace:profile:*")
            assert api.get(url).json() == first == without.get(url).json()


def test_a_card_nobody_used_is_unknown(api: TestClient, database: Settings) -> None:
    """404, as is one of which the asker may see nothing; a merchant's balance is of its own transactions."""
    for what in ("balance", "profile"):
        assert api.get(f"/v1/cards/nobody/{what}").status_code == 404
    for merchant, status in (("m-1", 200), ("m-9", 404)):
        key = key_of(database, f"shop-{merchant}", "default", ["viewer:fraud"], {"merchant": [merchant]})
        headers = {"Authorization": f"Bearer {key['X-API-Key']}"}
        for what in ("balance", "profile"):
            answer = api.get(f"/v1/cards/{CARD}/{what}", headers=headers)
            assert answer.status_code == status, answer.text
            assert "m-0" not in answer.text
