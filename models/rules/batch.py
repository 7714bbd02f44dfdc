"""Rules over a batch of transactions by column: each part once, however many rules have it.

A text column is looked at once for each of its distinct values. An unknown number is NaN, of which no
comparison holds; with NOT pushed down, nothing else must be known of what is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.rules.currencies import Rates
from models.rules.lists import Lists
from models.rules.tree import (
    And,
    Any_,
    Arithmetic,
    Compare,
    Condition,
    Const,
    Flag,
    IsNull,
    Listed,
    Money,
    Number,
    OneOf,
    Or,
    Quoted,
    SameText,
    Text,
    children,
    without_not,
)

Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_COMPARE: Mapping[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
}
_CALCULATE: Mapping[str, Callable[..., Any]] = {"+": np.add, "-": np.subtract, "*": np.multiply}


class Columns:
    """The columns of a batch, made when they are first asked for.

    `numbers`: arrays (rows,) by name, integers or doubles; of those in `below_zero_is_null` a negative
    value is null. `texts`: Arrow's text arrays (rows,) by name. `flags`: bool (rows,). `at_ms`: event times.
    A number that nobody has is unknown in every row.
    """

    def __init__(
        self,
        at_ms: Ints,
        numbers: Mapping[str, npt.NDArray[Any]],
        texts: Mapping[str, pa.Array],
        flags: Mapping[str, Bools],
        below_zero_is_null: frozenset[str] = frozenset({"since_previous_ms"}),
    ) -> None:
        self.at_ms = at_ms
        self._numbers, self._texts, self._flags = numbers, texts, flags
        self._below_zero_is_null = below_zero_is_null
        self._distinct: dict[str, tuple[list[str | None], Ints]] = {}

    def __len__(self) -> int:
        return len(self.at_ms)

    def number(self, column: str) -> Numbers:
        """A column of doubles, NaN for null."""
        if column == "hour":
            return (self.at_ms % _DAY_MS // _HOUR_MS).astype(np.float64)
        if column == "weekday":
            return ((self.at_ms // _DAY_MS + 3) % 7 + 1).astype(np.float64)
        if column not in self._numbers:
            return np.full(len(self), math.nan)
        found = self._numbers[column].astype(np.float64)
        if column in self._below_zero_is_null:
            found[found < 0] = math.nan
        return found

    def flag(self, column: str) -> Bools:
        return self._flags[column]

    def rows(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """The named columns by row, as `one` reads them: null is None, of numbers NaN."""
        lists: dict[str, list[Any]] = {}
        for name in names:
            if name == "occurred_at":
                lists[name] = self.at_ms.tolist()
            elif name in self._texts:
                lists[name] = self._texts[name].to_pylist()
            elif name in self._flags:
                lists[name] = self._flags[name].tolist()
            else:
                lists[name] = self.number(name).tolist()
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def distinct(self, column: str) -> tuple[list[str | None], Ints]:
        """The distinct values of a text column, None last, and each row's place among them."""
        found = self._distinct.get(column)
        if found is None:
            encoded = self._texts[column].dictionary_encode()
            values = [*encoded.dictionary.to_pylist(), None]
            codes = encoded.indices
            if codes.null_count:
                codes = codes.fill_null(len(values) - 1)
            found = values, codes.to_numpy(zero_copy_only=False).astype(np.int64)
            self._distinct[column] = found
        return found


def columns_of_decisions(decisions: Sequence[Mapping[str, Any]], windows: Sequence[str] = ()) -> Columns:
    """The columns of decisions one by one, as `one.of_decision` gives them."""
    from models.rules.one import of_decision

    rows = [of_decision(decision, windows) for decision in decisions]
    names = {name for row in rows for name in row} - {"occurred_at"}
    numbers, texts, flags = {}, {}, {}
    for name in names:
        values = [row.get(name) for row in rows]
        sample = next((value for value in values if value is not None), None)
        if isinstance(sample, bool):
            flags[name] = np.array(values, dtype=bool)
        elif isinstance(sample, int | float):
            numbers[name] = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        elif isinstance(sample, str) or sample is None:
            texts[name] = pa.array(values, pa.string())
    at_ms = np.array([row["occurred_at"] for row in rows], dtype=np.int64)
    return Columns(at_ms, numbers, texts, flags, frozenset())


Value = Any
"""What a step makes: an array (rows,), or a number that all rows have."""
Step = tuple[Callable[..., Value], tuple[int, ...]]


