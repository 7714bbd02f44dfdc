"""Windows of those whom a transaction touches: its customer and its terminal, with the frauds known of them.

Every window is found by `Histories`, the loop that `fraud-scoring` runs for cards: here the key is a customer
or a terminal, and what is summed is an amount or a label. A window of width w of a transaction at t covers
(t - w, t], itself included. That a transaction was fraud is known `delay_ms` after it: the windows of what is
known cover (t - delay - w, t - delay], each as the difference of two windows that end at t, so that a label
younger than the delay cancels out whatever it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.declare import DAY_MS
from streams.fraud.histories import Bounds, Histories, Inserted

Ints = npt.NDArray[np.int64]

DELAY_MS = 7 * DAY_MS
"""After which it is known whether a transaction was fraud."""
CUSTOMER_DAYS = (1, 3, 7, 14, 30, 90)
TERMINAL_DAYS = (1, 7, 30, 60)
KNOWN_DAYS = (1, 3, 7, 10, 14, 17, 20, 21, 22, 25, 30, 60)
"""Of the windows of what is known, behind the delay."""
OUTLYING_DAYS = (1, 3, 7, 14, 30)
OUTLYING_PERCENT = 250
"""A transaction is outlying whose amount is above so many per cent of what its customer usually spends: the
mean of the 90 days before the last 14, so that a theft that is under way does not hide itself."""
IDLE_MS = 200 * DAY_MS
"""Longer than all windows: whoever pauses is still known when he comes back."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Histories of one kind of key over one kind of value. `days`: widths of the windows asked for."""

    histories: Histories
    widths_ms: tuple[int, ...]

    @classmethod
    def of(cls, widths_ms: Sequence[int]) -> Kept:
        """For windows of these widths, the widest last; nothing is kept for longer than that."""
        widest = widths_ms[-1]
        bounds = Bounds(widths_ms=(widest,) * 4, lateness_ms=0, idle_ms=max(IDLE_MS, widest))
        return cls(Histories(bounds), tuple(widths_ms))

    def insert(
        self, at_ms: Ints, values: Ints, keys: list[str], ids: list[str], others: list[str | None]
    ) -> tuple[Inserted, Ints, Ints, Ints]:
        """Put rows in their places; what was found, and count, sum and maximum by (width, row)."""
        found = self.histories.insert(at_ms, values, at_ms, keys, ids, others, self.widths_ms)
        self.histories.keep([b""] * len(ids))
        self.histories.delta()  # nothing here is ever restored
        count, total, largest = (found.named[:, n::3].T for n in range(3))
        return found, count, total, largest


class EntityWindows:
    """The histories of customers and terminals, fed in the order of the log.

    Memory: the transactions of 90 days, below 1 KB for each in the five of them (measured at 9,600 a day).
    """

    def __init__(self, delay_ms: int = DELAY_MS) -> None:
        self._customers = Kept.of([days * DAY_MS for days in CUSTOMER_DAYS])
        self._outlying = Kept.of([days * DAY_MS for days in OUTLYING_DAYS])
        self._terminals = Kept.of([days * DAY_MS for days in TERMINAL_DAYS])
        known = [delay_ms, *(delay_ms + days * DAY_MS for days in KNOWN_DAYS)]
        self._of_terminals, self._of_customers = Kept.of(known), Kept.of(known)

    def insert(self, batch: pa.RecordBatch, is_fraud: npt.NDArray[np.bool_]) -> dict[str, Ints]:
        """The windows of transactions (columns of `card-transactions`), each int64 (rows,), by name.

        `is_fraud`: what will be known of each row, after the delay. Every row has an id of its own, a
        customer and a terminal. Amounts are in minor units. Raises TypeError for a row without customer or
        terminal, ValueError for an id that comes again.
        """
        ids = batch.column("event_id").to_pylist()
        customers = batch.column("customer_id").to_pylist()
        terminals = batch.column("terminal_id").to_pylist()
        at_ms, amount = (
            np.ascontiguousarray(batch.column(name).to_numpy(), dtype=np.int64)
            for name in ("occurred_at", "amount_minor")
        )
        label = is_fraud.astype(np.int64)
        found, count, total, largest = self._customers.insert(at_ms, amount, customers, ids, terminals)
        again = np.flatnonzero(found.first != np.arange(len(ids)))
        if len(again):
            raise ValueError(f"the transaction {ids[again[0]]} comes again; give each of them once")
        windows = {
            **_by_days("customer_count", CUSTOMER_DAYS, count),
            **_by_days("customer_sum", CUSTOMER_DAYS, total),
            **_by_days("customer_max", CUSTOMER_DAYS, largest),
            "customer_terminals_90d": found.windows[:, 7],
            "customer_since_previous_ms": found.windows[:, 11],
        }
        # In integers: the amount above so many per cent of sum / count; not where nothing is usual.
        recent, long = CUSTOMER_DAYS.index(14), CUSTOMER_DAYS.index(90)
        usual_count, usual_sum = count[long] - count[recent], total[long] - total[recent]
        outlying = (100 * amount * usual_count > OUTLYING_PERCENT * usual_sum).astype(np.int64)
        _, _, outlying_count, _ = self._outlying.insert(at_ms, outlying, customers, ids, terminals)
        windows |= _by_days("customer_outlying", OUTLYING_DAYS, outlying_count)
        found, count, total, largest = self._terminals.insert(at_ms, amount, terminals, ids, customers)
        windows |= {
            **_by_days("terminal_count", TERMINAL_DAYS, count),
            **_by_days("terminal_sum", TERMINAL_DAYS, total),
            "terminal_customers_60d": found.windows[:, 7],
        }
        for whose, kept, keys in (
            ("terminal", self._of_terminals, terminals),
            ("customer", self._of_customers, customers),
        ):
            _, count, total, _ = kept.insert(at_ms, label, keys, ids, [None] * len(ids))
            windows |= _by_days(f"{whose}_known", KNOWN_DAYS, count[1:] - count[0])
            windows |= _by_days(f"{whose}_frauds", KNOWN_DAYS, total[1:] - total[0])
        return windows


def _by_days(name: str, days: Sequence[int], found: Ints) -> dict[str, Ints]:
    return {f"{name}_{n}d": found[row] for row, n in enumerate(days)}
