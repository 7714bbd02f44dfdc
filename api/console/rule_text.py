"""A rule's text as pages show it: marked where something is wrong with it, and corrected as was meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from models.rules.problem import Problem, RuleError

_INSTEAD = re.compile(r"(\d{1,5})-(\d{1,5})-(.{1,200})", re.S)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text. `faults`: which problems are about it, from 1; none: nothing is wrong here."""

    text: str
    faults: tuple[int, ...] = ()


def pieces(text: str, problems: Sequence[Problem]) -> list[Piece]:
    """The text in stretches, each with its problems. One at the end of the text marks what is missing there.

    >>> [(p.text, p.faults) for p in pieces("a bc", [Problem("why b", 2, 3)])]
    [('a ', ()), ('b', (1,)), ('c', ())]
    """
    spans = [_span(text, problem) for problem in problems]
    cuts = sorted({0, len(text), *(at for span in spans for at in span)})
    found = [Piece(text[start:end], _about(spans, start, end)) for start, end in pairwise(cuts)]
    missing = tuple(n for n, (s, e) in enumerate(spans, 1) if s == e)
    return [*found, Piece("", missing)] if missing else found


def _about(spans: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, ...]:
    return tuple(n for n, (s, e) in enumerate(spans, 1) if s <= start and end <= e and s < e)


def _span(text: str, problem: Problem) -> tuple[int, int]:
    start = min(max(problem.start, 0), len(text))
    return start, min(max(problem.end, start), len(text))


def correction(problem: Problem) -> str | None:
    """What a form sends for a problem whose remedy is known; see `corrected`."""
    return None if problem.instead is None else f"{problem.start}-{problem.end}-{problem.instead}"


def corrected(text: str, wanted: str) -> str:
    """The text with the correction that a form sent. Raises `RuleError` where it is none of this text."""
    found = _INSTEAD.fullmatch(wanted)
    if found is None or not int(found[1]) <= int(found[2]) <= len(text):
        raise RuleError("the correction does not fit the text any more; check the text again")
    return text[: int(found[1])] + found[3] + text[int(found[2]) :]
