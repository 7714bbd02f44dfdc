"""A rule's way through the stages under live traffic, and its replay, by the real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from infra.broker import TopicSpec, ensure_topics, producer
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules import store
from models.rules.lifecycle import Stage
from schemas.fraud import CARD_TRANSACTIONS, PIPELINE
from tests.replay.live import ask
from tests.replay.test_declared import cli, running

CARDS = 60
RULE = "WHEN amount > 40 AND merchant_id = 'm-bad' THEN decline SCORE +0.3 REASON 'a bad merchant'"


@pytest.fixture(scope="module")
def pipeline(database: Settings, codec: Codec) -> Iterator[Settings]:
    """The fraud pipeline's worker and sink, running."""
    topics = [x for t in PIPELINE.topics for x in (t, t.dlq)]
    ensure_topics(database.kafka, [TopicSpec.of(t) for t in topics])
    for topic in topics:
        codec.register(topic)
    with ExitStack() as stack:
        stack.enter_context(running("streams", "fraud"))
        stack.enter_context(running("sinks", "fraud"))
        yield database


class Traffic:
    """Transactions of the same cards, wave after wave; every second one is what the rule is about."""

    def __init__(self, settings: Settings, codec: Codec) -> None:
        self._settings, self._codec = settings, codec
        self._producer = producer(settings.kafka)
        self._start_ms = int(time.time() * 1000) - 5 * 86_400_000
        self.sent = 0

    def wave(self) -> None:
        """One transaction of each card, decided and stored."""
        for card in range(CARDS):
            event = {
                "event_id": f"e{self.sent}",
                "tenant": "default",
                "occurred_at": self._start_ms + self.sent * 60_000,
                "card_id": f"c{card}",
                "amount_minor": 5_000,
                "currency": "EUR",
                "merchant_id": ("m-bad", "m-good")[card % 2],
            }
            value = self._codec.encode(CARD_TRANSACTIONS, event)
            self._producer.produce(CARD_TRANSACTIONS.name, value, event["card_id"])
            self.sent += 1
        assert self._producer.flush(20) == 0
        end = time.monotonic() + 60
        while ask(self._settings, "SELECT count(*) FROM card_ledger") != [(self.sent,)]:
            assert time.monotonic() < end, "the wave is not stored"
            time.sleep(0.1)

    def under(self, version: int) -> list[tuple[str, str, list[str], list[str], str | None]]:
        """What a whole wave was decided, once every partition decides by this version."""
        end = time.monotonic() + 60
        while True:
            first = self.sent
            self.wave()
            rows = ask(
                self._settings,
                "SELECT card_id, decision, fired_rules, shadow_rules, shadow_decision, rules_version"
                " FROM card_ledger WHERE substr(event_id, 2)::int >= %s",
                first,
            )
            if {row[5] for row in rows} == {version}:
                return [row[:5] for row in rows]  # type: ignore[misc]
            assert time.monotonic() < end, f"version {version} does not apply"
            time.sleep(0.5)


def take(connection: Connection, stage: Stage, **more: float) -> int:
    _, version = store.move(connection, "bad-merchant", stage, "bob", **more)
    assert version is not None
    return version


def test_a_rules_way_is_seen_in_decisions_and_replayed_bit_for_bit(pipeline: Settings, codec: Codec) -> None:
    """Shadow changes nothing, a canary decides on its cards, active on all, rolled back on none; and a replay
    by what was in force then gives every row again."""
    traffic = Traffic(pipeline, codec)
    bad = {f"c{n}" for n in range(0, CARDS, 2)}
    with connect(pipeline.database_url) as connection:
        traffic.wave()
        rule, _ = store.add(connection, "bad-merchant", RULE, "ann")
        now = datetime.now(UTC)
        store.record_backtest(connection, rule, now, now, {"matches": 0}, "ann")
        store.move(connection, "bad-merchant", Stage.APPROVED, "bob")

        for card, decision, fired, shadow, would in traffic.under(take(connection, Stage.SHADOW)):
            assert "bad-merchant@1" not in fired and decision == "APPROVE"
            assert (would, shadow) == (("DECLINE", ["bad-merchant@1"]) if card in bad else (None, []))

        canary = traffic.under(take(connection, Stage.CANARY, share=0.4, cap=1.0))
        declined = {card for card, decision, *_ in canary if decision == "DECLINE"}
        assert 0 < len(declined) < len(bad) and declined < bad
        for card, _, fired, shadow, _ in canary:
            assert ("bad-merchant@1" in fired) == (card in declined)
            assert shadow == (["bad-merchant@1"] if card in bad - declined else [])

        active = traffic.under(take(connection, Stage.ACTIVE, cap=1.0))
        assert {card for card, decision, *_ in active if decision == "DECLINE"} == bad

        _, version = store.roll_back(connection, "bad-merchant", "eve")
        assert version is not None
        for _, decision, fired, shadow, would in traffic.under(version):
            assert (decision, shadow, would) == ("APPROVE", [], None) and "bad-merchant@1" not in fired
    run = cli("replay", "run", "fraud", "--versions", "as-decided", "--json")
    assert run["status"] == "ready" and run["records"] == traffic.sent
    assert "nothing differs" in cli("replay", "diff", str(run["run"]), "--exit-code")
