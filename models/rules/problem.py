"""What is wrong with a rule's text, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(slots=True, frozen=True)
class Problem:
    """One thing that is wrong: `message` is a sentence with the remedy, about the characters [start, end)."""

    message: str
    start: int
    end: int
    instead: str | None = None
    """What was meant, where it can be guessed: text to put in place of these characters."""


class RuleError(ValueError):
    """A rule, list or set of rules that cannot be used; the message says what is wrong, and the remedy."""


class ParseError(RuleError):
    """Text that is no rule."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class CheckError(RuleError):
    """A rule with problems; the message draws each under the text."""

    def __init__(self, text: str, problems: Iterable[Problem]) -> None:
        self.text, self.problems = text, tuple(problems)
        super().__init__("\n".join(drawn(text, problem) for problem in self.problems))


def drawn(text: str, problem: Problem) -> str:
    """The problem under the line of text that it is in."""
    before = text.rfind("\n", 0, problem.start) + 1
    after = text.find("\n", problem.start)
    line = text[before : len(text) if after < 0 else after]
    start = problem.start - before
    marks = max(1, min(problem.end, before + len(line)) - problem.start)
    return f"{line}\n{' ' * start}{'^' * marks}\ncharacter {problem.start + 1}: {problem.message}"


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like this one, if one is."""
    by_lower = {k.lower(): k for k in known}
    found = get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> tuple[str, str | None]:
    """How a message about an unknown name ends, and what was meant."""
    names = sorted(known)
    instead = meant(name, names)
    if instead is not None:
        return f"did you mean {instead}?", instead
    return (f"use one of {', '.join(names)}" if names else "there is none yet"), None
