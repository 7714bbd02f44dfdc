"""Webhooks as pages, over deliveries to a real receiver."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import httpx
import pytest

from schemas.pipelines import PIPELINES
from tests.connectors.outward.conftest import Outward, outward, until
from tests.console.serving import serving
from tests.signed_in import key_of

__all__ = ["outward"]


@pytest.fixture
def client(outward: Outward) -> Iterator[httpx.Client]:
    """An operator's requests."""
    key = key_of(outward.settings, f"webhooks-{outward.tenant}", "default", ["operator"])
    with pytest.MonkeyPatch.context() as patch, serving(outward.settings, PIPELINES, patch, key) as found:
        yield found


def words(answer: httpx.Response, status: int = 200) -> str:
    assert answer.status_code == status, answer.text[-2000:]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_a_delivery_is_seen_and_sent_again(client: httpx.Client, outward: Outward) -> None:
    """Who is told, what the receiver answered; one delivery goes once more, under the same webhook-id."""
    receiver, added = outward.receiver(about="the till")
    page = f"/console/webhooks/{added.endpoint_id}"
    with outward.delivering():
        [first, second] = outward.decide(["m-1", "m-2"])
        until(lambda: len(receiver.seen) == 2)
        until(lambda: "delivered" in words(client.get(page)))
        assert added.endpoint_id in words(client.get("/console/webhooks"))
        told = words(client.get(page))
        assert first in told and second in told and "the till" in told and "200," in told
        asked = {"tenant": outward.tenant, "event_id": first}
        decided = words(client.get("/console/decision", params=asked))
        assert f"{added.endpoint_id} live delivered 1" in decided
        assert "before the ledger was chained" in decided
        cursor = re.findall(r'name="first" value="(\d+)"', client.get(page).text)[-1]
        again = client.post(f"{page}/replay", data={"first": cursor, "last": cursor})
        assert again.headers["location"] == f"{page}?said=1"
        assert "1 queued once more" in words(client.get(again.headers["location"]))
        until(lambda: len(receiver.seen) == 3)
    ids = [request.id for request in receiver.seen]
    assert ids.count(ids[2]) == 2
    assert "replay" in words(client.get(f"{page}?status=delivered"))
    assert "There is no such delivery" in words(client.get(f"{page}?status=dropped"))
    assert "there is no status" in words(client.get(f"{page}?status=lost"), 409).lower()


def test_an_endpoint_is_stopped_tested_and_goes_on(client: httpx.Client, outward: Outward) -> None:
    """While it is disabled nothing is sent, and what is decided waits; afterwards all comes in order."""
    receiver, added = outward.receiver()
    page = f"/console/webhooks/{added.endpoint_id}"
    assert client.post(f"{page}/disable", data={"reason": "moves house"}).status_code == 303
    assert "disabled: moves house" in words(client.get(page))
    with outward.delivering():
        outward.decide(["m-1"])
        until(lambda: "waiting 1" in words(client.get(page)))
        assert receiver.seen == []
        assert client.post(f"{page}/enable").status_code == 303
        until(lambda: len(receiver.seen) == 1)
        assert client.post(f"{page}/test").status_code == 303
        until(lambda: len(receiver.seen) == 2)
    assert "test" in words(client.get(page))


def test_what_cannot_be_is_told(client: httpx.Client, outward: Outward) -> None:
    """An endpoint that is not there, a range without a beginning, a time that is none."""
    assert "There is no endpoint 'ep_0'" in words(client.get("/console/webhooks/ep_0"), 409)
    _, added = outward.receiver()
    page = f"/console/webhooks/{added.endpoint_id}"
    assert "Say from where on" in words(client.post(f"{page}/replay"), 409)
    assert "is no time" in words(client.post(f"{page}/replay", data={"first": "soon"}), 409)
    assert "Nothing of what it is told" in words(
        client.get(client.post(f"{page}/replay", data={"first": "9000000"}).headers["location"])
    )
