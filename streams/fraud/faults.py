"""What may be wrong with a card transaction's values, by column and one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from models.rules.batch import Bools

AMOUNT_MAX_MINOR = 10**12
OCCURRED_FROM_MS = 946_684_800_000  # 2000-01-01: a clock that was never set says 1970
NAME_MAX = 128
COUNTRY = re.compile(r"[A-Z]{2}")
CURRENCY = re.compile(r"[A-Z]{3}")
MCC = re.compile(r"[0-9]{4}")

_FORMS = {
    **dict.fromkeys(("event_id", "card_id", "tenant"), (b" ~", 1, NAME_MAX)),
    **dict.fromkeys(("customer_id", "merchant_id", "terminal_id"), (b" ~", 0, NAME_MAX)),
    "currency": (b"AZ", 3, 3),
    "country": (b"AZ", 2, 2),
    "home_country": (b"AZ", 2, 2),
    "mcc": (b"09", 4, 4),
}
"""First and last byte that a text may have, and its least and greatest length."""


def suspects(batch: pa.RecordBatch) -> Bools:
    """Which rows `fault` must look at: every row with a fault, and those with names beyond ASCII."""
    amounts, times = (batch.column(name).to_numpy() for name in ("amount_minor", "occurred_at"))
    found: Bools = (amounts < 0) | (amounts > AMOUNT_MAX_MINOR) | (times < OCCURRED_FROM_MS)
    for name, form in _FORMS.items():
        found |= _without_form(batch.column(name), *form)
    return found


def _without_form(texts: pa.Array, between: bytes, shortest: int, longest: int) -> Bools:
    """Which texts have other bytes than those between two, or another length; null is fine.

    From Arrow's own memory: a call of its functions for each property took longer than the rules.
    """
    if not len(texts):
        return np.zeros(0, dtype=bool)
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    found: Bools = (lengths < shortest) | (lengths > longest)
    if data is not None:
        held = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
        strange = np.flatnonzero((held < between[0]) | (held > between[1]))
        if len(strange):
            found[np.searchsorted(ends, strange + ends[0], side="right") - 1] = True
    if texts.null_count:
        found &= texts.is_valid().to_numpy(zero_copy_only=False)
    return found


def fault(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a transaction's values: field and reason; None where nothing is."""
    for name in ("event_id", "card_id", "tenant"):
        value = event[name]
        if not value or len(value) > NAME_MAX or not value.isprintable():
            return name, f"{name} must have 1 to {NAME_MAX} printable characters; send such a one"
    for name in ("customer_id", "merchant_id", "terminal_id"):
        value = event[name]
        if value is not None and (len(value) > NAME_MAX or not value.isprintable()):
            return (
                name,
                f"{name} may have at most {NAME_MAX} printable characters; shorten it or leave it out",
            )
    if not 0 <= event["amount_minor"] <= AMOUNT_MAX_MINOR:
        return "amount_minor", (
            f"amount_minor is {event['amount_minor']}; send 0 to {AMOUNT_MAX_MINOR} in minor units (a refund"
            " is not a card transaction)"
        )
    if event["occurred_at"] < OCCURRED_FROM_MS:
        return "occurred_at", "occurred_at lies before the year 2000; send milliseconds since 1970 in UTC"
    if not CURRENCY.fullmatch(event["currency"]):
        return "currency", f"currency {event['currency']!r} is not an ISO 4217 code; send one such as EUR"
    for name, form, example in (
        ("country", COUNTRY, "IE"),
        ("home_country", COUNTRY, "IE"),
        ("mcc", MCC, "5411"),
    ):
        value = event[name]
        if value is not None and not form.fullmatch(value):
            return name, f"{name} {value[:20]!r} is not a code; send one such as {example}, or leave it out"
    return None
