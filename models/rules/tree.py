"""The tree that a rule means, over the columns of a decision: what all three back ends compile.

Numbers are doubles, unknown ones NaN (null in SQL); texts may be null. Equal parts are equal values,
whichever rule they are of, so that a back end may compute them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

# Numbers


@dataclass(slots=True, frozen=True)
class Const:
    value: float


@dataclass(slots=True, frozen=True)
class Number:
    """A column of numbers: a field of the decision, `hour`, `weekday`, or a named window such as
    `count(card, 2h)`."""

    column: str


@dataclass(slots=True, frozen=True)
class Money:
    """An amount in major units of a currency; its value is that in minor units of the row's currency."""

    amount: Fraction
    currency: str


@dataclass(slots=True, frozen=True)
class Arithmetic:
    """`sign`: + - * /. Division by zero is unknown."""

    sign: str
    left: Numeric
    right: Numeric


Numeric = Const | Number | Money | Arithmetic

# Texts


@dataclass(slots=True, frozen=True)
class Text:
    """A column of texts: a field of the decision."""

    column: str


@dataclass(slots=True, frozen=True)
class Quoted:
    value: str


Textual = Text | Quoted

# Conditions


@dataclass(slots=True, frozen=True)
class Compare:
    """Of numbers; `sign`: = != < <= > >=."""

    sign: str
    left: Numeric
    right: Numeric


@dataclass(slots=True, frozen=True)
class SameText:
    left: Textual
    right: Textual
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class OneOf:
    """Whether a text is one of these."""

    text: Text
    values: tuple[str, ...]
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class Listed:
    """Whether a text stands in a list of the version, at the time of the transaction."""

    text: Text
    name: str
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class IsNull:
    operand: Numeric | Text
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class Flag:
    """A column of truth values; never null."""

    column: str
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class And:
    parts: tuple[Condition, ...]


@dataclass(slots=True, frozen=True)
class Or:
    parts: tuple[Condition, ...]


@dataclass(slots=True, frozen=True)
class Not:
    part: Condition


Leaf = Compare | SameText | OneOf | Listed | IsNull | Flag
Condition = Leaf | And | Or | Not
Any_ = Numeric | Textual | Condition

_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


def without_not(condition: Condition, is_negated: bool = False) -> Condition:
    """The same condition, or its negation, with NOT pushed down into the comparisons.

    Where it is true is then what AND and OR of its parts being true say: unknown can be treated as false.
    """
    match condition:
        case And(parts) | Or(parts):
            kind = Or if isinstance(condition, And) == is_negated else And
            return kind(tuple(without_not(part, is_negated) for part in parts))
        case Not(part):
            return without_not(part, not is_negated)
    if not is_negated:
        return condition
    match condition:
        case Compare(sign, left, right):
            return Compare(_OPPOSITE[sign], left, right)
        case SameText(left, right, negated):
            return SameText(left, right, not negated)
        case OneOf(text, values, negated):
            return OneOf(text, values, not negated)
        case Listed(text, name, negated):
            return Listed(text, name, not negated)
        case IsNull(operand, negated):
            return IsNull(operand, not negated)
        case Flag(column, negated):
            return Flag(column, not negated)


def children(part: Any_) -> tuple[Any_, ...]:
    """What it is made of."""
    match part:
        case Arithmetic(_, left, right) | Compare(_, left, right) | SameText(left, right, _):
            return (left, right)
        case OneOf(text, _, _) | Listed(text, _, _):
            return (text,)
        case IsNull(operand, _):
            return (operand,)
        case And(parts) | Or(parts):
            return parts
        case Not(inner):
            return (inner,)
    return ()


def walk(part: Any_) -> Iterator[Any_]:
    """It and all that it is made of, the inner before the outer."""
    for child in children(part):
        yield from walk(child)
    yield part


def columns(condition: Condition) -> set[str]:
    """The columns that it reads, `currency` among them where it says an amount."""
    found = {part.column for part in walk(condition) if isinstance(part, Number | Text | Flag)}
    if any(isinstance(part, Money) for part in walk(condition)):
        found.add("currency")
    return found


def lists(condition: Condition) -> set[str]:
    """The names of the lists that it asks."""
    return {part.name for part in walk(condition) if isinstance(part, Listed)}
