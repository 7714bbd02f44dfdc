"""What rules cost a transaction: `python -m benchmarks.rule_cost`, in one thread, without anything around
them.

200 active rules over windows, amounts, texts and sets (`benchmarks.rules`), on transactions as the fraud
benchmark sends them with their true windows; in batches of several sizes by column, and one at a time
compiled.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.fraud import card_transactions
from benchmarks.rules import many
from benchmarks.transactions import Transactions
from models.fraud import NUMBERS
from models.rules import one
from models.rules.batch import Columns
from models.rules.ruleset import RuleSet, load_rules
from streams.decide import ColumnRecords, Stretch
from streams.fraud.histories import WINDOWS, Histories
from streams.fraud.scoring import RULE_TEXTS, place

RULES = 200
ROWS = 32_768
BATCHES = (1, 16, 64, 512, 4_096)
ROUNDS = 5
LIMIT_US = 10.0
"""What 200 active rules may cost a transaction in a batch."""


def decisions() -> pa.RecordBatch:
    """Transactions with their windows."""
    events = card_transactions(Transactions(ROWS), 0, ROWS)
    places = np.zeros(ROWS, dtype=np.int64)
    found = place([Stretch(Histories(), 0, ROWS)], ColumnRecords("t", places, places, places, events))
    names = [*events.schema.names, *WINDOWS]
    columns = [*events.columns, *(pa.array(found.windows[:, n]) for n in range(len(WINDOWS)))]
    return pa.RecordBatch.from_arrays(columns, names=names)


def columns_of(batch: pa.RecordBatch) -> Columns:
    """A batch as scoring gives it to the rules."""
    numbers = {name: batch.column(name).to_numpy() for name in NUMBERS}
    numbers["late_ms"] = batch.column("late_ms").to_numpy()
    texts = {name: batch.column(name) for name in RULE_TEXTS}
    complete = batch.column("windows_complete").to_numpy() == 1
    return Columns(numbers["occurred_at"], numbers, texts, {"windows_complete": complete})


def by_batch(rules: RuleSet, batch: pa.RecordBatch, size: int) -> float:
    """Microseconds a transaction, the columns' preparation included."""
    rows = min(len(batch), size * 64)
    began = time.perf_counter()
    for start in range(0, rows, size):
        rules.fired(columns_of(batch.slice(start, size)))
    return (time.perf_counter() - began) / rows * 1e6


def one_by_one(rules: RuleSet, rows: list[dict[str, Any]]) -> float:
    held = one.compiled([rule.meaning.condition for rule in rules.rules], rules.rates, rules.lists)
    began = time.perf_counter()
    for row in rows:
        held(one.of_decision(row))
    return (time.perf_counter() - began) / len(rows) * 1e6


def main() -> int:
    rules, batch = load_rules(1, many(RULES)), decisions()
    fired = rules.fired(columns_of(batch)).decides
    share = np.mean([where.mean() for _, where in fired])
    print(f"{len(rules.rules)} rules in {len(rules.program)} steps; {len(fired)} fire, on {share:.2%}")
    costs = {}
    for size in BATCHES:
        costs[size] = median(by_batch(rules, batch, size) for _ in range(ROUNDS))
        print(f"batches of {size:5}: {costs[size]:8.2f} us a transaction")
    rows = batch.slice(0, 2_000).to_pylist()
    alone = median(one_by_one(rules, rows) for _ in range(ROUNDS))
    print(f"compiled, one by one: {alone:8.2f} us a transaction")
    return 0 if max(costs[512], costs[4_096]) <= LIMIT_US else 1


if __name__ == "__main__":
    raise SystemExit(main())
