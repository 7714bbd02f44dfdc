"""The compiled loops of fraud, trees against the same in NumPy: `PYTHONPATH=. python -m benchmarks.kernels`.

Prints µs of processor time per row, the best of several runs, and the ratio. Both sides get the same rows,
and the run ends with code 1 where their results differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest, RandomForestClassifier

from models.forest import ForestTrees
from models.isolation import IsolationTrees
from streams.fraud.histories import WINDOWS, Histories
from tests.models.plain_trees import plain_sums

RUNS = 7
FEATURES = 13
TREES = 100
TRANSACTIONS = 60_000
BATCH = 512
ANSWER = b"x" * 200


def best_us(rows: int, work: Callable[[], object], times: int = 1) -> float:
    """Processor time per row in µs, the best of `RUNS`."""
    found = []
    for _ in range(RUNS):
        began = time.process_time_ns()
        for _ in range(times):
            work()
        found.append((time.process_time_ns() - began) / times / rows / 1000)
    return min(found)


def show(what: str, compiled_us: float, plain_us: float, same: bool) -> bool:
    print(
        f"{what:<60} {compiled_us:8.2f} µs {plain_us:8.2f} µs {plain_us / compiled_us:6.1f} x"
        f"  {'the same' if same else 'ANOTHER RESULT'}"
    )
    return same


def trees() -> bool:
    rng = np.random.default_rng(0)
    rows = np.rint(rng.lognormal(5, 2, (20_000, FEATURES))).astype(np.float32)
    labels = (rows[:, 0] + rows[:, 1] > rng.lognormal(6, 1, len(rows))).astype(np.int64)
    isolation = IsolationTrees.of(IsolationForest(n_estimators=TREES, random_state=0).fit(rows[:5_000]))
    forest = ForestTrees.of(
        RandomForestClassifier(TREES, min_samples_leaf=5, random_state=0).fit(rows, labels)
    )
    small = ForestTrees.of(RandomForestClassifier(TREES, max_depth=8, random_state=0).fit(rows, labels))

    def plain_paths(some: Any) -> Any:
        i = isolation
        return plain_sums(i.roots, i.feature, i.threshold, i.child, i.path, some, i.depth)

    def plain_shares(f: ForestTrees) -> Callable[[Any], Any]:
        return lambda some: plain_sums(f.roots, f.feature, f.threshold, f.child, f.share, some)

    same = True
    for name, compiled, plain, sizes in (
        ("isolation forest", isolation.path_sums, plain_paths, (4096, 512, 64, 8, 1)),
        ("random forest, 8 levels", small.share_sums, plain_shares(small), (512,)),
        ("random forest, 5 rows a leaf", forest.share_sums, plain_shares(forest), (512,)),
    ):
        for size in sizes:
            some = rows[-size:]
            same &= show(
                f"{name}, {TREES} trees, batches of {size}",
                best_us(size, partial(compiled, some), max(1, 2_048 // size)),
                best_us(size, partial(plain, some), max(1, 512 // size)),
                bool((compiled(some) == plain(some)).all()),
            )
    return same


def histories(cards: int, step_ms: int) -> None:
    """Transactions of so many cards, `step_ms` apart on average, one in ten late by up to a minute."""
    rng = Random(1)
    at_ms = 1_700_000_000_000
    log = []
    for n in range(TRANSACTIONS):
        at_ms += rng.randrange(2 * step_ms)
        late_ms = rng.randrange(60_000) if n % 10 == 0 else 0
        log.append(
            (at_ms - late_ms, rng.randrange(100_000), at_ms, f"card-{rng.randrange(cards):09}", f"{n:032x}")
        )
    ats, amounts, appends = (np.array([row[n] for row in log], dtype=np.int64) for n in range(3))
    names, ids = [row[3] for row in log], [row[4] for row in log]
    merchants: list[str | None] = [f"merchant-{rng.randrange(2_000):06}" for _ in log]
    answers: list[bytes | None] = [ANSWER] * BATCH

    def compiled() -> None:
        state = Histories()
        for start in range(0, TRANSACTIONS, BATCH):
            part = slice(start, start + BATCH)
            inserted = state.insert(
                ats[part], amounts[part], appends[part], names[part], ids[part], merchants[part]
            )
            state.keep(answers[: len(inserted.first)])
            state.delta()

    print(
        f"{len(WINDOWS)} windows of {cards:,} cards, one in {step_ms:,} ms".ljust(60),
        f"{best_us(TRANSACTIONS, compiled):8.2f} µs",
    )


def main() -> int:
    print(f"{'per row':<60} {'compiled':>11} {'plain':>11} {'ratio':>8}")
    same = trees()
    for cards, step_ms in ((5_000, 20_000), (5_000, 50), (20, 50)):
        histories(cards, step_ms)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
