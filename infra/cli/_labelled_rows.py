"""Rows to train and test on: labelled transactions with the windows that the stream's own code finds."""

from __future__ import annotations

import time
from collections.abc import Callable

from connectors.fraud.labelled import Labelled
from models.handbook.protocol import DAY_MS
from models.handbook.weekly import Kept, Rows
from streams.fraud.entities import EntityWindows

TOLD_S = 5.0
"""Between two lines of how far it is."""


def rows_of(labelled: Labelled, from_day: int, last_day: int, say: Callable[[str], None]) -> Rows:
    """The transactions from one day to another, both included and numbered since 1970-01-01.

    Their windows reach back to the first transaction that there is, as they would in the stream.
    """
    state, kept = EntityWindows(), Kept(from_day)
    start, told = 0, time.monotonic()
    for batch, is_fraud in labelled.batches():
        end = start + len(is_fraud)
        windows = state.insert(batch, is_fraud)
        columns = (labelled.occurred_at, labelled.customers, labelled.amount_minor)
        at_ms, customers, amount = (column[start:end] for column in columns)
        kept.add(at_ms, customers, amount, is_fraud, windows)
        start = end
        if time.monotonic() > told + TOLD_S:
            told = time.monotonic()
            say(f"windows of {start:,} of {len(labelled):,} transactions")
        if at_ms[-1] >= (last_day + 1) * DAY_MS:
            break  # what comes later is neither taught nor tested
    return kept.rows()
