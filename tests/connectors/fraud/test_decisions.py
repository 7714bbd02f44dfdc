"""The decision in the answer, with gateways, processor and sink as processes: once, whatever happens."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.app import create_app as create_api
from infra.broker import TopicSpec, ensure_topics
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from infra.topic_log import read
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, PIPELINE
from tests.connectors.fraud.processes import Gateway, Process, until
from tests.signed_in import key_of, signed_in

DUPLICATES = int(os.environ.get("MILLRACE_DUPLICATES", "2000"))
AT_ONCE = 64
PUBLISH_MS = 2_000
WAIT_S = 4
HELD_S = PUBLISH_MS / 1000 + WAIT_S + 5
"""How long a killed gateway's claim is held by a request that waits for so long."""

pytestmark = pytest.mark.timeout(300)


@dataclass
class Platform:
    """Two gateways, the processor and the sink."""

    settings: Settings
    gateways: list[Gateway]
    processor: Process
    sink: Process
    codec: Codec
    headers: dict[str, str]
    clients: list[httpx.Client] = field(default_factory=list)

    def post(self, body: Any, gateway: int = 0, path: str = "", **headers: str) -> httpx.Response:
        """Submit at one of the gateways; names of headers with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.clients[gateway].post(f"/v1/transactions{path}", json=body, headers=named)

    def get(self, path: str, gateway: int = 0) -> httpx.Response:
        return self.clients[gateway].get(path)

    def rows(self, *ids: str) -> dict[str, Any]:
        """Rows of the ledger by event id. More than one of an id is an error."""
        with connect(self.settings.database_url) as connection:
            found = connection.execute(
                "SELECT event_id, decision, risk, source_partition FROM card_ledger WHERE event_id = ANY(%s)",
                (list(ids),),
            ).fetchall()
        assert len({row[0] for row in found}) == len(found), "an id has two rows"
        return {row[0]: row for row in found}

    def stored(self, *ids: str) -> dict[str, Any]:
        """As `rows`, once all of them are there."""
        until(lambda: len(self.rows(*ids)) == len(ids), f"{len(ids)} rows are stored")
        return self.rows(*ids)


@pytest.fixture(scope="module")
def platform(
    database: Settings, codec: Codec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    topics = (CARD_TRANSACTIONS, CARD_TRANSACTIONS.dlq, CARD_DECISIONS, CARD_DECISIONS.dlq)
    ensure_topics(database.kafka, map(TopicSpec.of, topics))
    for topic in topics:
        codec.register(topic)
    headers = signed_in(database)
    logs = tmp_path_factory.mktemp("logs")
    environ = {**database.environ, "MILLRACE_PUBLISH_TIMEOUT_MS": str(PUBLISH_MS)}
    made = Platform(
        database,
        [Gateway(environ, logs / f"gateway-{n}", database.port(300 + n), headers) for n in range(2)],
        Process("streams fraud", environ, logs / "processor"),
        Process("sinks fraud", environ, logs / "sink"),
        codec,
        headers,
    )
    processes = [made.processor, made.sink, *made.gateways]
    try:
        for process in processes:
            process.start()
        made.clients = [gateway.client() for gateway in made.gateways]
        for n in range(2):
            until(lambda n=n: made.post(body(), n).status_code == 200, "decisions come")  # type: ignore[misc]
        yield made
    finally:
        for client in made.clients:
            client.close()
        for process in processes:
            process.end()


@pytest.fixture
def redis(platform: Platform) -> Iterator[Redis]:
    with Redis.from_url(platform.settings.redis_url) as client:
        yield client


def body(**changes: Any) -> dict[str, Any]:
    """A transaction without an id, on a card of its own."""
    return {
        "occurred_at": "2025-11-03T11:00:00Z",
        "card_id": f"card-{uuid.uuid4()}",
        "amount_minor": 1_999,
        "currency": "EUR",
        "merchant_id": "m-1",
        "country": "IE",
    } | changes


def key() -> str:
    return str(uuid.uuid4())


def said(answer: httpx.Response) -> dict[str, Any]:
    """What a 200 says of the decision, without where it was read: a repeated record stands elsewhere."""
    assert answer.status_code == 200, answer.text
    return {k: v for k, v in answer.json().items() if k not in ("partition", "offset")}


def test_the_answer_is_the_decision(platform: Platform) -> None:
    """200 says decision, risk, reasons, rules and versions, and where it stands in the log and the ledger."""
    sent = body(event_id=f"tx-{uuid.uuid4()}")
    answer = platform.post(sent)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["event_id"] == sent["event_id"] and told["decision"] in ("APPROVE", "REVIEW", "DECLINE")
    assert told["rules_version"] >= 1 and told["topic"] == CARD_DECISIONS.name
    at = TopicPartition(told["topic"], told["partition"])
    ((message,),) = read(platform.settings.kafka, {at: told["offset"]}, {at: told["offset"] + 1})
    event = platform.codec.decode(CARD_DECISIONS, message.value()).event
    names = ("event_id", "decision", "risk", "reasons", "fired_rules", "model_version", "code_version")
    assert {name: event[name] for name in names} == {name: told[name] for name in names}
    row = platform.stored(sent["event_id"])[sent["event_id"]]
    assert row == (sent["event_id"], told["decision"], told["risk"], told["partition"])


def test_rules_decide_and_say_why(platform: Platform) -> None:
    """A burst on a card is declined, with the rule and its reason in the answer."""
    card = f"card-{uuid.uuid4()}"
    answers = [
        platform.post(body(card_id=card, occurred_at=f"2025-11-03T11:{n:02}:00Z")).json() for n in range(12)
    ]
    assert answers[0]["decision"] == "APPROVE" and answers[-1]["decision"] == "DECLINE"
    assert any(rule.startswith("burst-1h") for rule in answers[-1]["fired_rules"]) and answers[-1]["reasons"]


def test_the_same_key_and_body_has_the_same_decision_at_every_gateway(
    platform: Platform, redis: Redis
) -> None:
    """A repeat is answered alike where the reply is remembered, elsewhere, and with Redis flushed."""
    sent, name = body(), key()
    first = said(platform.post(sent, idempotency_key=name))
    assert said(platform.post(sent, idempotency_key=name)) == first
    assert said(platform.post(sent, 1, idempotency_key=name)) == first
    redis.flushall()
    assert said(platform.post(sent, 1, idempotency_key=name)) == first
    assert len(platform.stored(first["event_id"])) == 1


@pytest.mark.parametrize(
    "change", [{"amount_minor": 2_000}, {"merchant_id": "m-2"}, {"card_id": "another-card"}, {"mcc": "5411"}]
)
@pytest.mark.parametrize("gateway", [0, 1])
def test_the_same_key_with_another_body_is_refused(
    platform: Platform, change: dict[str, Any], gateway: int
) -> None:
    """422 says that the key was used; the first decision stands."""
    sent, name = body(), key()
    first = said(platform.post(sent, idempotency_key=name))
    answer = platform.post(sent | change, gateway, idempotency_key=name)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "urn:millrace:problem:used-before"
    assert said(platform.post(sent, gateway, idempotency_key=name)) == first


@pytest.mark.parametrize("change", [{"amount_minor": 2_000}, {"merchant_id": "m-2"}, {"mcc": "5411"}])
@pytest.mark.parametrize("gateway", [0, 1])
def test_another_body_is_found_without_redis(
    platform: Platform, redis: Redis, change: dict[str, Any], gateway: int
) -> None:
    """With nothing remembered of the key the decision itself, or the dead letter, tells of another body."""
    sent = body(event_id=f"tx-{uuid.uuid4()}")
    first = said(platform.post(sent))
    redis.flushall()
    answer = platform.post(sent | change, gateway, idempotency_key=key())
    assert answer.status_code == 422, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == list(change)
    assert said(platform.post(sent, gateway)) == first


@pytest.mark.parametrize("flushed", [False, True], ids=["with Redis", "Redis flushed meanwhile"])
def test_thousands_of_duplicates_at_once_are_one_decision(
    platform: Platform, redis: Redis, flushed: bool
) -> None:
    """Sent at once to two gateways: each answer is 409 or the one decision; one row is in the ledger."""
    sent, name = body(), key()
    numbers = iter(range(DUPLICATES))
    answers: list[httpx.Response] = []

    async def submit(client: httpx.AsyncClient) -> None:
        for n in numbers:
            if flushed and n % 200 == 100:
                redis.flushall()
            answers.append(await client.post(f"{platform.gateways[n % 2].url}/v1/transactions", json=sent))

    async def submit_all() -> None:
        headers = {**platform.headers, "Idempotency-Key": name}
        async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as client:
            await asyncio.gather(*(submit(client) for _ in range(AT_ONCE)))

    asyncio.run(submit_all())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 409} and statuses[200], statuses
    decisions = [said(answer) for answer in answers if answer.status_code == 200]
    assert all(decision == decisions[0] for decision in decisions)
    told = decisions[0]
    assert platform.stored(told["event_id"])[told["event_id"]][1] == told["decision"]
    assert count_decisions(platform, sent["card_id"], told["event_id"]) == 1


def count_decisions(platform: Platform, card: str, event_id: str) -> int:
    """How many rows a card has, once that of a transaction is there."""
    platform.stored(event_id)
    with connect(platform.settings.database_url) as connection:
        row = connection.execute("SELECT count(*) FROM card_ledger WHERE card_id = %s", (card,)).fetchone()
    assert row is not None
    return int(str(row[0]))


def test_who_wants_an_acknowledgement_alone_has_it_with_a_link(platform: Platform) -> None:
    """`Prefer: respond-async`: 202 with the record's place, as ever; the link has the decision."""
    answer = platform.post(body(), prefer="respond-async")
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    accepted = answer.json()
    assert accepted["topic"] == CARD_TRANSACTIONS.name and accepted["offset"] >= 0
    link = answer.headers["location"]
    assert link == f"/v1/transactions/{accepted['event_id']}/decision"
    until(lambda: platform.get(link, 1).status_code == 200, "the link has the decision")
    assert said(platform.get(link))["event_id"] == accepted["event_id"]


