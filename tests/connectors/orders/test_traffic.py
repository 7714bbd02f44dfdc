"""The simulated shoppers: lifelike in kind, and repeatable."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random

from connectors.orders.http import Cancellation, Order, StockReceipt
from connectors.orders.traffic import SKUS, steps
from connectors.traffic import Http, Raw

NOW_MS = 1_760_000_000_000
MODELS: dict[str, type[Order | Cancellation | StockReceipt]] = {
    "orders": Order,
    "cancel": Cancellation,
    "receipts": StockReceipt,
}


def test_the_same_seed_gives_the_same_traffic() -> None:
    """Nothing but the generator and the clock given decides what is sent."""
    first, second = (list(islice(steps(Random(1), lambda: NOW_MS), 500)) for _ in range(2))
    assert first == second


def test_every_request_is_one_that_the_gateway_takes() -> None:
    """Bodies are valid and carry the event's id; resends are byte for byte the same."""
    kinds: Counter[str] = Counter()
    seen: dict[str, Http] = {}
    for step in islice(steps(Random(2), lambda: NOW_MS), 5_000):
        if isinstance(step, Raw):
            kinds["poison"] += 1
            continue
        assert isinstance(step, Http)
        kind = step.path.rsplit("/", 1)[1]
        event_id = MODELS[kind].model_validate(step.json).event_id
        assert event_id is not None
        kinds["resent" if event_id in seen else kind] += 1
        assert seen.setdefault(event_id, step) == step
    assert kinds["receipts"] > len(SKUS)
    assert kinds["orders"] > 3_500
    assert all(kinds[kind] > 10 for kind in ("cancel", "resent", "poison"))
