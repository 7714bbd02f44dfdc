"""What a rule may speak of: facts, windows, and what their values can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from models.rules.tree import (
    Arithmetic,
    Compare,
    Condition,
    Const,
    Flag,
    Not,
    Number,
    Numeric,
    Quoted,
    SameText,
    Text,
    Textual,
)

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
WIDTH_MAX_MS = 7 * DAY_MS
"""The state keeps a card's transactions a day longer (`streams.fraud.history`)."""
NAMED_MAX = 16
"""Named windows that are kept at once."""
INFINITE = float("inf")


class Kind(StrEnum):
    """What a value is; only like is compared with like."""

    NUMBER = "a number"
    MONEY = "an amount"
    TIME = "a time"
    TEXT = "a text"
    CONDITION = "a condition"


@dataclass(slots=True, frozen=True)
class Fact:
    """A name of a rule, and the tree that it stands for."""

    kind: Kind
    means: Numeric | Textual | Condition
    about: str


_FOREIGN = Not(SameText(Text("country"), Text("home_country")))
FACTS: Mapping[str, Fact] = {
    "amount": Fact(Kind.MONEY, Number("amount_minor"), "What the card is billed"),
    "amount_minor": Fact(
        Kind.NUMBER, Number("amount_minor"), "The same in minor units, whatever its currency"
    ),
    "currency": Fact(Kind.TEXT, Text("currency"), "The card's billing currency, as 'EUR'"),
    "country": Fact(Kind.TEXT, Text("country"), "Country of the merchant, as 'IE'; null where unknown"),
    "home_country": Fact(Kind.TEXT, Text("home_country"), "Country of the card's holder; null where unknown"),
    "foreign": Fact(Kind.CONDITION, _FOREIGN, "Merchant and holder are in different countries"),
    "mcc": Fact(Kind.TEXT, Text("mcc"), "Merchant category code, four digits, as '5411'; null where unknown"),
    "channel": Fact(Kind.TEXT, Text("channel"), "'PRESENT' at a terminal, 'ONLINE' or 'UNKNOWN'"),
    "online": Fact(Kind.CONDITION, SameText(Text("channel"), Quoted("ONLINE")), "The card was used online"),
    "merchant_id": Fact(Kind.TEXT, Text("merchant_id"), "Who is paid; null where unknown"),
    "terminal_id": Fact(Kind.TEXT, Text("terminal_id"), "Where the card was used; null where unknown"),
    "customer_id": Fact(Kind.TEXT, Text("customer_id"), "Whom the card belongs to; null where unknown"),
    "card_id": Fact(Kind.TEXT, Text("card_id"), "The card"),
    "tenant": Fact(Kind.TEXT, Text("tenant"), "Whose card it is"),
    "hour": Fact(Kind.NUMBER, Number("hour"), "Hour of the day in UTC, 0 to 23"),
    "weekday": Fact(Kind.NUMBER, Number("weekday"), "Day of the week in UTC, 1 (Monday) to 7"),
    "weekend": Fact(
        Kind.CONDITION, Compare(">=", Number("weekday"), Const(6.0)), "Saturday or Sunday in UTC"
    ),
    "since_previous": Fact(
        Kind.TIME,
        Number("since_previous_ms"),
        "Since the card's previous use within 7 days; null without one",
    ),
    "late": Fact(Kind.TIME, Number("late_ms"), "How far the transaction lies behind the card's newest one"),
    "windows_complete": Fact(Kind.CONDITION, Flag("windows_complete"), "The windows lack nothing"),
    "model_risk": Fact(Kind.NUMBER, Number("model_risk"), "Risk by the model, 0.0 to 1.0; 0 without one"),
    "fraud_chance": Fact(
        Kind.NUMBER, Number("fraud_chance"), "Chance of fraud by the forest; null without one"
    ),
}

KEPT: Mapping[tuple[str, int], str] = {
    ("count", 10 * MINUTE_MS): "count_10m",
    ("sum", 10 * MINUTE_MS): "sum_10m_minor",
    ("count", HOUR_MS): "count_1h",
    ("sum", HOUR_MS): "sum_1h_minor",
    ("count", DAY_MS): "count_24h",
    ("sum", DAY_MS): "sum_24h_minor",
    ("max", DAY_MS): "max_24h_minor",
    ("merchants", DAY_MS): "merchants_24h",
    ("count", 7 * DAY_MS): "count_7d",
    ("sum", 7 * DAY_MS): "sum_7d_minor",
    ("max", 7 * DAY_MS): "max_7d_minor",
}
"""Windows of a card that every decision has, by function and width: their fields."""