def test_what_the_processor_refuses_is_refused_with_its_reason(platform: Platform) -> None:
    """422 has field and reason of the dead letter; the key is free for the corrected transaction."""
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    sent, name = body(), key()
    answer = platform.post(sent | {"occurred_at": later}, idempotency_key=name)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["field"] == "occurred_at" and "5 minutes" in error["reason"]
    assert said(platform.post(sent, idempotency_key=name))["decision"] == "APPROVE"


def test_a_batch_has_a_verdict_for_each(platform: Platform) -> None:
    """Decided, refused at the door and refused by the processor stand in the order of the items; a repeat of
    the batch has the same decisions."""
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    items = [body(), body(amount_minor=-1), body(occurred_at=later), *(body() for _ in range(300))]
    name = key()
    answer = platform.post(items, path="/batch", idempotency_key=name)
    assert answer.status_code == 200, answer.text
    verdict = answer.json()
    assert (verdict["decided"], verdict["accepted"], verdict["refused"]) == (301, 301, 2)
    assert verdict["items"][1]["refused"][0]["field"] == "amount_minor"
    assert verdict["items"][2]["refused"][0]["field"] == "occurred_at"
    decided = [item["decided"] for item in verdict["items"] if item["decided"]]
    assert len({one["event_id"] for one in decided}) == 301
    again = platform.post(items, 1, path="/batch", idempotency_key=name).json()
    assert [one["decided"] and one["decided"]["event_id"] for one in again["items"]] == [
        one["decided"] and one["decided"]["event_id"] for one in verdict["items"]
    ]
    assert len(platform.stored(*(one["event_id"] for one in decided))) == 301


