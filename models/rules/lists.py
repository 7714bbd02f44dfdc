"""Lists that rules ask: texts, each for ever or until a time of the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.rules.problem import RuleError

ENTRIES_MAX = 20_000
"""Of all lists of a version together: it is written into `versions` whole."""
NAME_MAX, VALUE_MAX = 64, 128


@dataclass(frozen=True, eq=False)
class Entries:
    """A list: each text with the event time (ms) before which it counts; infinite where it stays."""

    expiries: Mapping[str, float]

    @property
    def lasting(self) -> list[str]:
        return [value for value, until in self.expiries.items() if until == math.inf]

    @property
    def expiring(self) -> list[tuple[str, int]]:
        return [(value, int(until)) for value, until in self.expiries.items() if until != math.inf]


Lists = Mapping[str, Entries]


def lists_of(body: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Entries]:
    """From pairs of text and expiry (ms, or None) by the list's name. Raises `RuleError`."""
    if (total := sum(map(len, body.values()))) > ENTRIES_MAX:
        raise RuleError(f"the lists hold {total} entries together; keep them below {ENTRIES_MAX}")
    found = {}
    for name, entries in body.items():
        expiries: dict[str, float] = {}
        for value, until in entries:
            if not isinstance(value, str) or not value or len(value) > VALUE_MAX or not value.isprintable():
                raise RuleError(
                    f"list {name}: {value!r} cannot be an entry; use 1 to {VALUE_MAX} printable characters"
                )
            expiries[value] = math.inf if until is None else int(until)
        found[name] = Entries(expiries)
    return found
