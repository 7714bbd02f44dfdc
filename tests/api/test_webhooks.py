"""The missed-events cursor, as a receiver asks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from connectors.outward import endpoints
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


def test_only_the_endpoints_own_token_reads(outward: Outward, client: TestClient) -> None:
    """No token, another's, one of a mailbox's endpoint or of none: 401, all alike."""
    _, added = outward.receiver()
    _, other = outward.receiver()
    path = f"/v1/webhooks/{added.endpoint_id}/events"
    for headers in (
        {},
        {"Authorization": f"Bearer {other.token}"},
        {"Authorization": f"Basic {added.token}"},
    ):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    unknown = client.get("/v1/webhooks/ep_0/events", headers={"Authorization": "Bearer "})
    assert unknown.status_code == 401
    endpoints.remove(outward.connection, added.endpoint_id)
    assert client.get(path, headers={"Authorization": f"Bearer {added.token}"}).status_code == 401
