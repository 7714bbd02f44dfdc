"""What may be wrong with a transaction is found by column wherever it is found one by one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from infra.columns import arrow_schema
from schemas.fraud import CARD_TRANSACTIONS
from streams.fraud.faults import AMOUNT_MAX_MINOR, NAME_MAX, OCCURRED_FROM_MS, fault, suspects

GOOD: dict[str, Any] = {
    **dict.fromkeys(CARD_TRANSACTIONS.fields),
    "event_id": "e1",
    "tenant": "default",
    "card_id": "c1",
    "occurred_at": OCCURRED_FROM_MS,
    "amount_minor": 100,
    "currency": "EUR",
    "channel": "ONLINE",
}
texts = st.text(max_size=4) | st.sampled_from(["EUR", "IE", "5411", "x" * NAME_MAX, "x" * (NAME_MAX + 1)])
WRONG: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("event_id", "tenant", "card_id", "currency"), texts),
    **dict.fromkeys(
        ("customer_id", "merchant_id", "terminal_id", "country", "home_country", "mcc"), texts | st.none()
    ),
    "amount_minor": st.sampled_from([-1, 0, AMOUNT_MAX_MINOR, AMOUNT_MAX_MINOR + 1]),
    "occurred_at": st.sampled_from([OCCURRED_FROM_MS - 1, OCCURRED_FROM_MS]),
}
one_wrong = st.one_of(*(st.fixed_dictionaries({name: value}) for name, value in WRONG.items()))
events = (one_wrong | st.fixed_dictionaries(WRONG)).map(lambda some: {**GOOD, **some})


@given(st.lists(events, max_size=8), st.integers(0, 3))
def test_no_fault_is_passed_over(batch: list[dict[str, Any]], start: int) -> None:
    """A row with a fault is suspect, and of texts in ASCII no other one; also in a part of a batch."""
    rows = pa.RecordBatch.from_pylist(batch, schema=arrow_schema(CARD_TRANSACTIONS)).slice(start)
    for event, suspect in zip(batch[start:], suspects(rows).tolist(), strict=True):
        values = [value for value in event.values() if isinstance(value, str)]
        if fault(event) is not None or all(value.isascii() for value in values):
            assert suspect == (fault(event) is not None), event
