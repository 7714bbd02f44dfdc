"""Conditions that are always the same, by what their columns can hold."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from models.rules.tree import (
    And,
    Arithmetic,
    Compare,
    Condition,
    Const,
    IsNull,
    Money,
    Not,
    Number,
    Numeric,
    OneOf,
    Or,
    Quoted,
    SameText,
    Text,
    Textual,
    without_not,
)
from models.rules.vocabulary import bounds

Range = tuple[float, float]
EVERYTHING: Range = (-math.inf, math.inf)

_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def outcome(compare: Compare) -> bool | None:
    """What a comparison always is where its sides are known; None where it depends."""
    left, right, sign = compare.left, compare.right, compare.sign
    if left == right:
        return sign in ("=", "<=", ">=")
    if sign in (">", ">="):
        left, right, sign = right, left, _SWAPPED[sign]
    (a_low, a_high), (b_low, b_high) = values(left), values(right)
    if sign == "<":
        return True if a_high < b_low else False if a_low >= b_high else None
    if sign == "<=":
        return True if a_high <= b_low else False if a_low > b_high else None
    if a_high < b_low or b_high < a_low:
        return sign == "!="
    if a_low == a_high == b_low == b_high:
        return sign == "="
    return None


def range_of(compare: Compare) -> str:
    """What to say of the side that is a column: `: it is 0 to 23`."""
    for side in (compare.left, compare.right):
        if isinstance(side, Number):
            low, high = values(side)
            if side.column.endswith("_ms") or side.column.endswith("_minor"):
                return ""
            return f": it is {low:g} or more" if high == math.inf else f": it is {low:g} to {high:g}"
    return ""


def values(numeric: Numeric) -> Range:
    """Between what its values lie."""
    match numeric:
        case Const(value):
            return (value, value)
        case Number(column):
            return bounds(column)
        case Money(amount, _):
            if amount == 0:
                return (0.0, 0.0)
            return (0.0, math.inf) if amount > 0 else (-math.inf, 0.0)
        case Arithmetic(sign, left, right):
            return _combined(sign, values(left), values(right))


def _combined(sign: str, left: Range, right: Range) -> Range:
    if sign == "/":
        if right[0] <= 0 <= right[1]:
            return EVERYTHING
        ends = [_quotient(a, b) for a in left for b in right]
    elif sign == "*":
        # 0 * inf: the bound is never reached, so the product is 0.
        ends = [0.0 if 0 in (a, b) else a * b for a in left for b in right]
    elif sign == "+":
        ends = [left[0] + right[0], left[1] + right[1]]
    else:
        ends = [left[0] - right[1], left[1] - right[0]]
    return EVERYTHING if any(map(math.isnan, ends)) else (min(ends), max(ends))


def _quotient(a: float, b: float) -> float:
    return 0.0 if math.isinf(b) and not math.isinf(a) else a / b


def contradicts(parts: Sequence[Condition]) -> bool:
    """Whether conditions can never be true together, as far as each alone can be looked at."""
    plain = [p for part in parts for p in _flat(without_not(part))]
    return _null_and_known(plain) or _exclusive(plain)


def exhausts(parts: Sequence[Condition]) -> bool:
    """Whether one of the conditions always is true, where all is known."""
    return _exclusive([p for part in parts for p in _flat(without_not(part, True))])


def _exclusive(parts: Sequence[Condition]) -> bool:
    """Whether conditions exclude one another, whatever is known."""
    if any(without_not(part, True) in parts for part in parts):
        return True
    return _no_number(parts) or _no_text(parts)


def _flat(condition: Condition) -> list[Condition]:
    return list(condition.parts) if isinstance(condition, And) else [condition]


def _null_and_known(parts: Sequence[Condition]) -> bool:
    """Something is null and compared: unknown, so never true."""
    nulls = {part.operand for part in parts if isinstance(part, IsNull) and not part.is_negated}
    compared: set[Numeric | Textual] = set()
    for part in parts:
        match part:
            case Compare(_, left, right) | SameText(left, right, _):
                compared |= {left, right}
            case OneOf(text, _, _):
                compared.add(text)
            case And() | Or() | Not() | IsNull():
                continue
    return bool(nulls & compared)


def _literal(numeric: Numeric) -> tuple[str, Fraction] | None:
    """A written number's unit and value; only of one unit are two comparable."""
    match numeric:
        case Const(value):
            return "", Fraction(value)
        case Money(amount, currency):
            return currency, amount
    return None


def _no_number(parts: Sequence[Condition]) -> bool:
    """One thing is to be less than one number and more than a larger one."""
    limits: dict[tuple[Numeric, str], list[tuple[str, Fraction]]] = {}
    for part in parts:
        if isinstance(part, Compare):
            for side, other, sign in (
                (part.left, part.right, part.sign),
                (part.right, part.left, _SWAPPED[part.sign]),
            ):
                literal = _literal(other)
                if literal is not None:
                    limits.setdefault((side, literal[0]), []).append((sign, literal[1]))
    return any(_is_empty(found) for found in limits.values())


_HOLDS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


def _is_empty(limits: Sequence[tuple[str, Fraction]]) -> bool:
    """Whether no number keeps all limits: one that does is a limit itself, between two, or beyond all."""
    at = sorted({value for _, value in limits})
    tried = [at[0] - 1, at[-1] + 1, *at, *((a + b) / 2 for a, b in pairwise(at))]
    return not any(all(_HOLDS[sign](value, limit) for sign, limit in limits) for value in tried)


def _no_text(parts: Sequence[Condition]) -> bool:
    """One text is to be two things at once, or something that it is not to be."""
    wanted: dict[Textual, set[str]] = {}
    refused: dict[Textual, set[str]] = {}
    for part in parts:
        match part:
            case SameText(Text() as text, Quoted(value), negated) | SameText(
                Quoted(value), Text() as text, negated
            ):
                found = {value}
            case OneOf(text, values_, negated):
                found = set(values_)
            case _:
                continue
        if negated:
            refused[text] = refused.get(text, set()) | found
        else:
            wanted[text] = wanted[text] & found if text in wanted else found
    return any(not values_ - refused.get(text, set()) for text, values_ in wanted.items())
