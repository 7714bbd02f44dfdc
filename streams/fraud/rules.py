"""Rules as data: a conjunction of comparisons over a transaction's facts, checked when it is loaded."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.fraud import FEATURES

FLAGS = frozenset({"weekend", "foreign", "online"})
NUMBERS = frozenset(FEATURES) - FLAGS | {"late_ms"}
TEXTS = frozenset(
    {"currency", "country", "home_country", "mcc", "merchant_id", "terminal_id", "customer_id", "channel"}
)
FACTS = tuple(sorted(NUMBERS | FLAGS | TEXTS))

Bools = npt.NDArray[np.bool_]
Facts = Mapping[str, Any]
"""A fact of each row by name: numbers and flags as NumPy's int64, texts as Arrow arrays, null for unknown."""

_NUMBER: dict[str, Callable[[Any, Any], Bools]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@cache
def _texts(values: tuple[str, ...]) -> pa.Array:
    return pa.array(values, pa.string())


_TEXT: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "in": lambda facts, values: pc.and_(pc.is_valid(facts), pc.is_in(facts, _texts(values))),
    "not in": lambda facts, values: pc.and_(pc.is_valid(facts), pc.invert(pc.is_in(facts, _texts(values)))),
}

_OPS = {"number": ("<", "<=", ">", ">=", "==", "!="), "text": ("==", "!=", "in", "not in"), "flag": ("==",)}
_KEYS = {"id", "description", "when", "action", "score", "reason"}
ACTIONS = ("review", "decline")


class RuleError(ValueError):
    """Rules that cannot be used; the message names the rule, what is wrong with it, and the remedy."""


@dataclass(slots=True, frozen=True)
class Condition:
    """A comparison of one fact with a value; not fulfilled where the fact is unknown (null)."""

    name: str
    op: str
    value: Any

    def holds(self, facts: Facts) -> Bools:
        """Where it is fulfilled, by row."""
        if self.name not in TEXTS:
            return _NUMBER[self.op](facts[self.name], self.value)
        found = _TEXT[self.op](facts[self.name], self.value)
        held: Bools = (pc.fill_null(found, False) if found.null_count else found).to_numpy(
            zero_copy_only=False
        )
        return held


@dataclass(slots=True, frozen=True)
class Rule:
    """One rule. It fires where every condition holds."""

    id: str
    description: str
    conditions: tuple[Condition, ...]
    action: str
    score: float
    reason: str


@dataclass(frozen=True)
class Rules:
    """A version of the rules, ready to be used."""

    version: int
    rules: tuple[Rule, ...]

    @cached_property
    def _conditions(self) -> tuple[Condition, ...]:
        """Each condition once, however many rules have it."""
        return tuple(dict.fromkeys(c for rule in self.rules for c in rule.conditions))

    @cached_property
    def _of_rules(self) -> tuple[tuple[int, ...], ...]:
        places = {condition: n for n, condition in enumerate(self._conditions)}
        return tuple(tuple(places[c] for c in rule.conditions) for rule in self.rules)

    def fired(self, facts: Facts) -> list[tuple[Rule, Bools]]:
        """The rules that fire anywhere, in the order of the list, and where."""
        held = [condition.holds(facts) for condition in self._conditions]
        somewhere = [bool(h.any()) for h in held]
        found = []
        for rule, places in zip(self.rules, self._of_rules, strict=True):
            if all(somewhere[n] for n in places):
                fires = held[places[0]]
                for n in places[1:]:
                    fires = fires & held[n]
                if fires.any():
                    found.append((rule, fires))
        return found


def load_rules(version: int, body: Any) -> Rules:
    """Check a JSON list of rules and make it usable. Raises `RuleError`."""
    if not isinstance(body, list):
        raise RuleError(f"rules version {version}: the body is {_kind(body)}; make it a list of rules")
    rules = tuple(_rule(f"rules version {version}, rule {n}", entry) for n, entry in enumerate(body, 1))
    ids = [rule.id for rule in rules]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise RuleError(f"rules version {version}: the id {twice[0]!r} is given twice; rename one of them")
    return Rules(version, rules)


def _rule(where: str, entry: Any) -> Rule:
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
    return Rule(
        id=entry["id"],
        description=entry["description"],
        conditions=tuple(_condition(f"{where}, condition {n}", c) for n, c in enumerate(conditions, 1)),
        action=entry["action"],
        score=float(score),
        reason=entry["reason"],
    )


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
        return Condition(name, op, tuple(value))
    fits = {
        "text": isinstance(value, str),
        "flag": isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not fits:
        remedy = {"text": "a text", "flag": "true or false", "number": "a number"}[kind]
        raise RuleError(f"{where}: value is {_kind(value)}; {name} is compared with {remedy}")
    return Condition(name, op, value)


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
