"""Rules over the ledger: SQL whose three values are the language's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg import sql

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
    Not,
    Number,
    Numeric,
    OneOf,
    Or,
    Quoted,
    SameText,
    Text,
    Textual,
)
from models.rules.vocabulary import named_window

AT_MS = sql.SQL("(extract(epoch FROM occurred_at) * 1000)::bigint")
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_DERIVED: Mapping[str, sql.Composable] = {
    "hour": sql.SQL("({} % {} / {})").format(AT_MS, _DAY_MS, _HOUR_MS),
    "weekday": sql.SQL("(({} / {} + 3) % 7 + 1)").format(AT_MS, _DAY_MS),
}


def condition(wanted: Condition, rates: Rates, lists: Lists, windows: Sequence[str] = ()) -> sql.Composable:
    """The condition in SQL over the columns of `card_ledger`: true, false, or null where it is unknown.

    `windows`: the named windows in the order of `rule_windows`.
    """
    return _Maker(rates, lists, windows).condition(wanted)


class _Maker:
    def __init__(self, rates: Rates, lists: Lists, windows: Sequence[str]) -> None:
        self._rates, self._lists, self._windows = rates, lists, list(windows)

    def condition(self, wanted: Condition) -> sql.Composable:
        match wanted:
            case And(parts):
                return sql.SQL("({})").format(sql.SQL(" AND ").join(map(self.condition, parts)))
            case Or(parts):
                return sql.SQL("({})").format(sql.SQL(" OR ").join(map(self.condition, parts)))
            case Not(part):
                return sql.SQL("(NOT {})").format(self.condition(part))
            case Compare(sign, left, right):
                parts_ = (self._number(left), sql.SQL(sign.replace("!=", "<>")), self._number(right))
                return sql.SQL("({} {} {})").format(*parts_)
            case SameText(left, right, is_negated):
                sign_ = sql.SQL("<>" if is_negated else "=")
                return sql.SQL("({} {} {})").format(self._text(left), sign_, self._text(right))
            case OneOf(text, values, is_negated):
                word = sql.SQL("NOT IN" if is_negated else "IN")
                given = sql.SQL(", ").join(map(sql.Literal, values))
                return sql.SQL("({} {} ({}))").format(self._text(text), word, given)
            case Listed(text, name, is_negated):
                listed = self._listed(text, name)
                return sql.SQL("(NOT {})").format(listed) if is_negated else listed
            case IsNull(operand, is_negated):
                value = self._text(operand) if isinstance(operand, Text) else self._number(operand)
                return sql.SQL("({} IS {})").format(value, sql.SQL("NOT NULL" if is_negated else "NULL"))
            case Flag(column, is_negated):
                return sql.SQL("(NOT {})" if is_negated else "{}").format(sql.Identifier(column))

    def _listed(self, text: Text, name: str) -> sql.Composable:
        entries, column = self._lists[name], self._text(text)
        expiring = entries.expiring
        still = sql.SQL("EXISTS (SELECT FROM unnest({}::text[], {}::bigint[]) AS e (value, until)").format(
            [value for value, _ in expiring], [until for _, until in expiring]
        )
        return sql.SQL(
            "(CASE WHEN {column} IS NOT NULL THEN {column} = ANY ({lasting}::text[]) OR {still}"
            " WHERE e.value = {column} AND {at_ms} < e.until) END)"
        ).format(column=column, lasting=entries.lasting, still=still, at_ms=AT_MS)

    def _text(self, text: Textual) -> sql.Composable:
        return sql.Literal(text.value) if isinstance(text, Quoted) else sql.Identifier(text.column)

    def _number(self, numeric: Numeric) -> sql.Composable:
        match numeric:
            case Const(value):
                return _double(value)
            case Number(column):
                return sql.SQL("{}::float8").format(self._column(column))
            case Money():
                cases = [
                    sql.SQL("WHEN {} THEN {}").format(currency, _double(minor))
                    for currency, minor in self._rates.minor(numeric).items()
                ]
                return sql.SQL("(CASE currency {} END)").format(sql.SQL(" ").join(cases))
            case Arithmetic("/", left, right):
                return sql.SQL("({} / nullif({}, 0))").format(self._number(left), self._number(right))
            case Arithmetic(sign, left, right):
                return sql.SQL("({} {} {})").format(self._number(left), sql.SQL(sign), self._number(right))

    def _column(self, column: str) -> sql.Composable:
        if named_window(column) is None:
            return _DERIVED.get(column, sql.Identifier(column))
        if column not in self._windows:
            return sql.SQL("NULL")
        return sql.SQL("rule_windows[{}]").format(self._windows.index(column) + 1)


def _double(value: float) -> sql.Composable:
    # As text, in the shortest form that reads back the same: a bare literal would be a numeric.
    return sql.SQL("{}::float8").format(sql.Literal(repr(value)))