NAMEABLE = ("count", "sum", "max")
"""Functions of a card that the state answers over any other width, from the transactions that it keeps."""


@dataclass(slots=True, frozen=True)
class Function:
    """A window's function: what its value is, its form, and its tree for a width."""

    kind: Kind
    form: str
    about: str
    means: Callable[[Callable[[str], Number]], Numeric]
    """Given how to reach count, sum, max and merchants of that width."""


def _usual(of: Callable[[str], Number]) -> Numeric:
    others = Arithmetic("-", of("count"), Const(1.0))
    return Arithmetic("/", Arithmetic("-", of("sum"), Number("amount_minor")), others)


FUNCTIONS: Mapping[str, Function] = {
    "count": Function(Kind.NUMBER, "count(card, 1h)", "Transactions", lambda of: of("count")),
    "sum": Function(Kind.MONEY, "sum(card, 1h)", "Their amounts, summed", lambda of: of("sum")),
    "max": Function(Kind.MONEY, "max(card, 24h)", "The largest of them", lambda of: of("max")),
    "mean": Function(
        Kind.MONEY, "mean(card, 7d)", "Their mean", lambda of: Arithmetic("/", of("sum"), of("count"))
    ),
    "usual": Function(Kind.MONEY, "usual(card, 7d)", "Mean of the others; null where there is none", _usual),
    "distinct": Function(
        Kind.NUMBER,
        "distinct(card, merchant, 24h)",
        "How many merchants were paid",
        lambda of: of("merchants"),
    ),
}
"""Windows reach back from the transaction, itself included, by event time."""

ENTITIES = ("card",)

CODES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "currency": (re.compile("[A-Z]{3}"), "three capitals, as 'EUR'"),
    "country": (re.compile("[A-Z]{2}"), "two capitals, as 'IE'"),
    "home_country": (re.compile("[A-Z]{2}"), "two capitals, as 'IE'"),
    "mcc": (re.compile("[0-9]{4}"), "four digits, as '5411'"),
}
CHOICES: Mapping[str, tuple[str, ...]] = {"channel": ("PRESENT", "ONLINE", "UNKNOWN")}
NEVER_NULL = frozenset({"currency", "channel", "card_id", "tenant"})

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "amount_minor": (0.0, 1e12),
    "hour": (0.0, 23.0),
    "weekday": (1.0, 7.0),
    "since_previous_ms": (0.0, WIDTH_MAX_MS - 1.0),
    "late_ms": (0.0, INFINITE),
    "model_risk": (0.0, 1.0),
    "fraud_chance": (0.0, 1.0),
}


def bounds(column: str) -> tuple[float, float]:
    """Between what a column's numbers lie."""
    least = 1.0 if column.startswith("count") else 0.0
    return _BOUNDS.get(column, (least, INFINITE))


def width_text(width_ms: int) -> str:
    """A width as a rule says it: 90m, 2h, 3d."""
    for unit, unit_ms in (("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS)):
        if width_ms % unit_ms == 0 and (unit != "d" or width_ms > DAY_MS):
            return f"{width_ms // unit_ms}{unit}"
    return f"{width_ms // SECOND_MS}s"


def window_column(function: str, width_ms: int) -> str:
    """The column of a window: its field, or its name where it must be named."""
    return KEPT.get((function, width_ms)) or f"{function}(card, {width_text(width_ms)})"


_NAMED = re.compile(r"(count|sum|max)\(card, (\d+)([smhd])\)")


def named_window(column: str) -> tuple[str, int] | None:
    """Function and width of a named window's column; None where it is none."""
    found = _NAMED.fullmatch(column)
    if found is None:
        return None
    unit_ms = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}[found[3]]
    return found[1], int(found[2]) * unit_ms


def words() -> Iterator[tuple[str, str, str]]:
    """Every fact and window function: its form, its kind, what it is."""
    for name, fact in FACTS.items():
        yield name, fact.kind, fact.about
    for function in FUNCTIONS.values():
        yield function.form, function.kind, function.about
