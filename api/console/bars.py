"""Counts by day as bars of an SVG, and shares as bars beside their figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

WIDTH, HEIGHT = 600, 96
GAP = 0.2
"""Of a day's width that is left free beside its bar."""
DAYS_MOST = 400
"""A longer time is drawn from its end."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One day: a rectangle in `WIDTH` times `HEIGHT`, and what it says."""

    x: float
    y: float
    width: float
    height: float
    day: date
    count: int


@dataclass(frozen=True, slots=True)
class Bars:
    """Days in a row, on a scale that begins at zero and ends at `top`."""

    bars: tuple[Bar, ...]
    top: int


def by_day(counts: Mapping[str, int], first: date, last: date) -> Bars:
    """Bars of every day from `first` to `last`, also of those without a count. `counts`: by ISO date."""
    days = max(1, min((last - first).days + 1, DAYS_MOST))
    begins = last - timedelta(days=days - 1)
    top = _ceiling(max(counts.values(), default=0))
    step = WIDTH / days
    found = []
    for n in range(days):
        day = begins + timedelta(days=n)
        count = counts.get(day.isoformat(), 0)
        x, width, height = n * step + step * GAP / 2, step * (1 - GAP), HEIGHT * count / top
        left, top_y, wide, high = (round(v, 1) for v in (x, HEIGHT - height, width, height))
        found.append(Bar(left, top_y, wide, high, day, count))
    return Bars(tuple(found), top)


def _ceiling(value: int) -> int:
    """The next round number: 1, 2 or 5 times a power of ten."""
    power = 10 ** int(math.log10(value)) if value > 0 else 1
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power)
