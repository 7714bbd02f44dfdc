"""A rule's text as tokens, and as they hang together: what was written, whatever it means."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from models.rules.problem import ParseError, Problem, suggestion

KEYWORDS = frozenset(
    [
        "WHEN",
        "THEN",
        "AND",
        "OR",
        "NOT",
        "IN",
        "IS",
        "NULL",
        "BETWEEN",
        "LIST",
        "SCORE",
        "REASON",
        "REVIEW",
        "DECLINE",
        "TRUE",
        "FALSE",
    ]
)
UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
TEXT_MAX = 4_096
DEPTH_MAX = 40

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<duration>\d+[A-Za-z]\w*)"
    r"|(?P<number>\d[\d_]*(?:\.\d+)?)"
    r"|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|<>|[<>=()+\-*/,])"
)
_SIGNS = {"==": "=", "<>": "!="}


@dataclass(slots=True, frozen=True)
class Token:
    """`kind`: keyword, name, number, duration, text, sign, end. `value` is its normal form."""

    kind: str
    value: str
    start: int
    end: int


@dataclass(slots=True, frozen=True)
class Node:
    """A piece of a condition with the characters [start, end) it was written as.

    `kind`: number, money, duration, text, truth, name, call, list, negative, arithmetic, compare, in, is
    null, between, not, and, or. `value`: the literal, name or operator; `is_negated` for NOT IN, IS NOT NULL.
    """

    kind: str
    value: str
    parts: tuple[Node, ...]
    start: int
    end: int
    is_negated: bool = False


@dataclass(slots=True, frozen=True)
class Written:
    """A rule as written: its condition, and what follows where it is true."""

    condition: Node
    action: str | None
    score: str | None
    reason: str | None
    consequence: tuple[int, int]
    """The characters of what stands behind THEN."""


def tokens(text: str) -> list[Token]:
    """The text's tokens, `end` last. Raises `ParseError`."""
    if len(text) > TEXT_MAX:
        raise _error(
            f"a rule has at most {TEXT_MAX} characters; this one has {len(text)}", TEXT_MAX, len(text)
        )
    found = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            character = text[at]
            if character in "'\"‘’“”":
                raise _error("this text does not end; close it with a quote like '", at, len(text))
            raise _error(f"{character!r} means nothing in a rule; leave it out", at, at + 1)
        kind, value, start, at = match.lastgroup or "", match.group(), at, match.end()
        if kind == "space":
            continue
        if kind == "word":
            kind, value = ("keyword", value.upper()) if value.upper() in KEYWORDS else ("name", value)
        elif kind == "number":
            value = value.replace("_", "")
        elif kind == "duration":
            value = _duration(value, start, at)
        elif kind == "text":
            value = value[1:-1].replace(value[0] * 2, value[0])
        else:
            value = _SIGNS.get(value, value)
        found.append(Token(kind, value, start, at))
    found.append(Token("end", "", len(text), len(text)))
    return found


def normal(text: str) -> str:
    """The text as everybody would write it: one space, keywords in capitals. Raises `ParseError`."""
    out = ""
    before: Token | None = None
    for token in tokens(text):
        if token.kind == "end":
            break
        written = f"'{token.value.replace(chr(39), chr(39) * 2)}'" if token.kind == "text" else token.value
        if token.value == "LIST" and token.kind == "keyword":
            written = "list"
        elif (token.value in ("REVIEW", "DECLINE") and token.kind == "keyword") or (
            token.kind == "name" and not (token.value.isupper() and len(token.value) == 3)
        ):
            written = token.value.lower()
        elif token.kind == "number" and before is not None and before.value == "SCORE":
            written = "+" + written
        is_call = before is not None and (before.kind == "name" or before.value == "LIST")
        is_joined = before is None or (
            (token.kind == "sign" and token.value in "),")
            or (before.kind == "sign" and before.value == "(")
            or (token.kind == "sign" and token.value == "(" and is_call)
        )
        is_signed = (
            before is not None and before.kind == "sign" and before.value == "+" and out.endswith("SCORE +")
        )
        out += written if is_joined or is_signed else " " + written
        before = token
    return out


