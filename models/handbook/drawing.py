"""Plots as SVG, for a page that needs nothing from elsewhere. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44


@dataclass(frozen=True, slots=True)
class Axis:
    """What is on it, where it begins and ends, and what is written at which of its values.

    `log`: in powers of ten; it must begin above 0.
    """

    about: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """How far along the axis the value lies, 0.0 to 1.0; what is beyond an end lies at it."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points joined by a line or, with `dots`, marked one by one; `spans` are vertical (x, low, high)."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    line: bool = True
    spans: Sequence[tuple[float, float, float]] = ()


def plot(title: str, across: Axis, up: Axis, curves: Sequence[Curve]) -> str:
    """An SVG with a legend; the n-th curve has the class `c<n>`."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for value, words in up.ticks:
        y = _y(up, value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(words)}</text>')
    for value, words in across.ticks:
        x = _x(across, value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(words)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    named = (
        (across.about, f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}"'),
        (up.about, f'transform="rotate(-90 12 {middle})" x="12" y="{middle}"'),
    )
    parts += [f'<text {where} text-anchor="middle">{escape(about)}</text>' for about, where in named]
    for n, curve in enumerate(curves):
        parts.append(f'<g class="c{n}">')
        for x, low, high in curve.spans:
            at = _x(across, x)
            parts.append(f'<path class="line" d="M{at:.1f} {_y(up, low):.1f}V{_y(up, high):.1f}"/>')
        placed = [(_x(across, x), _y(up, y)) for x, y in curve.points]
        if curve.line and placed:
            parts.append(f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in placed)}"/>')
        if curve.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        parts.append("</g>")
    parts.append("</svg>")
    legend = "".join(f'<span class="c{n}"><i></i>{escape(c.name)}</span>' for n, c in enumerate(curves))
    drawing = "".join(parts)
    return f'<figure><figcaption>{escape(title)}</figcaption>{drawing}<p class="legend">{legend}</p></figure>'


def shares(step: float = 0.2) -> list[tuple[float, str]]:
    """Ticks of an axis from 0 to 1."""
    return [(n * step, f"{n * step:.1f}") for n in range(round(1 / step) + 1)]


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)
