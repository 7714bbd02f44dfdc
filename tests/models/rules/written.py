"""Rules and transactions at random, rich in what tells three values apart: nulls, ties, zeros, expiries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from models.rules.checking import Context, check
from models.rules.currencies import Rates
from models.rules.lists import lists_of
from models.rules.tree import Condition

Choose = Callable[[Sequence[Any]], Any]
"""Chooses one of several: a random generator's, or hypothesis'."""

T0 = 1_700_000_000_000
DAY_MS = 86_400_000
RATES = Rates.of(
    {"stated": "EUR", "as_of": "2025-06-30", "rates": {"USD": "1.17", "JPY": "169", "BHD": "0.44"}}
)
CURRENCIES = ("EUR", "EUR", "USD", "JPY", "BHD", "XXX")  # of the last nobody states a rate
LISTS = lists_of(
    {
        "risky": [("4829", None), ("6051", T0 + DAY_MS), ("5411", T0)],
        "near": [("IE", None), ("FR", T0 + 2 * DAY_MS)],
        "none": [],
    }
)
CONTEXT = Context(LISTS, RATES.stated, RATES.per_stated)
WINDOWS = ("count(card, 2h)", "sum(card, 90m)", "max(card, 3d)")

NUMBERS = (
    *("count(card, 10m)", "count(card, 1h)", "count(card, 7d)", "distinct(card, merchant, 24h)"),
    *("hour", "weekday", "model_risk", "fraud_chance", "amount_minor", "count(card, 2h)"),
)
AMOUNTS = (
    *("amount", "sum(card, 1h)", "sum(card, 24h)", "max(card, 7d)", "mean(card, 7d)", "usual(card, 7d)"),
    *("sum(card, 90m)", "max(card, 3d)", "usual(card, 1h)"),
)
TIMES = ("since_previous", "late")
TEXTS = {
    "country": ("IE", "FR", "US"),
    "home_country": ("IE", "FR"),
    "mcc": ("4829", "6051", "5411", "1111"),
    "currency": ("EUR", "USD", "XXX"),
    "channel": ("PRESENT", "ONLINE"),
    "merchant_id": ("m1", "m2", "it's"),
}
SIGNS = ("=", "!=", "<", "<=", ">", ">=")


def rule_text(choose: Choose) -> str:
    """A rule; not each one can be used, as some conditions are always the same."""
    return f"WHEN {condition(choose, 3)} THEN review REASON 'r'"


def condition(choose: Choose, depth: int) -> str:
    kinds = ["number", "amount", "time", "text", "texts", "in", "list", "null", "flag"]
    kind = choose(kinds + ["and", "or", "not", "and", "or", "not"] * (depth > 0))
    if kind in ("and", "or"):
        parts = [condition(choose, depth - 1) for _ in range(choose([2, 2, 3]))]
        return "(" + f" {kind.upper()} ".join(parts) + ")"
    if kind == "not":
        return f"NOT {condition(choose, depth - 1)}"
    if kind == "number":
        return f"{number(choose, 2)} {choose(SIGNS)} {number(choose, 1)}"
    if kind == "amount":
        right = amount(choose, 1) if choose([True, False]) else written_amount(choose)
        return f"{amount(choose, 2)} {choose(SIGNS)} {right}"
    if kind == "time":
        return f"{choose(TIMES)} {choose(SIGNS)} {choose(['0s', '1m', '1h', 'late', 'since_previous * 2'])}"
    if kind == "text":
        name = choose(list(TEXTS))
        return f"{name} {choose(['=', '!='])} {quoted(choose(TEXTS[name]))}"
    if kind == "texts":
        left, right = choose([("country", "home_country"), ("merchant_id", "mcc")])
        return f"{left} {choose(['=', '!='])} {right}"
    if kind == "in":
        name = choose(list(TEXTS))
        values = ", ".join(quoted(value) for value in TEXTS[name][: choose([1, 2])])
        return f"{name} {choose(['IN', 'NOT IN'])} ({values})"
    if kind == "list":
        name, listed = choose([("mcc", "risky"), ("country", "near"), ("mcc", "none")])
        return f"{name} {choose(['IN', 'NOT IN'])} list('{listed}')"
    if kind == "null":
        what = choose(["country", "mcc", "since_previous", "fraud_chance", "usual(card, 7d)", "merchant_id"])
        return f"{what} {choose(['IS NULL', 'IS NOT NULL'])}"
    return str(choose(["foreign", "online", "weekend", "windows_complete"]))


def number(choose: Choose, depth: int) -> str:
    kind = choose(["column", "column", "written"] + ["sum", "product", "ratio"] * (depth > 0))
    if kind == "column":
        return str(choose(NUMBERS))
    if kind == "written":
        return str(choose(["0", "1", "2", "5", "0.1", "0.5", "-1", "3.3", "100"]))
    if kind == "ratio":
        return f"{amount(choose, depth - 1)} / {amount(choose, 0)}"
    sign = choose(["+", "-"]) if kind == "sum" else choose(["*", "/"])
    return f"({number(choose, depth - 1)} {sign} {number(choose, depth - 1)})"


def amount(choose: Choose, depth: int) -> str:
    kind = choose(["column", "column"] + ["sum", "scaled"] * (depth > 0))
    if kind == "column":
        return str(choose(AMOUNTS))
    if kind == "sum":
        return f"({amount(choose, depth - 1)} {choose(['+', '-'])} {amount(choose, depth - 1)})"
    return f"({amount(choose, depth - 1)} {choose(['*', '/'])} {number(choose, 0)})"


def written_amount(choose: Choose) -> str:
    return str(choose(["0", "1", "5", "10", "12.34", "5 USD", "1000 JPY", "3 BHD", "7.5"]))


def quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def conditions(rng: Random, count: int) -> list[tuple[str, Condition]]:
    """So many rules that can be used: text and condition."""
    found: list[tuple[str, Condition]] = []
    while len(found) < count:
        text = rule_text(rng.choice)
        meaning = check(text, CONTEXT).meaning
        if meaning is not None:
            found.append((text, meaning.condition))
    return found


def decision(choose: Choose) -> dict[str, Any]:
    """A transaction with its windows, as the ledger has it; not all windows were kept always."""
    amount_minor = choose([0, 1, 100, 500, 750, 1234, 100_000, 10**12])
    count = choose([1, 1, 2, 3, 5])
    total = amount_minor + (choose([0, 1, 3, 500, 10**15 + 1]) if count > 1 else 0)
    return {
        "tenant": "default",
        "occurred_at": T0 + choose([-1, 0, 1, DAY_MS - 1, DAY_MS, 2 * DAY_MS, 3 * DAY_MS, 19 * 3_600_000]),
        "amount_minor": amount_minor,
        "currency": choose(CURRENCIES),
        "country": choose([None, "IE", "FR", "US"]),
        "home_country": choose([None, "IE", "FR"]),
        "mcc": choose([None, "4829", "6051", "5411", "1111"]),
        "channel": choose(["PRESENT", "ONLINE", "UNKNOWN"]),
        "merchant_id": choose([None, "m1", "m2", "it's", "1111"]),
        "count_10m": choose([None, 1, 2]),
        "sum_10m_minor": choose([None, amount_minor]),
        "count_1h": count,
        "sum_1h_minor": total,
        "count_24h": count + choose([0, 1]),
        "sum_24h_minor": total + choose([0, 7]),
        "max_24h_minor": choose([None, amount_minor]),
        "merchants_24h": choose([None, 0, 1, 5]),
        "count_7d": count + choose([0, 1, 4]),
        "sum_7d_minor": total + choose([0, 7, 99_999]),
        "max_7d_minor": choose([None, amount_minor, 10**12]),
        "since_previous_ms": choose([None, 0, 1, 60_000, 3_600_000]),
        "late_ms": choose([0, 0, 1, 60_000]),
        "windows_complete": choose([True, False]),
        "model_risk": choose([0.0, 0.1, 0.5, 0.30000000000000004, 1.0]),
        "fraud_chance": choose([None, 0.0, 0.1, 0.5]),
        "rule_windows": choose([[], [1], [2, 750], [5, 10**15 + 1, 500]]),
    }
