"""Simulated card traffic: holders with their habits, stolen cards, resends, late records and poison.

Time runs lifelike whatever the rate of sending: a generation of cards begins 8 days before now and is
used at the pace of real holders until it has caught up with now; then the next one begins.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any

from connectors.traffic import Http, Raw, Step
from schemas.declare import DAY_MS
from schemas.fraud import CARD_TRANSACTIONS

STEPS_PER_SECOND = 60.0
CARDS = 300
USES_PER_DAY = 4.0
THEFTS_PER_DAY = 2.0
HISTORY_MS = 8 * DAY_MS
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

ACKNOWLEDGED = {"Prefer": "respond-async"}
"""Traffic wants to know that its transactions arrived, not what becomes of them."""

RESENT = 0.03
LATE = 0.03
VERY_LATE = 0.003
BATCHED = 0.08
POISON_EVERY = 100
"""Requests. Counted, not drawn: the shortest demo shall meet some."""

# Share of the busiest hour's traffic, by hour of the day (UTC).
RHYTHM = (
    *(0.10, 0.06, 0.04, 0.04, 0.05, 0.10, 0.25, 0.45, 0.60, 0.65, 0.70, 0.85),
    *(1.00, 0.95, 0.80, 0.75, 0.80, 0.95, 1.00, 0.90, 0.70, 0.50, 0.35, 0.20),
)
COUNTRIES = (("IE", "EUR"), ("DE", "EUR"), ("FR", "EUR"), ("ES", "EUR"), ("GB", "GBP"), ("US", "USD"))
EVERYDAY_MCCS = ("5411", "5541", "5812", "5814", "5912", "5311", "4111", "5732", "5651")
RISKY_MCCS = ("4829", "6051", "7995", "5732", "5944")
UNKNOWN_SCHEMA_ID = 3_000_000_000


@dataclass(slots=True, frozen=True)
class _Card:
    id: str
    customer_id: str
    home: str
    currency: str
    usual_minor: float
    online: float
    shops: tuple[int, ...]


def steps(rng: Random, now_ms: Callable[[], int], frauds: set[str] | None = None) -> Iterator[Step]:
    """Endless traffic for the gateway, and a little poison past it.

    The ids of a thief's transactions are added to `frauds`, before they are sent.
    """
    while True:
        yield from _generation(rng, now_ms, set() if frauds is None else frauds)


def _generation(rng: Random, now_ms: Callable[[], int], frauds: set[str]) -> Iterator[Step]:
    start_ms = now_ms() - HISTORY_MS
    cards = [_card(rng, f"{start_ms // 1000:x}-{rng.getrandbits(16):04x}", n) for n in range(CARDS)]
    number, sent = count(), count(1)
    # What is going to be sent, in the order of sending: (when, tie breaker, body).
    due: list[tuple[int, int, dict[str, Any]]] = []
    use_ms = float(start_ms)
    theft_ms = start_ms + rng.expovariate(THEFTS_PER_DAY / DAY_MS)

    def use(card: _Card, at_ms: int, stolen: bool) -> None:
        body = _transaction(rng, card, at_ms, stolen)
        if stolen:
            frauds.add(body["event_id"])
        sent_ms = at_ms
        chance = rng.random()
        if chance < VERY_LATE:
            sent_ms += rng.randrange(DAY_MS, 3 * DAY_MS)
        elif chance < VERY_LATE + LATE:
            sent_ms += rng.randrange(MINUTE_MS, 6 * HOUR_MS)
        heapq.heappush(due, (sent_ms, next(number), body))
        if rng.random() < RESENT:
            heapq.heappush(due, (sent_ms + rng.randrange(1000, HOUR_MS), next(number), body))

    while use_ms < now_ms():
        hour = int(use_ms // HOUR_MS) % 24
        use_ms += rng.expovariate(CARDS * USES_PER_DAY * RHYTHM[hour] * 2 / DAY_MS)
        use(rng.choice(cards), int(use_ms), stolen=False)
        if theft_ms < use_ms:
            thief_ms, victim = int(theft_ms), rng.choice(cards)
            for _ in range(rng.randrange(4, 18)):
                use(victim, thief_ms, stolen=True)
                thief_ms += rng.randrange(20_000, 6 * MINUTE_MS)
            theft_ms += rng.expovariate(THEFTS_PER_DAY / DAY_MS)
        # Only what cannot be preceded any more by what is still to happen.
        while due and due[0][0] <= use_ms:
            if rng.random() < BATCHED:
                ready = min(len(due), rng.randrange(2, 25))
                batch = [heapq.heappop(due)[2] for _ in range(ready) if due[0][0] <= use_ms]
                yield Http("POST", "/v1/transactions/batch", json=batch, headers=ACKNOWLEDGED)
            else:
                yield _submitted(heapq.heappop(due)[2])
            if next(sent) % POISON_EVERY == 0:
                yield _poison(rng, rng.choice(cards), now_ms())


def _card(rng: Random, issue: str, n: int) -> _Card:
    home, currency = rng.choices(COUNTRIES, weights=(8, 4, 3, 2, 3, 1))[0]
    return _Card(
        id=f"card-{issue}-{n:03d}",
        customer_id=f"customer-{issue}-{n:03d}",
        home=home,
        currency=currency,
        usual_minor=rng.lognormvariate(7.9, 0.6),
        online=rng.uniform(0.05, 0.5),
        shops=tuple(rng.randrange(500) for _ in range(12)),
    )


def _transaction(rng: Random, card: _Card, at_ms: int, stolen: bool) -> dict[str, Any]:
    online = rng.random() < (0.7 if stolen else card.online)
    abroad = rng.random() < (0.6 if stolen else 0.03)
    shop = rng.randrange(500) if stolen or rng.random() < 0.2 else rng.choice(card.shops)
    country = rng.choice([c for c, _ in COUNTRIES if c != card.home]) if abroad else card.home
    mccs = RISKY_MCCS if stolen and rng.random() < 0.7 else EVERYDAY_MCCS
    factor = rng.lognormvariate(1.6, 0.7) if stolen else rng.lognormvariate(0.0, 0.7)
    body = {
        "event_id": f"tx-{at_ms:011x}-{rng.getrandbits(48):012x}",
        "occurred_at": _iso(at_ms),
        "card_id": card.id,
        "amount_minor": max(1, int(card.usual_minor * factor)),
        "currency": card.currency,
        "customer_id": card.customer_id,
        "merchant_id": f"merchant-{shop:03d}",
        "country": country,
        "home_country": card.home,
        "mcc": mccs[shop % len(mccs)],
        "channel": "ONLINE" if online else "PRESENT",
    }
    if not online:
        body["terminal_id"] = f"terminal-{shop:03d}-{rng.randrange(3)}"
    return body


def _poison(rng: Random, card: _Card, now_ms: int) -> Step:
    kind = rng.randrange(3)
    if kind == 0:
        return Raw(CARD_TRANSACTIONS, card.id.encode(), rng.randbytes(rng.randrange(1, 200)))
    if kind == 1:
        header = struct.pack(">bI", 0, UNKNOWN_SCHEMA_ID + rng.randrange(3))
        return Raw(CARD_TRANSACTIONS, card.id.encode(), header + rng.randbytes(40))
    # Well formed, but from the future: only the broker's clock can tell.
    return _submitted(_transaction(rng, card, now_ms + 2 * HOUR_MS, stolen=False))


def _submitted(body: dict[str, Any]) -> Step:
    return Http("POST", "/v1/transactions", json=body, headers=ACKNOWLEDGED)


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
