"""Rules compiled for one transaction: one Python function for all of them.

The function is built from the tree as Python's own syntax tree, never as text: what a rule quotes stays a
constant.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from models.rules.currencies import Rates
from models.rules.lists import Lists
from models.rules.tree import (
    And,
    Arithmetic,
    Compare,
    Condition,
    Const,
    Flag,
    IsNull,
    Listed,
    Money,
    Number,
    Numeric,
    OneOf,
    Or,
    Quoted,
    SameText,
    Text,
    Textual,
    columns,
    walk,
    without_not,
)

Row = Mapping[str, Any]
"""Columns of a transaction by name, None for null; see `of_decision`."""

NAN = math.nan
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_SIGNS: Mapping[str, ast.cmpop] = {
    "<": ast.Lt(),
    "<=": ast.LtE(),
    ">": ast.Gt(),
    ">=": ast.GtE(),
    "=": ast.Eq(),
}
_OPERATORS: Mapping[str, ast.operator] = {"+": ast.Add(), "-": ast.Sub(), "*": ast.Mult()}


def of_decision(decision: Row, windows: Sequence[str] = ()) -> dict[str, Any]:
    """The columns of a decision, its event time in milliseconds.

    `windows`: the named windows, in the order of its `rule_windows`.
    """
    at_ms = decision["occurred_at"]
    named = decision.get("rule_windows") or ()
    return {
        **decision,
        "hour": at_ms % _DAY_MS // _HOUR_MS,
        "weekday": (at_ms // _DAY_MS + 3) % 7 + 1,  # 1970-01-01 was a Thursday
        **dict(zip(windows, [*named, *[None] * (len(windows) - len(named))], strict=False)),
    }


def compiled(conditions: Sequence[Condition], rates: Rates, lists: Lists) -> Callable[[Row], list[bool]]:
    """A function that says which of the conditions hold for a row; `row["occurred_at"]` in milliseconds."""
    plain = [without_not(condition) for condition in conditions]
    maker = _Maker(rates, lists)
    reads = read_by(plain)
    held = ast.List([maker.condition(condition) for condition in plain], ast.Load())
    body: list[ast.stmt] = [maker.reading(name) for name in reads]
    body.append(ast.Return(held))
    function = ast.FunctionDef(
        name="held",
        args=ast.arguments(
            posonlyargs=[],
            args=[ast.arg("row")],
            kwonlyargs=[],
            kw_defaults=[],
            defaults=[],
            vararg=None,
            kwarg=None,
        ),
        body=body,
        decorator_list=[],
        returns=None,
        type_comment=None,
    )
    module = ast.fix_missing_locations(ast.Module([function], type_ignores=[]))
    names: dict[str, Any] = {
        "__builtins__": {"float": float},
        "divided": _divided,
        "nan": NAN,
        **maker.constants,
    }
    # Built from the checked tree alone.
    exec(compile(module, "<rules>", "exec"), names)  # noqa: S102  # nosec B102
    found: Callable[[Row], list[bool]] = names["held"]
    return found


def read_by(conditions: Iterable[Condition]) -> list[str]:
    """The columns of a row that their compiled form reads."""
    found: set[str] = set()
    for condition in conditions:
        found |= columns(condition)
        if any(isinstance(part, Listed) for part in walk(condition)):
            found.add("occurred_at")
    return sorted(found)


def _divided(left: float, right: float) -> float:
    return left / right if right != 0 else NAN


class _Maker:
    """Makes Python's syntax trees; what is no plain value goes into `constants` by name."""

    def __init__(self, rates: Rates, lists: Lists) -> None:
        self._rates, self._lists = rates, lists
        self._numbers: set[str] = set()
        self._names: dict[str, str] = {}
        self.constants: dict[str, Any] = {}

    def reading(self, column: str) -> ast.stmt:
        """Reads a column into its variable: numbers as doubles, NaN for null."""
        value: ast.expr = ast.Subscript(_name("row"), ast.Constant(column), ast.Load())
        if column in self._numbers:
            is_null = ast.Compare(value, [ast.Is()], [ast.Constant(None)])
            value = ast.IfExp(is_null, _name("nan"), _call("float", value))
        return ast.Assign([ast.Name(self._variable(column), ast.Store())], value)

    def condition(self, condition: Condition) -> ast.expr:
        match condition:
            case And(parts):
                return ast.BoolOp(ast.And(), [self.condition(part) for part in parts])
            case Or(parts):
                return ast.BoolOp(ast.Or(), [self.condition(part) for part in parts])
            case Compare("!=", left, right):
                # Unknown is not different either: NaN is neither less nor more.
                a, b = self._number(left), self._number(right)
                return ast.BoolOp(ast.Or(), [_compared(a, ast.Lt(), b), _compared(a, ast.Gt(), b)])
            case Compare(sign, left, right):
                return _compared(self._number(left), _SIGNS[sign], self._number(right))
            case SameText(left, right, is_negated):
                known = [self._known(part) for part in (left, right) if isinstance(part, Text)]
                same: ast.cmpop = ast.NotEq() if is_negated else ast.Eq()
                return ast.BoolOp(ast.And(), [*known, _compared(self._text(left), same, self._text(right))])
            case OneOf(text, values, is_negated):
                inside = _compared(self._text(text), ast.In(), self._constant(frozenset(values)))
                return self._of_known(text, inside, is_negated)
            case Listed(text, name, is_negated):
                # An entry counts until its expiry; a text without one has always expired.
                until = self._constant(self._lists[name].expiries)
                expiry = ast.Call(
                    ast.Attribute(until, "get", ast.Load()), [self._text(text), ast.Constant(-math.inf)], []
                )
                inside = _compared(_name(self._variable("occurred_at")), ast.Lt(), expiry)
                return self._of_known(text, inside, is_negated)
            case IsNull(Text() as text, is_negated):
                null: ast.cmpop = ast.IsNot() if is_negated else ast.Is()
                return _compared(self._text(text), null, ast.Constant(None))
            case IsNull(operand, is_negated):
                assert not isinstance(operand, Text)
                nan: ast.cmpop = ast.Eq() if is_negated else ast.NotEq()
                return _compared(self._number(operand), nan, self._number(operand))
            case Flag(column, is_negated):
                wanted = _name(self._variable(column))
                return _compared(wanted, ast.Eq(), ast.Constant(not is_negated))
        raise TypeError(f"{condition} stands where NOT was pushed down")

    def _of_known(self, text: Text, inside: ast.expr, is_negated: bool) -> ast.expr:
        if not is_negated:
            return ast.BoolOp(ast.And(), [self._known(text), inside])
        return ast.BoolOp(ast.And(), [self._known(text), ast.UnaryOp(ast.Not(), inside)])

    def _known(self, text: Text) -> ast.expr:
        return _compared(self._text(text), ast.IsNot(), ast.Constant(None))

    def _text(self, text: Textual) -> ast.expr:
        return ast.Constant(text.value) if isinstance(text, Quoted) else _name(self._variable(text.column))

    def _number(self, numeric: Numeric) -> ast.expr:
        match numeric:
            case Const(value):
                return ast.Constant(value)
            case Number(column):
                self._numbers.add(column)
                return _name(self._variable(column))
            case Money():
                by_currency = self._constant(self._rates.minor(numeric))
                currency = _name(self._variable("currency"))
                return ast.Call(ast.Attribute(by_currency, "get", ast.Load()), [currency, _name("nan")], [])
            case Arithmetic("/", left, right):
                return _call("divided", self._number(left), self._number(right))
            case Arithmetic(sign, left, right):
                return ast.BinOp(self._number(left), _OPERATORS[sign], self._number(right))

    def _variable(self, column: str) -> str:
        return self._names.setdefault(column, f"c{len(self._names)}")

    def _constant(self, value: Any) -> ast.expr:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return _name(name)


def _name(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(_name(name), list(arguments), [])


def _compared(left: ast.expr, sign: ast.cmpop, right: ast.expr) -> ast.expr:
    return ast.Compare(left, [sign], [right])
