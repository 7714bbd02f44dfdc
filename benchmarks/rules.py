"""Fifty rules for fraud scoring, as many as an issuer's desk keeps in force: they read every kind of fact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COUNT = 50


def fifty() -> list[dict[str, Any]]:
    """A list that `streams.fraud.rules` takes; most rules fire seldom, as real ones do."""
    return [
        {
            "id": f"bench-{n:02}",
            "description": f"Benchmark rule {n}",
            "when": [{"feature": name, "op": op, "value": value} for name, op, value in conditions],
            "action": "decline" if n % 10 == 0 else "review",
            "score": round(0.2 + n % 7 / 10, 1),
            "reason": f"Reason {n}",
        }
        for n, conditions in enumerate(_conditions(), 1)
    ]


def _conditions() -> Iterator[list[tuple[str, str, Any]]]:
    for level in range(1, 6):
        yield [("count_1h", ">=", 3 + level)]
        yield [("sum_1h_minor", ">=", 40_000 * level), ("count_1h", ">=", 2)]
        yield [("sum_24h_minor", ">=", 100_000 * level), ("count_24h", ">=", 3 + level)]
        yield [("amount_minor", ">=", 20_000 + 4_000 * level), ("hour_of_day", "<", level)]
        yield [("count_7d", ">=", 4 + level), ("amount_pct_of_mean_7d", ">=", 400 + 100 * level)]
        yield [("since_previous_s", "<", 60 * level), ("amount_minor", ">=", 15_000)]
        yield [("foreign", "==", True), ("amount_minor", ">=", 5_000 * level)]
        yield [("mcc", "in", [f"{4000 + 7 * n + level}" for n in range(20)]), ("channel", "!=", "PRESENT")]
        yield [("terminal_id", "in", [f"{97 * n + level}" for n in range(30)]), ("count_24h", ">=", 5)]
        yield [("weekend", "==", True), ("late_ms", "==", 0), ("sum_7d_minor", ">=", 300_000 * level)]