def parse(text: str) -> Written:
    """The rule as written. Raises `ParseError` for the first thing that is no rule."""
    return _Parser(text).rule()


class _Parser:
    """By recursive descent, a method for each production."""

    def __init__(self, text: str) -> None:
        self._tokens = tokens(text)
        self._at = 0
        self._depth = 0

    def rule(self) -> Written:
        self._expect("WHEN", "a rule begins with WHEN")
        condition = self._or()
        then = self._expect("THEN", "a condition goes on with AND or OR, or ends with THEN")
        action = score = reason = None
        if (word := self._taken("REVIEW", "DECLINE")) is not None:
            action = word.value.lower()
        elif self._next.kind == "name":
            ends, instead = suggestion(self._next.value, ("review", "decline"))
            raise self._wrong(f"there is no action {self._next.value}; {ends}", instead)
        if self._taken("SCORE") is not None:
            self._taken("+")
            if self._next.value == "-":
                raise self._wrong("a score raises the risk; write SCORE +0.3")
            score = self._of_kind("number", "write the score behind SCORE, as SCORE +0.3").value
        if self._taken("REASON") is not None:
            reason = self._of_kind(
                "text", "write the reason behind REASON in quotes, as REASON 'far away'"
            ).value
        if self._next.kind != "end":
            raise self._wrong(
                f"{self._shown} stands where the rule should have ended; behind THEN come review or decline,"
                " then SCORE, then REASON"
            )
        return Written(condition, action, score, reason, (then.end, self._next.start))

    def _or(self) -> Node:
        return self._joined("OR", self._and)

    def _and(self) -> Node:
        return self._joined("AND", self._not)

    def _joined(self, word: str, part: Callable[[], Node]) -> Node:
        parts = [part()]
        while self._taken(word) is not None:
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        return Node(word.lower(), word, tuple(parts), parts[0].start, parts[-1].end)

    def _not(self) -> Node:
        word = self._taken("NOT")
        if word is None:
            return self._predicate()
        with_ = self._deeper(self._not)
        return Node("not", "NOT", (with_,), word.start, with_.end)

    def _predicate(self) -> Node:
        left = self._sum()
        if (sign := self._taken("=", "!=", "<", "<=", ">", ">=")) is not None:
            right = self._sum()
            if self._next.kind == "sign" and self._next.value in ("=", "!=", "<", "<=", ">", ">="):
                raise self._wrong("only two things can be compared at once; join two comparisons with AND")
            return Node("compare", sign.value, (left, right), left.start, right.end)
        if (word := self._taken("IS")) is not None:
            negated = self._taken("NOT") is not None
            end = self._expect("NULL", "write IS NULL or IS NOT NULL").end
            return Node("is null", word.value, (left,), left.start, end, negated)
        negated = self._next.value == "NOT" and self._following.value in ("IN", "BETWEEN")
        if negated:
            self._at += 1
        if self._taken("IN") is not None:
            items, end = self._items()
            return Node("in", "IN", (left, *items), left.start, end, negated)
        if self._taken("BETWEEN") is not None:
            low = self._sum()
            self._expect("AND", "write BETWEEN with two bounds, as BETWEEN 3 AND 5")
            high = self._sum()
            return Node("between", "BETWEEN", (left, low, high), left.start, high.end, negated)
        return left

    def _items(self) -> tuple[list[Node], int]:
        if (word := self._taken("LIST")) is not None:
            self._expect("(", "write the list's name behind list, as list('risky')")
            name = self._of_kind("text", "write the list's name in quotes, as list('risky')")
            end = self._expect(")", "close list( with )").end
            return [Node("list", name.value, (), word.start, end)], end
        self._expect("(", "behind IN comes list('name'), or values, as ('4829', '6051')")
        items = [self._sum()]
        while self._taken(",") is not None:
            items.append(self._sum())
        return items, self._expect(")", "values behind IN are parted by commas and end with )").end

    def _sum(self) -> Node:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Node:
        return self._chain(("*", "/"), self._factor)

    def _chain(self, signs: tuple[str, ...], part: Callable[[], Node]) -> Node:
        left: Node = part()
        while (sign := self._taken(*signs)) is not None:
            right: Node = part()
            left = Node("arithmetic", sign.value, (left, right), left.start, right.end)
        return left

    def _factor(self) -> Node:
        token = self._next
        if token.kind == "sign" and token.value == "-":
            self._at += 1
            inner = self._deeper(self._factor)
            return Node("negative", "-", (inner,), token.start, inner.end)
        if token.kind == "sign" and token.value == "(":
            self._at += 1
            inner = self._deeper(self._or)
            end = self._expect(")", "close ( with )").end
            return Node(inner.kind, inner.value, inner.parts, token.start, end, inner.is_negated)
        if token.kind in ("number", "duration", "text"):
            self._at += 1
            follows = self._next
            if token.kind == "number" and follows.kind == "name" and re.fullmatch("[A-Z]{3}", follows.value):
                self._at += 1
                return Node("money", f"{token.value} {follows.value}", (), token.start, follows.end)
            if token.kind == "number" and follows.value == "," and self._following.kind == "number":
                between = self._following
                if follows.start == token.end and between.start == follows.end and len(between.value) == 3:
                    joined = token.value + between.value
                    raise ParseError(
                        Problem(f"numbers have no comma; write {joined}", token.start, between.end, joined)
                    )
            return Node(token.kind, token.value, (), token.start, token.end)
        if token.kind == "keyword" and token.value in ("TRUE", "FALSE"):
            self._at += 1
            return Node("truth", token.value, (), token.start, token.end)
        if token.kind == "name":
            self._at += 1
            if self._taken("(") is None:
                return Node("name", token.value.lower(), (), token.start, token.end)
            arguments = [self._deeper(self._sum)]
            while self._taken(",") is not None:
                arguments.append(self._deeper(self._sum))
            end = self._expect(")", f"close {token.value.lower()}( with )").end
            return Node("call", token.value.lower(), tuple(arguments), token.start, end)
        raise self._wrong(
            "the condition ends too early; a fact such as amount or country is missing"
            if token.kind == "end"
            else f"{self._shown} stands where a fact such as amount or a value is missing"
        )

    def _deeper(self, part: Callable[[], Node]) -> Node:
        """A part within another. Text of parentheses alone must not exhaust the stack."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._wrong(f"a rule nests at most {DEPTH_MAX} deep; split it")
        found: Node = part()
        self._depth -= 1
        return found

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    @property
    def _following(self) -> Token:
        return self._tokens[min(self._at + 1, len(self._tokens) - 1)]

    @property
    def _shown(self) -> str:
        token = self._next
        return (
            "the end" if token.kind == "end" else f"'{token.value}'" if token.kind == "text" else token.value
        )

    def _taken(self, *values: str) -> Token | None:
        token = self._next
        if token.kind in ("keyword", "sign") and token.value in values:
            self._at += 1
            return token
        return None

    def _expect(self, value: str, remedy: str) -> Token:
        token = self._taken(value)
        if token is None:
            instead = (
                value if self._next.kind == "name" and suggestion(self._next.value, [value])[1] else None
            )
            raise self._wrong(f"{self._shown} stands where {value} should; {remedy}", instead)
        return token

    def _of_kind(self, kind: str, remedy: str) -> Token:
        token = self._next
        if token.kind != kind:
            raise self._wrong(f"{self._shown} does not fit here; {remedy}")
        self._at += 1
        return token

    def _wrong(self, message: str, instead: str | None = None) -> ParseError:
        token = self._next
        return ParseError(Problem(message, token.start, max(token.end, token.start + 1), instead))


def _duration(written: str, start: int, end: int) -> str:
    number = re.match(r"\d+", written)
    assert number is not None
    unit = written[number.end() :]
    if unit not in UNITS_MS:
        guess = unit[0].lower() if unit[0].lower() in UNITS_MS else "h"
        raise ParseError(
            Problem(
                f"there is no unit {unit}; a time is a number with s, m, h or d, as 30m",
                start,
                end,
                number.group() + guess,
            )
        )
    return written


def _error(message: str, start: int, end: int) -> ParseError:
    return ParseError(Problem(message, start, end))
