"""Simulated shoppers: popular SKUs that run short, deliveries, cancellations, resends and poison."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any

from connectors.traffic import Http, Raw, Step
from schemas.orders import ORDER_EVENTS

SKUS = tuple(f"tea-{n:02d}" for n in range(40))
WEIGHTS = tuple(1 / (n + 1) for n in range(len(SKUS)))
"""A few are bought all the time: those run short, and orders compete for the last units."""
CUSTOMERS = 200
HOUR_MS = 60 * 60 * 1000

DELIVERED = 0.06
CANCELLED = 0.08
RESENT = 0.03
LATE = 0.03
ORDER_ID_TAKEN = 0.005
POISON_EVERY = 150
"""Steps. Counted, not drawn: the shortest demo shall meet some."""
UNKNOWN_SCHEMA_ID = 3_000_000_000


def steps(rng: Random, now_ms: Callable[[], int]) -> Iterator[Step]:
    """Endless traffic for the gateway, and a little poison past it. It begins by stocking the shelves."""
    for sku in SKUS:
        yield _delivery(rng, now_ms(), sku, rng.randrange(20, 60))
    recent: deque[tuple[str, Step]] = deque(maxlen=50)
    for n in count(1):
        at_ms = now_ms()
        if n % POISON_EVERY == 0:
            yield _poison(rng, at_ms)
            continue
        chance = rng.random()
        if chance < DELIVERED:
            yield _delivery(rng, at_ms, _sku(rng), rng.randrange(10, 60))
        elif chance < DELIVERED + CANCELLED and recent:
            # Some for orders that are already rejected or cancelled: those are refused.
            yield _cancellation(rng, at_ms, rng.choice(recent)[0])
        elif chance < DELIVERED + CANCELLED + RESENT and recent:
            yield rng.choice(recent)[1]
        else:
            if rng.random() < LATE:
                at_ms -= rng.randrange(HOUR_MS, 24 * HOUR_MS)
            taken = rng.random() < ORDER_ID_TAKEN and recent
            order_id = rng.choice(recent)[0] if taken else f"order-{_id(rng, at_ms)}"
            step = _order(rng, at_ms, order_id)
            recent.append((order_id, step))
            yield step


def _order(rng: Random, at_ms: int, order_id: str) -> Step:
    lines = [
        {
            "sku": (sku := _sku(rng)),
            "quantity": rng.choice((1, 1, 1, 2, 2, 3, 6)),
            "unit_price_minor": 250 + 35 * SKUS.index(sku),
        }
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6)))
    ]
    body = _envelope(rng, at_ms) | {
        "order_id": order_id,
        "customer_id": f"shopper-{rng.randrange(CUSTOMERS):03d}",
        "currency": "EUR",
        "lines": lines,
    }
    return Http("POST", "/v1/orders", json=body)


def _cancellation(rng: Random, at_ms: int, order_id: str) -> Step:
    return Http("POST", f"/v1/orders/{order_id}/cancel", json=_envelope(rng, at_ms))


def _delivery(rng: Random, at_ms: int, sku: str, quantity: int) -> Step:
    return Http("POST", f"/v1/stock/{sku}/receipts", json=_envelope(rng, at_ms) | {"quantity": quantity})


def _poison(rng: Random, at_ms: int) -> Step:
    order_id = f"order-{_id(rng, at_ms)}"
    kind = rng.randrange(3)
    if kind == 0:
        return Raw(ORDER_EVENTS, order_id.encode(), rng.randbytes(rng.randrange(1, 200)))
    if kind == 1:
        header = struct.pack(">bI", 0, UNKNOWN_SCHEMA_ID + rng.randrange(3))
        return Raw(ORDER_EVENTS, order_id.encode(), header + rng.randbytes(40))
    # Well formed, but from the future: only the broker's clock can tell.
    return _order(rng, at_ms + 2 * HOUR_MS, order_id)


def _sku(rng: Random) -> str:
    return rng.choices(SKUS, WEIGHTS)[0]


def _id(rng: Random, at_ms: int) -> str:
    return f"{at_ms:011x}-{rng.getrandbits(48):012x}"


def _envelope(rng: Random, at_ms: int) -> dict[str, Any]:
    return {
        "event_id": _id(rng, at_ms),
        "occurred_at": datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
    }
