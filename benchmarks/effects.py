"""What a topic of results comes to, where repeating a result is allowed but must change nothing.

For subjects that were killed, or whose partitions changed hands: each result counts once, by the first of
its records; a later one is a duplicate, which must have the same bytes to be dropped without loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Check
from benchmarks.transactions import ID_AT, Transactions, hash_of

_PRIME = 1_099_511_628_211
_MASK = (1 << 64) - 1


def effects(
    data: Transactions, records: Iterable[bytes], expected: npt.NDArray[np.uint64], *, complete: bool
) -> Check:
    """Compare a topic's records, each partition in its order, with the expected ones.

    Counts `duplicates` (of any bytes), `differing` ones (a result that came with two values), `wrong` ones
    (the first record's value is not the fold's), `out_of_order` (the first records of a card, in an other
    order than its transactions), and `missing` (with `complete`: of all; otherwise of each card before its
    last). The hash folds each card's results in their order. Passes if only `duplicates` were found.
    """
    found = np.zeros(data.records, np.uint64)
    times = np.zeros(data.records, np.int64)
    folds: dict[int, int] = {}
    reached: dict[int, int] = {}
    cards, ranks = data.card, data.rank
    wrong = differing = disordered = 0
    for record in records:
        try:
            n = int(record[ID_AT])
            card, rank = int(cards[n]), int(ranks[n])
        except (ValueError, IndexError):
            wrong += 1
            continue
        value = hash_of(record)
        times[n] += 1
        if times[n] > 1:
            differing += int(found[n] != value)
            continue
        found[n] = value
        disordered += int(rank < reached.get(card, -1))
        reached[card] = max(rank, reached.get(card, -1))
        folds[card] = (folds.get(card, card) * _PRIME + value) & _MASK
    there = times > 0
    wrong += int((found[there] != expected[there]).sum())
    missing = (
        data.records - int(there.sum())
        if complete
        else sum(rank + 1 for rank in reached.values()) - int(there.sum())
    )
    counts = {
        "records": int(times.sum()),
        "distinct": int(there.sum()),
        "duplicates": int((times - there).sum()),
        "differing": differing,
        "wrong": wrong,
        "out_of_order": disordered,
        "missing": missing,
    }
    passed = counts["distinct"] > 0 and not (wrong or differing or disordered or missing)
    return Check(passed, counts, _whole(folds), _whole(_expected(data, expected, reached)))


def _expected(
    data: Transactions, expected: npt.NDArray[np.uint64], reached: dict[int, int]
) -> dict[int, int]:
    """The folds of the cards' expected results, in order, each as far as it was reached."""
    folds: dict[int, int] = {}
    numbers: Any = zip(data.card.tolist(), data.rank.tolist(), expected.tolist(), strict=True)
    for card, rank, value in numbers:
        if rank <= reached.get(card, -1):
            folds[card] = (folds.get(card, card) * _PRIME + value) & _MASK
    return folds


def _whole(folds: dict[int, int]) -> str:
    """One hash of all cards: a sum, as cards have no order among them."""
    return f"{sum(folds.values()) & _MASK:016x}"
