"""Simulated traffic is lifelike, repeatable, and holds what the pipeline must stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from random import Random
from typing import Any

from connectors.fraud.http import Transaction
from connectors.fraud.traffic import CARDS, HISTORY_MS, steps
from connectors.traffic import Http, Raw
from schemas.fraud import CARD_TRANSACTIONS
from streams.fraud.faults import fault

NOW_MS = 1_767_225_600_000


def bodies(count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    for step in islice(steps(Random(seed), lambda: NOW_MS), count):
        if isinstance(step, Http):
            yield from step.json if isinstance(step.json, list) else [step.json]


def test_traffic_repeats() -> None:
    """The same seed and clock give the same traffic."""
    first, second = (list(islice(steps(Random(3), lambda: NOW_MS), 500)) for _ in range(2))
    assert first == second
    assert first != list(islice(steps(Random(4), lambda: NOW_MS), 500))


def test_traffic_is_valid() -> None:
    """Every simulated body is one that the gateway takes and the processor finds nothing wrong with."""
    for body in bodies(3000):
        assert fault(Transaction.model_validate(body).event("default")) is None


def test_traffic_holds_resends_late_records_and_poison() -> None:
    """A few per cent come again with the same content, some are late, and poison is among it."""
    sent = list(bodies(12_000))
    times = [datetime.fromisoformat(b["occurred_at"]).timestamp() * 1000 for b in sent]
    by_id: dict[str, dict[str, Any]] = {}
    for body in sent:
        assert by_id.setdefault(body["event_id"], body) == body
    resent = 1 - len(by_id) / len(sent)
    assert 0.01 < resent < 0.06
    assert max(times) <= NOW_MS + HISTORY_MS
    newest: dict[str, float] = {}
    late = Counter[bool]()
    for body, at_ms in zip(sent, times, strict=True):
        late[at_ms < newest.get(body["card_id"], 0)] += 1
        newest[body["card_id"]] = max(newest.get(body["card_id"], 0), at_ms)
    assert 0.005 < late[True] / len(sent) < 0.2
    poison = [s for s in islice(steps(Random(1), lambda: NOW_MS), 12_000) if isinstance(s, Raw)]
    future = [at_ms for at_ms in times if at_ms > NOW_MS]
    assert all(step.topic is CARD_TRANSACTIONS for step in poison)
    assert 0.002 < (len(poison) + len(future)) / len(sent) < 0.01 and poison and future
    assert any(step.value[:1] == b"\0" for step in poison) and any(step.value[:1] != b"\0" for step in poison)


def test_traffic_has_the_rhythm_of_a_day_and_bursts() -> None:
    """Nights are quiet, a few hundred cards take part, and a stolen card is used far more than others."""
    sent = list({b["event_id"]: b for b in bodies(9_000)}.values())
    hours = Counter(datetime.fromisoformat(b["occurred_at"]).hour for b in sent)
    assert sum(hours[h] for h in (1, 2, 3, 4)) * 4 < sum(hours[h] for h in (11, 12, 17, 18))
    cards = Counter(b["card_id"] for b in sent)
    assert CARDS * 0.9 < len(cards) <= 2 * CARDS
    per_hour = Counter((b["card_id"], b["occurred_at"][:13]) for b in sent)
    assert max(per_hour.values()) >= 6
