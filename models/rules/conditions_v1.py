"""Rules from before the language: a JSON list of conjunctions of comparisons, as the tree that they mean.

Nobody writes them any more. Versions of them were published, and a replay decides by them as it was decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.fraud import FEATURES
from models.rules.checking import Meaning
from models.rules.problem import RuleError
from models.rules.tree import And, Compare, Condition, Const, Number, OneOf, Quoted, SameText, Text

FLAGS = frozenset({"weekend", "foreign", "online"})
NUMBERS = frozenset(FEATURES) - FLAGS | {"late_ms"}
TEXTS = frozenset(
    {"currency", "country", "home_country", "mcc", "merchant_id", "terminal_id", "customer_id", "channel"}
)
FACTS = tuple(sorted(NUMBERS | FLAGS | TEXTS))
ACTIONS = ("review", "decline")
FEATURE = "feature "
"""Stands before the column of a feature of the model: a whole number, -1 or a default where it is unknown."""

_OPS = {"number": ("<", "<=", ">", ">=", "==", "!="), "text": ("==", "!=", "in", "not in"), "flag": ("==",)}
_KEYS = {"id", "description", "when", "action", "score", "reason"}


def meanings(body: Sequence[Any]) -> list[tuple[str, Meaning]]:
    """Id and meaning of each rule. Raises `RuleError`."""
    found = [_meaning(f"rule {n}", entry) for n, entry in enumerate(body, 1)]
    ids = [id_ for id_, _ in found]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise RuleError(f"the id {twice[0]!r} is given twice; rename one of them")
    return found


def _meaning(where: str, entry: Any) -> tuple[str, Meaning]:
    if not isinstance(entry, dict):
        raise RuleError(f"{where} is {_kind(entry)}; make it an object with {', '.join(sorted(_KEYS))}")
    missing, unknown = sorted(_KEYS - set(entry)), sorted(set(entry) - _KEYS)
    if missing:
        raise RuleError(f"{where} lacks {missing[0]!r}; give it one")
    if unknown:
        raise RuleError(f"{where} has {unknown[0]!r}, which means nothing; use {', '.join(sorted(_KEYS))}")
    for name in ("id", "description", "reason"):
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise RuleError(f"{where}: {name} is {_kind(entry[name])}; make it text that is not empty")
    where = f"{where} ({entry['id']})"
    if entry["action"] not in ACTIONS:
        raise RuleError(f"{where}: action is {entry['action']!r}; use {' or '.join(ACTIONS)}")
    score = entry["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise RuleError(f"{where}: score is {score!r}; make it a number from 0 to 1")
    conditions = entry["when"]
    if not isinstance(conditions, list) or not conditions:
        raise RuleError(f"{where}: when is {_kind(conditions)}; make it a list of at least one condition")
    parts = tuple(_condition(f"{where}, condition {n}", c) for n, c in enumerate(conditions, 1))
    condition = parts[0] if len(parts) == 1 else And(parts)
    return entry["id"], Meaning(condition, entry["action"], float(score), entry["reason"])


def _condition(where: str, entry: Any) -> Condition:
    if not isinstance(entry, dict) or set(entry) != {"feature", "op", "value"}:
        raise RuleError(f"{where} is {_kind(entry)}; make it an object with exactly feature, op and value")
    name, op, value = entry["feature"], entry["op"], entry["value"]
    if name not in FACTS:
        raise RuleError(f"{where}: there is no feature {name!r}; use one of {', '.join(FACTS)}")
    kind = "text" if name in TEXTS else "flag" if name in FLAGS else "number"
    if op not in _OPS[kind]:
        raise RuleError(f"{where}: op {op!r} does not fit {name}, a {kind}; use {_or(_OPS[kind])}")
    if op in ("in", "not in"):
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise RuleError(f"{where}: value is {_kind(value)}; make it a list of texts, at least one")
        return OneOf(Text(name), tuple(value), op == "not in")
    fits = {
        "text": isinstance(value, str),
        "flag": isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not fits:
        remedy = {"text": "a text", "flag": "true or false", "number": "a number"}[kind]
        raise RuleError(f"{where}: value is {_kind(value)}; {name} is compared with {remedy}")
    if kind == "text":
        return SameText(Text(name), Quoted(value), op == "!=")
    return Compare(op.replace("==", "="), Number(FEATURE + name), Const(float(value)))


def columns_of_features(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The model's features as the columns that these rules read."""
    return ((FEATURE + name, values) for name, values in found.items())


def _or(choices: Sequence[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return repr(value)