class Program:
    """Conditions compiled to steps, each over the results of earlier ones."""

    def __init__(self, conditions: Sequence[Condition], rates: Rates, lists: Lists) -> None:
        self._rates, self._lists = rates, lists
        self._places: dict[Any_, int] = {}
        self._steps: list[Step] = []
        self._results = [self._place(without_not(condition)) for condition in conditions]

    def __len__(self) -> int:
        """How many steps there are; parts that several rules have count once."""
        return len(self._steps)

    def held(self, columns: Columns) -> Bools:
        """Where each condition holds: bool (conditions, rows)."""
        found: list[Value] = []
        for step, places in self._steps:
            found.append(step(columns, *[found[place] for place in places]))
        held = np.empty((len(self._results), len(columns)), dtype=bool)
        for n, place in enumerate(self._results):
            held[n] = found[place]
        return held

    def _place(self, part: Any_) -> int:
        place = self._places.get(part)
        if place is None:
            inner = children(part)
            if isinstance(part, SameText | OneOf | Listed) or (isinstance(inner, tuple) and _is_text(part)):
                inner = ()  # these ask the columns themselves
            places = tuple(self._place(child) for child in inner)
            self._steps.append((self._step(part), places))
            place = self._places[part] = len(self._steps) - 1
        return place

    def _step(self, part: Any_) -> Callable[..., Value]:
        match part:
            case Const(value):
                return lambda columns: value
            case Number(column):
                return lambda columns: columns.number(column)
            case Money():
                return _money(self._rates.minor(part))
            case Arithmetic("/", _, _):
                return _divided
            case Arithmetic(sign, _, _):
                calculate = _CALCULATE[sign]
                return lambda columns, left, right: calculate(left, right)
            case Compare("!=", _, _):
                return lambda columns, left, right: (left < right) | (left > right)
            case Compare(sign, _, _):
                compare = _COMPARE[sign]
                return lambda columns, left, right: compare(left, right)
            case SameText(Text() as left, Text() as right, is_negated):
                return _same_texts(left.column, right.column, is_negated)
            case SameText(Text() as text, Quoted(value), is_negated) | SameText(
                Quoted(value), Text() as text, is_negated
            ):
                return _by_value(text.column, frozenset([value]), is_negated)
            case OneOf(text, values, is_negated):
                return _by_value(text.column, frozenset(values), is_negated)
            case Listed(text, name, is_negated):
                return _listed(text.column, self._lists[name].expiries, is_negated)
            case IsNull(Text() as text, is_negated):
                return _null_text(text.column, is_negated)
            case IsNull(_, is_negated):
                return lambda columns, value: (value == value) if is_negated else (value != value)
            case Flag(column, is_negated):
                return lambda columns: ~columns.flag(column) if is_negated else columns.flag(column)
            case And(_):
                return _all
            case Or(_):
                return _any
        raise TypeError(f"{part} cannot be a step")


def _is_text(part: Any_) -> bool:
    return isinstance(part, IsNull) and isinstance(part.operand, Text)


def _all(columns: Columns, first: Bools, *more: Bools) -> Value:
    held = first & more[0]
    for other in more[1:]:
        held &= other
    return held


def _any(columns: Columns, first: Bools, *more: Bools) -> Value:
    held = first | more[0]
    for other in more[1:]:
        held |= other
    return held


def _divided(columns: Columns, left: Value, right: Value) -> Value:
    return np.divide(left, np.where(right == 0, math.nan, right))


def _money(minor: Mapping[str, float]) -> Callable[[Columns], Value]:
    def step(columns: Columns) -> Value:
        values, codes = columns.distinct("currency")
        by_value = [math.nan if v is None else minor.get(v, math.nan) for v in values]
        # One currency alone, as most batches have: a number does for all rows.
        return np.array(by_value)[codes] if len(by_value) > 2 else by_value[0]

    return step


def _by_value(column: str, wanted: frozenset[str], is_negated: bool) -> Callable[[Columns], Value]:
    def step(columns: Columns) -> Value:
        values, codes = columns.distinct(column)
        held = np.array([v is not None and (v in wanted) != is_negated for v in values])
        return held[codes]

    return step


def _listed(column: str, expiries: Mapping[str, float], is_negated: bool) -> Callable[[Columns], Value]:
    def step(columns: Columns) -> Value:
        values, codes = columns.distinct(column)
        until = np.array([-math.inf if v is None else expiries.get(v, -math.inf) for v in values])
        inside: Bools = columns.at_ms < until[codes]
        return inside if not is_negated else ~inside & (codes != len(values) - 1)

    return step


def _same_texts(left: str, right: str, is_negated: bool) -> Callable[[Columns], Value]:
    def step(columns: Columns) -> Value:
        values, codes = columns.distinct(left)
        others, other_codes = columns.distinct(right)
        # The right side's values by their places on the left; a value that is not there has one of its own.
        at = {value: n for n, value in enumerate(values)}
        places = np.array([at.get(v, len(values) + n) for n, v in enumerate(others[:-1])] + [-1])
        held: Bools = (codes != places[other_codes]) if is_negated else (codes == places[other_codes])
        return held & (codes != len(values) - 1) & (other_codes != len(others) - 1)

    return step


def _null_text(column: str, is_negated: bool) -> Callable[[Columns], Value]:
    def step(columns: Columns) -> Value:
        values, codes = columns.distinct(column)
        return (codes != len(values) - 1) if is_negated else (codes == len(values) - 1)

    return step