def test_while_the_processor_is_away_there_is_a_link(platform: Platform) -> None:
    """202 after the stated time; the link says 202 until the processor is back, then the decision, once."""
    platform.processor.kill()
    try:
        sent, name = body(), key()
        began = time.monotonic()
        answer = platform.post(sent, idempotency_key=name, prefer="wait=2")
        assert answer.status_code == 202 and 1.9 < time.monotonic() - began < 10
        assert answer.headers["preference-applied"] == "wait=2" and answer.headers["retry-after"] == "1"
        link = answer.headers["location"]
        assert platform.get(link).status_code == 202
        batch = platform.post([body(), body()], path="/batch", prefer="wait=1")
        assert batch.status_code == 202 and batch.json()["accepted"] == 2 and not batch.json()["decided"]
    finally:
        platform.processor.start()
    until(lambda: platform.get(link).status_code == 200, "the link has the decision")
    told = said(platform.get(link))
    assert said(platform.post(sent, 1, idempotency_key=name)) == told
    assert count_decisions(platform, sent["card_id"], told["event_id"]) == 1


def test_a_killed_gateways_claim_expires(platform: Platform, redis: Redis) -> None:
    """Killed at work, its key is 409 elsewhere until the claim expires; then there is the one decision."""
    platform.processor.kill()
    redis.flushall()
    sent, name = body(), key()
    waiting = threading.Thread(target=_unanswered, args=(platform, sent, name))
    try:
        waiting.start()
        until(lambda: redis.keys("millrace:claim:*"), "it is claimed")
        platform.gateways[0].kill()
        waiting.join(30)
        assert platform.post(sent, 1, idempotency_key=name, prefer="wait=1").status_code == 409
    finally:
        platform.processor.start()
        platform.gateways[0].start()
    answers = []

    def taken_over() -> bool:
        answers.append(platform.post(sent, 1, idempotency_key=name, prefer="wait=1"))
        return answers[-1].status_code == 200

    until(taken_over, "the claim expires", HELD_S + 30)
    assert {a.status_code for a in answers} <= {200, 202, 409}
    told = said(answers[-1])
    assert said(platform.post(sent, 0, idempotency_key=name)) == told
    assert count_decisions(platform, sent["card_id"], told["event_id"]) == 1


