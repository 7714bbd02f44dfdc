"""Card transactions over HTTP: answered when the broker has them, refused with field and reason."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from fastapi.testclient import TestClient

from connectors.gateway import create_app
from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.settings import Settings
from schemas.fraud import CARD_TRANSACTIONS
from tests.signed_in import signed_in


@pytest.fixture(scope="module")
def gateway(registry: Settings, codec: Codec) -> Iterator[TestClient]:
    """The gateway over the real broker and registry."""
    ensure_topics(registry.kafka, [TopicSpec.of(CARD_TRANSACTIONS)])
    codec.register(CARD_TRANSACTIONS)
    with TestClient(create_app(registry), headers=signed_in(registry)) as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"test-{uuid.uuid4()}",
        "occurred_at": "2025-11-03T12:00:00.250+01:00",
        "card_id": "card-1",
        "amount_minor": 1999,
        "currency": "EUR",
    } | changes


def stored(settings: Settings, codec: Codec, accepted: dict[str, Any]) -> tuple[bytes | None, dict[str, Any]]:
    """Key and event of the record at the place that the gateway named."""
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": f"test-{uuid.uuid4()}"}
    )
    consumer.assign([TopicPartition(accepted["topic"], accepted["partition"], accepted["offset"])])
    try:
        message = consumer.poll(20)
    finally:
        consumer.close()
    assert message is not None and message.error() is None and message.offset() == accepted["offset"]
    key = message.key()
    return key if isinstance(key, bytes) else None, codec.decode(CARD_TRANSACTIONS, message.value()).event


def test_an_accepted_transaction_is_in_the_topic(
    gateway: TestClient, registry: Settings, codec: Codec
) -> None:
    """The answer 202 names where the event stands, keyed by card, with every field as it was sent."""
    sent = body(country="IE", mcc="5411", channel="ONLINE", customer_id="c", merchant_id="m", terminal_id="t")
    answer = gateway.post("/v1/transactions", json=sent)
    assert answer.status_code == 202, answer.text
    assert answer.json()["event_id"] == sent["event_id"]
    key, event = stored(registry, codec, answer.json())
    assert key == b"card-1"
    assert event == sent | {"occurred_at": 1_762_167_600_250, "tenant": "default", "home_country": None}


def test_an_id_is_made_where_none_is_sent(gateway: TestClient, registry: Settings, codec: Codec) -> None:
    """A transaction without an id gets one, which the answer tells."""
    answer = gateway.post("/v1/transactions", json={k: v for k, v in body().items() if k != "event_id"})
    assert answer.status_code == 202
    assert stored(registry, codec, answer.json())[1]["event_id"] == answer.json()["event_id"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount_minor": -1}, "amount_minor"),
        ({"amount_minor": 19.99}, "amount_minor"),
        ({"amount_minor": "1999"}, "amount_minor"),
        ({"currency": "eur"}, "currency"),
        ({"occurred_at": "2025-11-03T12:00:00"}, "occurred_at"),
        ({"occurred_at": "1970-01-01T00:00:00Z"}, "occurred_at"),
        ({"card_id": ""}, "card_id"),
        ({"card_id": "a\x00b"}, "card_id"),
        ({"country": "Ireland"}, "country"),
        ({"mcc": "12"}, "mcc"),
        ({"channel": "MAIL"}, "channel"),
        ({"amount": 3}, "amount"),
    ],
)
def test_an_invalid_transaction_is_refused(gateway: TestClient, change: dict[str, Any], field: str) -> None:
    """422 names the field and the reason; nothing is sent."""
    answer = gateway.post("/v1/transactions", json=body(**change))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [e["field"] for e in answer.json()["errors"]] == [field] and answer.json()["errors"][0]["reason"]


def test_a_batch_has_a_verdict_for_each_item(gateway: TestClient, registry: Settings, codec: Codec) -> None:
    """Invalid items of a batch are refused with their fields; the others are in the topic."""
    sent = [body(), body(amount_minor=-5), "no object", body(card_id="card-2")]
    answer = gateway.post("/v1/transactions/batch", json=sent)
    assert answer.status_code == 202, answer.text
    verdict = answer.json()
    assert (verdict["accepted"], verdict["refused"], len(verdict["items"])) == (2, 2, 4)
    assert [item["accepted"] is not None for item in verdict["items"]] == [True, False, False, True]
    assert verdict["items"][1]["refused"][0]["field"] == "amount_minor"
    assert verdict["items"][2]["refused"][0]["field"] == "body"
    for place in (0, 3):
        _, event = stored(registry, codec, verdict["items"][place]["accepted"])
        assert event["event_id"] == sent[place]["event_id"]  # type: ignore[index]


@pytest.mark.parametrize("items", [[], [{}] * 1001, {}])
def test_a_batch_has_1_to_1000_items(gateway: TestClient, items: Any) -> None:
    """An empty batch, one too long, or none at all is refused as a whole."""
    assert gateway.post("/v1/transactions/batch", json=items).status_code == 422
