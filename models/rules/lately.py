"""What rules have done lately: counted over the ledger's newest decisions.

So asking costs the same however long the ledger is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from infra.postgres import Connection

NEWEST = 20_000
"""Decisions that are looked at, by event time."""


@dataclass(slots=True)
class Fired:
    """On how many of them a rule fired; on how many of these its cap held it back; where it held without
    effect."""

    fired: int = 0
    capped: int = 0
    silent: int = 0


@dataclass(slots=True, frozen=True)
class Lately:
    """The decisions that were looked at, and what came of rules in them, by `id@version`."""

    decisions: int
    since: datetime | None
    until: datetime | None
    rules: Mapping[str, Fired] = field(default_factory=dict)

    def of(self, key: str) -> Fired:
        return self.rules.get(key, Fired())


@dataclass(slots=True, frozen=True)
class Change:
    """Transactions on which a rule held without effect: what was decided, and what would have been were all
    rules on trial active."""

    decision: str
    would: str
    transactions: int


_NEWEST = (
    "WITH newest AS MATERIALIZED (SELECT occurred_at, decision, shadow_decision, fired_rules, capped_rules,"
    " shadow_rules FROM card_ledger ORDER BY occurred_at DESC LIMIT %(most)s)"
)
_COUNTED = f"""{_NEWEST}
SELECT NULL AS key, count(*), min(occurred_at), max(occurred_at), 0, 0 FROM newest
UNION ALL
SELECT key, NULL, NULL, NULL, sum(fired), sum(capped) FROM (
    SELECT key, 1 AS fired, (key = ANY (capped_rules))::int AS capped FROM newest, unnest(fired_rules) AS key
) AS f GROUP BY key
UNION ALL
SELECT key, count(*), NULL, NULL, NULL, NULL FROM newest, unnest(shadow_rules) AS key GROUP BY key
"""  # noqa: S608 -- a constant
_CHANGES = f"""{_NEWEST}
SELECT decision, coalesce(shadow_decision, decision), count(*) FROM newest
WHERE %(key)s = ANY (shadow_rules) GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
"""  # noqa: S608 -- a constant


def lately(connection: Connection, most: int = NEWEST) -> Lately:
    """What every rule did in the newest decisions, at most so many."""
    decisions, since, until = 0, None, None
    found: dict[str, Fired] = {}
    for key, count, first, last, fired, capped in connection.execute(_COUNTED.encode(), {"most": most}):
        if key is None:
            decisions, since, until = int(str(count)), first, last
            continue
        rule = found.setdefault(str(key), Fired())
        if fired is None:
            rule.silent = int(str(count))
        else:
            rule.fired, rule.capped = int(str(fired)), int(str(capped))
    return Lately(decisions, since, until, found)  # type: ignore[arg-type]


def changes(connection: Connection, key: str, most: int = NEWEST) -> list[Change]:
    """What a rule on trial (`id@version`) would have changed in the newest decisions."""
    rows = connection.execute(_CHANGES.encode(), {"most": most, "key": key})
    return [Change(str(d), str(w), int(str(n))) for d, w, n in rows]
