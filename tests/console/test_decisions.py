"""Decisions as pages, over a ledger that the real sink has written: found, explained, and proved."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra import versions
from infra.ledger.heads import open_heads
from infra.postgres import connect
from infra.settings import Settings
from models.rules.ruleset import body_of, in_share
from schemas.pipelines import PIPELINES
from tests.console.serving import serving
from tests.infra.ledger.conftest import Ledger, decision, ledger
from tests.signed_in import key_of

__all__ = ["ledger"]

TEXT = "WHEN amount > 50 THEN review REASON 'dear'"


@pytest.fixture
def client(database: Settings, ledger: Ledger) -> Iterator[httpx.Client]:
    """An analyst's requests, over 130 decisions of two tenants."""
    with connect(database.database_url) as connection:
        body = body_of(
            {"dear": TEXT, "quiet": TEXT},
            stages={"dear": {"stage": "canary", "share": 0.5, "cap": 0.01}, "quiet": {"stage": "shadow"}},
        )
        number = versions.publish(connection, "fraud", "rules", body, "tests")
    ledger.heads = open_heads(database)
    ledger.send([event(n, number) for n in range(130)])
    ledger.store()
    ledger.sign()
    key = key_of(database, f"analyst-{time.time_ns()}", "default", ["analyst"])
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch, key) as found:
        yield found


def event(n: int, rules_version: int) -> dict[str, Any]:
    base = decision(n)
    return {
        **base,
        "tenant": "acme" if n % 10 == 0 else "default",
        "occurred_at": base["occurred_at"] + n // 2 * 1000,
        "decision": ("APPROVE", "REVIEW")[n % 4 == 0],
        "fired_rules": ["dear@1"] if n % 4 == 0 else [],
        "shadow_rules": ["quiet@1"] if n % 4 == 0 else [],
        "shadow_decision": "REVIEW" if n % 4 == 0 else None,
        "rules_version": rules_version,
    }


def words(answer: httpx.Response, status: int = 200) -> str:
    assert answer.status_code == status, answer.text[-2000:]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def found(client: httpx.Client, **asked: str) -> list[str]:
    """The ids that a search finds, page by page."""
    ids: list[str] = []
    path = str(httpx.URL("/console/decisions", params=asked))
    while path:
        page = client.get(path)
        assert page.status_code == 200, page.text[-1000:]
        ids += re.findall(r'<th scope="row"><a href="/console/decision\?[^"]+">([^<]+)</a>', page.text)
        older = re.findall(r'href="(/console/decisions\?[^"]+)">Older', page.text)
        path = html.unescape(older[0]) if older else ""
    return ids


def test_decisions_are_found(client: httpx.Client) -> None:
    """All, newest first, page by page without a gap; or those of a card, an answer, a rule, a tenant."""
    every = found(client)
    assert len(every) == len(set(every)) == 130 and every[0] == "e0129" and every[-1] in ("e0000", "e0001")
    assert set(found(client, card_id="card-3")) == {f"e{n:04}" for n in range(130) if n % 7 == 3}
    fired = {f"e{n:04}" for n in range(0, 130, 4)}
    assert set(found(client, decision="REVIEW")) == set(found(client, rule="dear@1")) == fired
    assert set(found(client, shadow="quiet@1", tenant="acme")) == {f"e{n:04}" for n in range(0, 130, 20)}
    assert found(client, event_id="e0007") == ["e0007"] and found(client, card_id="nothing") == []
    assert "choose one of APPROVE" in words(client.get("/console/decisions?decision=MAYBE"), 409)
    assert "is no time" in words(client.get("/console/decisions?since=soon"), 409)
    assert client.get("/console/decisions?after=rubbish").status_code == 422


def test_a_decision_is_explained(client: httpx.Client) -> None:
    """Its answer, the rules with their parts, what scoring saw, and what the canary made of its card."""
    page = words(client.get("/console/decision", params={"tenant": "default", "event_id": "e0004"}))
    assert "e0004" in page and "REVIEW" in page and "quiet@1 in shadow: held" in page
    where = "among" if in_share("dear", 0.5, "default", "card-4") else "not among"
    assert f"dear@1 in canary, its card is {where} the 0.5 of the cards: fired" in page
    assert "count_1h" in page and "merchant_id" in page
    other = words(client.get("/console/decision", params={"tenant": "default", "event_id": "e0001"}))
    assert "quiet@1 in shadow: did not hold" in other
    assert "There is no decision on 'e9'" in words(
        client.get("/console/decision", params={"tenant": "default", "event_id": "e9"}), 404
    )
    assert "event_id" in words(client.get("/console/decision?tenant=default"), 422)


def test_its_place_in_the_ledger_is_proved(client: httpx.Client, ledger: Ledger) -> None:
    """By the hashes up to the signed head; a row that was altered behind it is named instead."""
    asked = {"tenant": "default", "event_id": "e0011", "prove": "true"}
    assert "It is what was written" in words(client.get("/console/decision", params=asked))
    ledger.connection.execute("ALTER TABLE card_ledger DISABLE TRIGGER USER")
    ledger.connection.execute("GRANT ALL ON card_ledger TO CURRENT_USER")
    ledger.connection.execute("UPDATE card_ledger SET risk = 0 WHERE event_id = 'e0014'")
    page = words(client.get("/console/decision", params=asked))
    assert "It cannot be proved" in page and "(e0014) is not the one that was written" in page
    assert "It is what was written" in words(
        client.get("/console/decision", params={**asked, "event_id": "e0012"})
    )


def test_hostile_names_stay_text(client: httpx.Client, ledger: Ledger) -> None:
    """A script in an id is shown and never run."""
    evil = "<script>alert(1)</script>"
    ledger.send(
        [{**event(131, 0), "event_id": evil, "card_id": evil, "fired_rules": [evil], "reasons": [evil]}]
    )
    ledger.store()
    for page in (
        client.get("/console/decisions", params={"event_id": evil}),
        client.get("/console/decision", params={"tenant": "default", "event_id": evil}),
    ):
        assert page.status_code == 200
        assert "<script>alert" not in page.text and "&lt;script&gt;" in page.text


def test_models_are_shown(client: httpx.Client, database: Settings) -> None:
    """Each version with what is told of it, and where it decides."""
    with connect(database.database_url) as connection:
        body = {"sha256": "ab" * 32, "kind": "isolation forest", "rows": 1234}
        number = versions.publish(connection, "fraud", "model", body, "mia")
        connection.execute(
            "INSERT INTO version_activations (consumer, topic, partition, kind, from_offset, version)"
            " VALUES ('fraud-scoring', 'card-transactions', 2, 'model', 10, %s)",
            (number,),
        )
    page = words(client.get("/console/models"))
    assert f"Version {number} ● in force in partition 2" in page
    assert "isolation forest" in page and "1234" in page and "by mia" in page
