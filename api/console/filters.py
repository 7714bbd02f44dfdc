"""A filter over decoded events as people write it: `amount_minor>1000 country=DE ~berlin`.

Terms are separated by spaces and must all hold. A term is `field`, an operator and a value, or `~text`, which
any value may contain. Fields of fields are dotted; `@key`, `@partition` and `@offset` are the record's own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.dlq.edits import to_json

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "~": lambda a, b: str(b).lower() in str(a).lower(),
}
_TERM = re.compile(r"(@?[A-Za-z_][\w.]*)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)


class FilterError(ValueError):
    """Text that is no filter; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. Without a field, any value may contain the text."""

    field: str | None
    operator: str
    value: str

    def holds(self, event: Mapping[str, Any]) -> bool:
        if self.field is None:
            return self.value.lower() in to_json(event).lower()
        found = _at(event, self.field)
        if found is ...:
            return self.operator == "!="
        if self.operator == "~":
            return OPERATORS["~"](found, self.value)
        try:
            return OPERATORS[self.operator](found, _like(found, self.value))
        except (TypeError, ValueError):
            return self.operator == "!="


@dataclass(frozen=True, slots=True)
class Filter:
    """Terms that must all hold."""

    terms: tuple[Term, ...]

    def holds(self, event: Mapping[str, Any]) -> bool:
        return all(term.holds(event) for term in self.terms)


def parse(text: str) -> Filter:
    """The filter that somebody wrote; an empty one lets everything through. Raises `FilterError`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise FilterError(f"The filter cannot be read ({error}); close every quotation mark.") from None
    return Filter(tuple(map(_term, words)))


def _term(word: str) -> Term:
    if word.startswith("~") and len(word) > 1:
        return Term(None, "~", word[1:])
    found = _TERM.fullmatch(word)
    if found is None:
        raise FilterError(
            f"{word!r} is no condition; write field=value, field>10, field~part, or ~text for any field."
        )
    return Term(found[1], found[2], found[3])


def _at(event: Any, path: str) -> Any:
    """The value at a dotted path; `...` where there is none."""
    for name in path.split("."):
        if not isinstance(event, Mapping) or name not in event:
            return ...
        event = event[name]
    return event


def _like(found: Any, text: str) -> Any:
    """The text as a value of the kind that it is compared with. Raises ValueError."""
    if text == "null":
        return None
    if isinstance(found, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(found, int):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if isinstance(found, float):
        return float(text)
    return text