def _unanswered(platform: Platform, sent: dict[str, Any], name: str) -> None:
    headers = {"Idempotency-Key": name, "Prefer": f"wait={WAIT_S}"}
    with platform.gateways[0].client() as client, pytest.raises(httpx.TransportError):
        client.post("/v1/transactions", json=sent, headers=headers)


def test_a_gateway_that_was_started_anew_answers_from_the_ledger(platform: Platform) -> None:
    """What was decided before stands under its link, at every gateway."""
    told = said(platform.post(body()))
    platform.stored(told["event_id"])
    platform.gateways[0].end()
    platform.gateways[0].start()
    for gateway in range(2):
        assert said(platform.get(f"/v1/transactions/{told['event_id']}/decision", gateway)) == told
    assert platform.get("/v1/transactions/nobody-sent-it/decision").status_code == 404


def test_a_merchant_hears_of_its_own_alone(platform: Platform) -> None:
    """Another merchant's decision is 404, its transaction 403, and a clash with its id tells no values."""
    headers = key_of(platform.settings, "shop-2", "default", ["producer:fraud"], {"merchant": ["m-2"]})
    sent = body(event_id=f"tx-{uuid.uuid4()}", amount_minor=123_456)
    told = said(platform.post(sent))
    platform.stored(told["event_id"])
    link = f"/v1/transactions/{told['event_id']}/decision"
    for gateway in platform.gateways:
        with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=20) as shop:
            assert shop.get(link).status_code == 404
            assert shop.post("/v1/transactions", json=sent).status_code == 403
            clash = shop.post("/v1/transactions", json=sent | {"merchant_id": "m-2", "amount_minor": 1})
            assert clash.status_code == 422 and "123456" not in clash.text and "m-1" not in clash.text
            own = shop.post("/v1/transactions", json=body(merchant_id="m-2"))
            assert said(shop.get(f"/v1/transactions/{own.json()['event_id']}/decision")) == said(own)


def test_a_row_can_be_read_as_soon_as_its_decision_was_answered(platform: Platform) -> None:
    """The API has decision and list of the card at once, without having been told anything."""
    with TestClient(create_api(platform.settings), headers=platform.headers) as api:
        for n in range(40):
            sent = body()
            told = platform.post(sent, n % 2).json()
            read_back = api.get(f"/v1/decisions/{told['event_id']}")
            assert read_back.status_code == 200, read_back.text
            assert read_back.json()["decision"] == told["decision"]
            other = platform.post(body(card_id=sent["card_id"])).json()
            items = api.get(f"/v1/cards/{sent['card_id']}/decisions").json()["items"]
            assert {item["event_id"] for item in items} == {told["event_id"], other["event_id"]}
        platform.sink.kill()
        try:
            told = platform.post(body()).json()
            answer = api.get(f"/v1/decisions/{told['event_id']}")
            assert answer.status_code == 503 and PIPELINE.sink_name in answer.json()["detail"]
        finally:
            platform.sink.start()
        platform.stored(told["event_id"])
        assert api.get(f"/v1/decisions/{told['event_id']}").status_code == 200
