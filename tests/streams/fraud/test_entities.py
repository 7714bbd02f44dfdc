"""Windows of customers and terminals against a plain scan, and that nothing is known before its time."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from connectors.fraud.labelled import HANDBOOK
from schemas.declare import DAY_MS
from streams.fraud.entities import (
    CUSTOMER_DAYS,
    DELAY_MS,
    KNOWN_DAYS,
    OUTLYING_DAYS,
    OUTLYING_PERCENT,
    TERMINAL_DAYS,
    EntityWindows,
)

ROWS = 400
HALF_DAY_MS = DAY_MS // 2


def transactions(seed: int) -> pa.RecordBatch:
    """Of few customers at few terminals over months; several share a time, or lie on a window's edge."""
    random = Random(seed)
    at_ms = sorted(random.randrange(300) * HALF_DAY_MS for _ in range(ROWS))
    return pa.RecordBatch.from_pydict(
        {
            "transaction_id": list(range(ROWS)),
            "occurred_at": pa.array(at_ms, pa.timestamp("ms")),
            "customer_id": [random.randrange(4) for _ in range(ROWS)],
            "terminal_id": [random.randrange(5) for _ in range(ROWS)],
            "amount": [random.choice((1.0, 2.5, 9.99, 40.0)) for _ in range(ROWS)],
        }
    )


def columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    assert HANDBOOK.event_columns is not None
    return HANDBOOK.event_columns(batch, 0)


def labels(seed: int) -> npt.NDArray[np.bool_]:
    random = Random(seed)
    return np.array([random.random() < 0.3 for _ in range(ROWS)])


def scanned(batch: pa.RecordBatch, is_fraud: npt.NDArray[np.bool_], row: int) -> dict[str, int]:
    """The windows of a row by their definitions, from all rows up to it."""
    at = batch["occurred_at"].cast(pa.int64()).to_pylist()
    who, where = batch["customer_id"].to_pylist(), batch["terminal_id"].to_pylist()
    minor = [round(a * 100) for a in batch["amount"].to_pylist()]

    def within(keys: list[int], of: int, days: int, behind_ms: int = 0) -> list[int]:
        until = at[of] - behind_ms
        return [n for n in range(of + 1) if keys[n] == keys[of] and until - days * DAY_MS < at[n] <= until]

    def is_outlying(of: int) -> bool:
        usual = set(within(who, of, 90)) - set(within(who, of, 14))
        total = sum(minor[n] for n in usual)
        return 100 * minor[of] * len(usual) > OUTLYING_PERCENT * total

    found = {}
    for days in CUSTOMER_DAYS:
        amounts = [minor[n] for n in within(who, row, days)]
        found[f"customer_count_{days}d"] = len(amounts)
        found[f"customer_sum_{days}d"] = sum(amounts)
        found[f"customer_max_{days}d"] = max(amounts)
    for days in OUTLYING_DAYS:
        found[f"customer_outlying_{days}d"] = sum(map(is_outlying, within(who, row, days)))
    for days in TERMINAL_DAYS:
        amounts = [minor[n] for n in within(where, row, days)]
        found[f"terminal_count_{days}d"] = len(amounts)
        found[f"terminal_sum_{days}d"] = sum(amounts)
    for days in KNOWN_DAYS:
        for whose, keys in (("terminal", where), ("customer", who)):
            known = within(keys, row, days, behind_ms=DELAY_MS)
            found[f"{whose}_known_{days}d"] = len(known)
            found[f"{whose}_frauds_{days}d"] = int(is_fraud[known].sum())
    found["customer_terminals_90d"] = len({where[n] for n in within(who, row, 90)})
    found["terminal_customers_60d"] = len({who[n] for n in within(where, row, 60)})
    before = within(who, row, 90)[:-1]
    found["customer_since_previous_ms"] = at[row] - at[before[-1]] if before else -1
    return found


def at_row(windows: Mapping[str, npt.NDArray[np.int64]], row: int) -> dict[str, int]:
    return {name: int(values[row]) for name, values in windows.items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_windows_are_those_of_a_scan(seed: int) -> None:
    """Every window of every row is what its definition says, on edges and among ties too."""
    batch, is_fraud = transactions(seed), labels(seed)
    windows = EntityWindows().insert(columns(batch), is_fraud)
    for row in range(0, ROWS, 3):
        assert at_row(windows, row) == scanned(batch, is_fraud, row)


def test_cuts_into_batches_change_nothing() -> None:
    """The same rows in batches of one and of many have the same windows."""
    batch, is_fraud = columns(transactions(3)), labels(3)
    whole = EntityWindows().insert(batch, is_fraud)
    state = EntityWindows()
    parts = [
        state.insert(batch.slice(start, end - start), is_fraud[start:end])
        for start, end in ((0, 1), (1, 2), (2, 150), (150, ROWS))
    ]
    for name, values in whole.items():
        assert (np.concatenate([part[name] for part in parts]) == values).all(), name


def test_a_label_tells_nothing_before_it_is_known() -> None:
    """Whatever the labels of the last seven days are, a transaction's windows are the same."""
    batch = transactions(4)
    at_ms = batch["occurred_at"].cast(pa.int64()).to_numpy()
    is_fraud = labels(4)
    found = EntityWindows().insert(columns(batch), is_fraud)
    for row in (100, 250, ROWS - 1):
        other = is_fraud.copy()
        unknown = at_ms > at_ms[row] - DELAY_MS
        other[unknown] = ~other[unknown]
        assert at_row(EntityWindows().insert(columns(batch), other), row) == at_row(found, row)
        known = is_fraud ^ (at_ms <= at_ms[row] - DELAY_MS)
        assert at_row(EntityWindows().insert(columns(batch), known), row) != at_row(found, row)


def test_a_transaction_that_comes_again_is_refused() -> None:
    """It would count twice for its terminal: its id is named."""
    batch, is_fraud = columns(transactions(5)), labels(5)
    state = EntityWindows()
    state.insert(batch, is_fraud)
    with pytest.raises(ValueError, match=r"handbook-399 comes again; give each of them once"):
        state.insert(batch.slice(ROWS - 1, 1), is_fraud[-1:])
