"""Rules for fraud scoring, as many as an issuer's desk keeps in force: they read every kind of fact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from models.rules.ruleset import body_of

COUNT = 50


def fifty() -> dict[str, Any]:
    """A version of the rules that the processor takes; most rules fire seldom, as real ones do."""
    return many(COUNT)


def many(count: int) -> dict[str, Any]:
    """So many rules, a multiple of ten; no two have the same conditions."""
    return body_of(
        {
            f"bench-{n:03}": f"WHEN {condition} THEN {'decline' if n % 10 == 0 else 'review'}"
            f" SCORE +{0.2 + n % 7 / 10:.1f} REASON 'Reason {n}'"
            for n, condition in enumerate(_conditions(count // 10), 1)
        }
    )


def _conditions(levels: int) -> Iterator[str]:
    for level in range(1, levels + 1):
        yield f"count(card, 1h) >= {3 + level}"
        yield f"sum(card, 1h) >= {400 * level} AND count(card, 1h) >= 2"
        yield f"sum(card, 24h) >= {1_000 * level} AND count(card, 24h) >= {3 + level}"
        yield f"amount >= {200 + 40 * level} AND hour < {1 + level % 20}"
        yield f"count(card, 7d) >= {4 + level} AND amount >= {4 + level} * usual(card, 7d)"
        yield f"since_previous < {level}m AND amount >= 150"
        yield f"foreign AND amount >= {50 * level}"
        yield f"mcc IN ({_quoted(4000 + 7 * n + level for n in range(20))}) AND channel != 'PRESENT'"
        yield f"terminal_id IN ({_quoted(97 * n + level for n in range(30))}) AND count(card, 24h) >= 5"
        yield f"weekend AND late < {level}s AND sum(card, 7d) >= {3_000 * level}"


def _quoted(values: Iterator[int]) -> str:
    return ", ".join(f"'{value}'" for value in values)
