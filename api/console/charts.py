"""Small plots over time as paths of an SVG: lines alone, each with its last value in words beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 72
PAST_S = 900.0
"""What a plot shows: the last quarter of an hour."""
STEP_S = 9.0
"""Of the values within a step the highest is drawn: a hundred points are enough, but no peak may be lost."""
GAP_S = 40.0
"""Looks further apart than this are not joined by a line."""

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its path, and its last value in words."""

    path: str
    now: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves on one scale, which begins at zero; `top` is its upper end in words."""

    lines: tuple[Line, ...]
    top: str


def plot(curves: Sequence[Points], now_s: float, words: Callable[[float | None], str]) -> Plot:
    """Curves of (seconds, value) up to `now_s`."""
    past = [_thinned([(t, v) for t, v in points if t >= now_s - PAST_S]) for points in curves]
    highest = _ceiling(max((v for points in past for _, v in points if v is not None), default=0.0))
    lines = tuple(
        Line(_path(drawn, now_s, highest), words(points[-1][1] if points else None))
        for drawn, points in zip(past, curves, strict=True)
    )
    return Plot(lines, words(highest))


def _thinned(points: Points) -> list[tuple[float, float | None]]:
    found: dict[int, tuple[float, float | None]] = {}
    for at_s, value in points:
        step = int(at_s // STEP_S)
        before = found.get(step)
        if before is None or before[1] is None or (value is not None and value >= before[1]):
            found[step] = (at_s, value)
    return list(found.values())


def _path(points: Points, now_s: float, highest: float) -> str:
    parts: list[str] = []
    before_s: float | None = None
    for at_s, value in points:
        if value is None:
            before_s = None
            continue
        x = WIDTH * (1 - (now_s - at_s) / PAST_S)
        y = HEIGHT - 1 - (HEIGHT - 2) * value / highest
        joined = before_s is not None and at_s - before_s <= GAP_S
        parts.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
        before_s = at_s
    return "".join(parts)


def _ceiling(value: float) -> float:
    """The next round number: 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9)))
