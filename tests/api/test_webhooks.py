"""The missed-events cursor, as a receiver asks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from connectors.outward import endpoints
from infra import deliveries
from infra.identity import authenticator
from tests.connectors.outward.conftest import Outward, outward, until

__all__ = ["outward"]


@pytest.fixture
def client(outward: Outward) -> Iterator[TestClient]:
    with TestClient(create_app(outward.settings)) as client:
        yield client


def test_a_receiver_reads_what_it_missed(outward: Outward, client: TestClient) -> None:
    """Page by page, in order and under the webhooks' own ids, delivered or not; nothing of another's."""
    receiver, added = outward.receiver(merchant="m1")
    _, other = outward.receiver(merchant="m2")
    events = [outward.decide(["m1", "m2"])[0] for _ in range(5)]
    headers = {"Authorization": f"Bearer {added.token}"}
    path = f"/v1/webhooks/{added.endpoint_id}/events"
    found, after, more = [], 0, True
    while more:
        page = client.get(path, params={"after": after, "limit": 2}, headers=headers).json()
        found += page["items"]
        after, more = page["next"], page["more"]
    assert [item["data"]["event_id"] for item in found] == events
    assert client.get(path, params={"after": after}, headers=headers).json()["items"] == []
    with outward.delivering():
        until(lambda: len(receiver.taken) == 5)
    assert [r.id for r in receiver.seen] == [item["id"] for item in found]
    assert receiver.seen[0].told == {k: found[0][k] for k in ("type", "timestamp", "data")}
    assert other.token is not None


def test_an_endpoint_of_all_merchants_reads_all_of_its_tenant(outward: Outward, client: TestClient) -> None:
    """Decisions of no merchant included, and none of another tenant's."""
    _, added = outward.receiver(decisions=["DECLINE"])
    events = outward.decide(["m1", None, "m2"], decision="DECLINE")
    outward.decide(["m1"], decision="APPROVE")
    outward.decide(["m1"], decision="DECLINE", tenant="another")
    answer = client.get(
        f"/v1/webhooks/{added.endpoint_id}/events", headers={"Authorization": f"Bearer {added.token}"}
    )
    assert [item["data"]["event_id"] for item in answer.json()["items"]] == events


def test_only_the_endpoints_own_token_reads(outward: Outward, client: TestClient) -> None:
    """What is no token is 401; another endpoint's id is 404, as one of none is: no id can be tried."""
    _, added = outward.receiver()
    _, other = outward.receiver()
    path = f"/v1/webhooks/{added.endpoint_id}/events"
    for headers in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer whev_" + "x" * 43},
        {"Authorization": f"Bearer {added.token}x"},
        {"Authorization": f"Basic {added.token}"},
        {"X-API-Key": str(added.token)},
    ):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer")
    others = {"Authorization": f"Bearer {other.token}"}
    foreign = client.get(path, headers=others)
    unknown = client.get("/v1/webhooks/ep_0/events", headers=others)
    assert foreign.status_code == unknown.status_code == 404
    assert {**foreign.json(), "instance": ""} == {**unknown.json(), "instance": ""}


def test_a_token_opens_nothing_else(outward: Outward, client: TestClient) -> None:
    """Neither what a receiver of a few decisions was not told of, nor anything beside."""
    _, added = outward.receiver(merchant="m1")
    for path in ("/v1/decisions/e1", "/v1/cards/c/decisions", "/v1/pipelines", "/v1/dead-letters"):
        answer = client.get(path, headers={"Authorization": f"Bearer {added.token}"})
        assert answer.status_code == 403, path


def test_an_endpoint_that_is_removed_is_forgotten(
    outward: Outward, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token is void when the servers ask again; one that is disabled may still read what it missed."""
    monkeypatch.setattr(authenticator, "FRESH_SECONDS", 0.0)
    _, added = outward.receiver()
    path, headers = f"/v1/webhooks/{added.endpoint_id}/events", {"Authorization": f"Bearer {added.token}"}
    deliveries.disable(outward.connection, added.endpoint_id, "a test")
    assert client.get(path, headers=headers).status_code == 200
    endpoints.remove(outward.connection, added.endpoint_id)
    assert client.get(path, headers=headers).status_code == 401
