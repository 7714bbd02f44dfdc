"""What a rule's text means: names found, kinds compared, lists there, no condition always the same."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from fractions import Fraction

from models.rules import constant, vocabulary
from models.rules.currencies import CODE
from models.rules.problem import CheckError, ParseError, Problem, suggestion
from models.rules.syntax import UNITS_MS, Node, Written, parse
from models.rules.tree import (
    And,
    Any_,
    Arithmetic,
    Compare,
    Condition,
    Const,
    IsNull,
    Listed,
    Money,
    Not,
    Number,
    Numeric,
    OneOf,
    Or,
    Quoted,
    SameText,
    Text,
    columns,
    walk,
)
from models.rules.vocabulary import CHOICES, CODES, ENTITIES, FACTS, FUNCTIONS, KEPT, Kind, named_window

PRODUCTS_MAX = 8
"""Multiplications and divisions in a comparison: with more, a double might overflow, and Postgres raises."""
DIGITS_MAX = 15
REASON_MAX = 200
LISTABLE = frozenset(
    {"currency", "country", "home_country", "mcc", "merchant_id", "terminal_id", "customer_id", "card_id"}
)


@dataclass(slots=True, frozen=True)
class Context:
    """What rules are checked against: the lists there are, and the currencies amounts may be stated in."""

    lists: Collection[str] = ()
    currency: str = "EUR"
    rates: Collection[str] = ("EUR",)


@dataclass(slots=True, frozen=True)
class Meaning:
    """A rule without problems. `action`: review, decline, or None for one that only adds to the risk."""

    condition: Condition
    action: str | None
    score: float
    reason: str

    @property
    def windows(self) -> list[str]:
        """The named windows that it needs, as columns."""
        return sorted(c for c in columns(self.condition) if named_window(c) is not None)


@dataclass(slots=True, frozen=True)
class Checked:
    """What became of a text: its meaning, or its problems."""

    text: str
    meaning: Meaning | None
    problems: tuple[Problem, ...]


def check(text: str, context: Context) -> Checked:
    """All that is wrong with a rule's text, or what it means. Never raises: called while somebody types."""
    try:
        written = parse(text)
    except ParseError as error:
        return Checked(text, None, (error.problem,))
    checker = _Checker(text, context)
    meaning = checker.rule(written)
    if checker.problems:
        return Checked(text, None, tuple(sorted(checker.problems, key=lambda p: (p.start, p.end))))
    return Checked(text, meaning, ())


def understand(text: str, context: Context) -> Meaning:
    """What a rule means. Raises `CheckError`."""
    checked = check(text, context)
    if checked.meaning is None:
        raise CheckError(text, checked.problems)
    return checked.meaning


@dataclass(slots=True, frozen=True)
class _Value:
    """A part with its kind. `exact`: of a number that is written out, which may still become an amount."""

    kind: Kind
    tree: Any_
    exact: Fraction | None = None


class _Refused(Exception):
    """This part has a problem, which was noted; what holds it cannot be checked."""


@dataclass
class _Checker:
    text: str
    context: Context
    problems: list[Problem] = field(default_factory=list)

    def rule(self, written: Written) -> Meaning | None:
        score = self._consequence(written)
        try:
            condition = self._condition(written.condition)
        except _Refused:
            return None
        return Meaning(condition, written.action, score, written.reason or "")

    def _consequence(self, written: Written) -> float:
        start, end = written.consequence
        if written.action is None and written.score is None:
            self._note("say what follows: review or decline, or SCORE +0.3, or both", start, end)
        score = float(written.score or 0)
        if not 0 <= score <= 1:
            self._note(
                "a score is from 0 to 1, and combines as 1 - (1 - risk) * (1 - score); this is not",
                start,
                end,
            )
        if written.reason is None or not written.reason.strip():
            self._note("say why, for whoever reads the decision: REASON 'far from home'", start, end)
        elif len(written.reason) > REASON_MAX or not written.reason.isprintable():
            self._note(f"a reason has at most {REASON_MAX} printable characters; shorten it", start, end)
        return score

    # Conditions

    def _condition(self, node: Node) -> Condition:
        value = self._value(node)
        if value.kind is not Kind.CONDITION:
            shown = self._shown(node)
            remedy = {
                Kind.TEXT: f"compare it, as {shown} = '…'",
                Kind.MONEY: f"compare it, as {shown} > 100",
                Kind.TIME: f"compare it, as {shown} < 10m",
                Kind.NUMBER: f"compare it, as {shown} > 3",
            }[value.kind]
            raise self._refuse(f"{shown} is {value.kind}, no condition; {remedy}", node)
        assert not isinstance(value.tree, Const | Number | Money | Arithmetic | Text | Quoted)
        return value.tree

    def _logic(self, node: Node) -> Condition:
        parts: list[Condition] = []
        is_refused = False
        for part in node.parts:
            try:
                found = self._condition(part)
            except _Refused:
                is_refused = True
                continue
            parts.extend(found.parts if isinstance(found, And if node.kind == "and" else Or) else [found])
        if is_refused:
            raise _Refused
        joined = And(tuple(parts)) if node.kind == "and" else Or(tuple(parts))
        if len(set(parts)) < len(parts):
            raise self._refuse("the same condition stands here twice; leave one of them out", node)
        if isinstance(joined, And) and constant.contradicts(joined.parts):
            raise self._refuse("this can never be true: its parts contradict one another; change one", node)
        if isinstance(joined, Or) and constant.exhausts(joined.parts):
            raise self._refuse("this is always true where it is known: its parts leave nothing out", node)
        return joined

    def _comparison(self, node: Node) -> Condition:
        if (truth := node.parts[1]).kind == "truth":
            raise self._compared_with_truth(node, truth.value == "TRUE")
        left, right = self._both(node.parts[0], node.parts[1])
        if Kind.TEXT in (left.kind, right.kind):
            return self._texts(node, left, right)
        if Kind.CONDITION in (left.kind, right.kind):
            raise self._refuse("conditions are joined with AND and OR, not compared", node)
        left, right = self._alike(node, left, right, "compared")
        compare = Compare(node.value, _number(left), _number(right))
        return self._bounded(compare, node)

    def _bounded(self, compare: Compare, node: Node) -> Compare:
        """A comparison that has no problem of its own: not too long, not always the same."""
        products = sum(isinstance(p, Arithmetic) and p.sign in "*/" for p in walk(compare))
        if products > PRODUCTS_MAX:
            raise self._refuse(
                f"a comparison has at most {PRODUCTS_MAX} multiplications and divisions; split it", node
            )
        always = constant.outcome(compare)
        if always is not None:
            said = "always true where it is known" if always else "never true"
            raise self._refuse(f"{self._shown(node)} is {said}{constant.range_of(compare)}; change it", node)
        return compare

    def _texts(self, node: Node, left: _Value, right: _Value) -> Condition:
        for one, other, where in ((left, right, node.parts[1]), (right, left, node.parts[0])):
            if one.kind is Kind.TEXT and other.kind is not Kind.TEXT:
                shown = self._shown(where)
                hint = f"; write it in quotes, '{shown}'" if other.exact is not None else ""
                instead = f"'{shown}'" if other.exact is not None else None
                raise self._refuse(
                    f"{shown} is {other.kind}, and is compared with a text{hint}", where, instead
                )
        if node.value not in ("=", "!="):
            raise self._refuse(f"texts are compared with = or !=, not with {node.value}", node)
        trees = (left.tree, right.tree)
        if isinstance(left.tree, Quoted) and isinstance(right.tree, Quoted):
            raise self._refuse("both sides are written out, so this is always the same; compare a fact", node)
        if left.tree == right.tree:
            raise self._refuse("both sides are the same; compare two facts", node)
        for column, quoted, where in (
            (left.tree, right.tree, node.parts[1]),
            (right.tree, left.tree, node.parts[0]),
        ):
            if isinstance(column, Text) and isinstance(quoted, Quoted):
                self._require_possible(column, quoted.value, where)
        assert isinstance(trees[0], Text | Quoted) and isinstance(trees[1], Text | Quoted)
        return SameText(trees[0], trees[1], node.value == "!=")

    def _require_possible(self, column: Text, value: str, node: Node) -> None:
        """Refuse a text that the column never holds."""
        choices, form = CHOICES.get(column.column), CODES.get(column.column)
        if choices is not None and value not in choices:
            ends, instead = suggestion(value, choices)
            raise self._refuse(
                f"{column.column} is never '{value}'; {ends}", node, instead and f"'{instead}'"
            )
        if form is not None and not form[0].fullmatch(value):
            upper = value.strip().upper()
            instead = f"'{upper}'" if form[0].fullmatch(upper) else None
            raise self._refuse(f"{column.column} is never '{value}'; it has {form[1]}", node, instead)

    def _compared_with_truth(self, node: Node, truth: bool) -> _Refused:
        shown = self._shown(node.parts[0])
        instead = shown if truth == (node.value == "=") else f"NOT {shown}"
        return self._refuse(f"{shown} is a condition of its own; write {instead}", node, instead)

    def _membership(self, node: Node) -> Condition:
        value = self._value(node.parts[0])
        items = node.parts[1:]
        if items[0].kind == "list":
            return self._listed(node, value, items[0])
        if value.kind is Kind.TEXT:
            texts = []
            for item in items:
                found = self._value(item)
                if not isinstance(found.tree, Quoted):
                    shown = self._shown(item)
                    raise self._refuse(
                        f"{shown} is no text; write it in quotes, '{shown}'", item, f"'{shown}'"
                    )
                if isinstance(value.tree, Text):
                    self._require_possible(value.tree, found.tree.value, item)
                texts.append(found.tree.value)
            if not isinstance(value.tree, Text):
                raise self._refuse("both sides are written out, so this is always the same", node)
            if len(set(texts)) < len(texts):
                raise self._refuse("a value stands here twice; leave one of them out", node)
            return OneOf(value.tree, tuple(texts), node.is_negated)
        if value.kind is Kind.CONDITION:
            raise self._refuse(f"{self._shown(node.parts[0])} is a condition, and is in no list", node)
        sign, kind = ("!=", And) if node.is_negated else ("=", Or)
        compared = []
        for item in items:
            left, right = self._alike(item, value, self._value(item), "compared")
            compared.append(self._bounded(Compare(sign, _number(left), _number(right)), item))
        return compared[0] if len(compared) == 1 else kind(tuple(compared))

    def _listed(self, node: Node, value: _Value, item: Node) -> Condition:
        shown = self._shown(node.parts[0])
        if not isinstance(value.tree, Text) or value.tree.column not in LISTABLE:
            raise self._refuse(
                f"{shown} is in no list; lists hold one of {', '.join(sorted(LISTABLE))}", node
            )
        if item.value not in self.context.lists:
            ends, instead = suggestion(item.value, self.context.lists)
            raise self._refuse(
                f"there is no list '{item.value}'; {ends} (`millrace lists add {item.value} VALUE` makes it)",
                item,
                instead and f"list('{instead}')",
            )
        return Listed(value.tree, item.value, node.is_negated)

    def _between(self, node: Node) -> Condition:
        value, low, high = (self._value(part) for part in node.parts)
        if Kind.TEXT in (value.kind, low.kind, high.kind) or Kind.CONDITION in (
            value.kind,
            low.kind,
            high.kind,
        ):
            raise self._refuse("BETWEEN is for numbers, amounts and times", node)
        signs = ("<", ">") if node.is_negated else (">=", "<=")
        bounds = []
        for sign, bound in zip(signs, (low, high), strict=True):
            left, right = self._alike(node, value, bound, "compared")
            bounds.append(self._bounded(Compare(sign, _number(left), _number(right)), node))
        parts = tuple(bounds)
        if not node.is_negated and constant.contradicts(parts):
            raise self._refuse("nothing lies between these; the smaller one comes first", node)
        return Or(parts) if node.is_negated else And(parts)

    def _null(self, node: Node) -> Condition:
        value = self._value(node.parts[0])
        shown = self._shown(node.parts[0])
        if value.kind is Kind.CONDITION or isinstance(value.tree, Const | Quoted | Money):
            raise self._refuse(f"{shown} is never null; ask it of a fact, as country IS NULL", node)
        assert isinstance(value.tree, Text | Number | Arithmetic)
        if isinstance(value.tree, Text) and value.tree.column in vocabulary.NEVER_NULL:
            raise self._refuse(f"{shown} is never null; leave this out", node)
        return IsNull(value.tree, node.is_negated)

    # Values

    def _value(self, node: Node) -> _Value:
        of_kind: dict[str, Callable[[Node], _Value]] = {
            "number": lambda n: _written(Fraction(n.value)),
            "negative": self._negative,
            "money": self._money,
            "duration": _duration,
            "text": lambda n: _Value(Kind.TEXT, Quoted(n.value)),
            "name": self._name,
            "call": self._call,
            "arithmetic": self._arithmetic,
        }
        of_condition: dict[str, Callable[[Node], Condition]] = {
            "compare": self._comparison,
            "in": self._membership,
            "between": self._between,
            "is null": self._null,
            "and": self._logic,
            "or": self._logic,
            "not": lambda n: Not(self._condition(n.parts[0])),
        }
        if node.kind == "number" and len(node.value.replace(".", "")) > DIGITS_MAX:
            raise self._refuse(f"a number has at most {DIGITS_MAX} digits", node)
        if node.kind == "truth":
            raise self._refuse(f"{node.value} alone decides nothing; write what shall hold", node)
        if node.kind in of_kind:
            return of_kind[node.kind](node)
        return _Value(Kind.CONDITION, of_condition[node.kind](node))

    def _name(self, node: Node) -> _Value:
        fact = FACTS.get(node.value)
        if fact is not None:
            return _Value(fact.kind, fact.means)
        written = self._shown(node)
        if node.value in FUNCTIONS:
            form = FUNCTIONS[node.value].form
            raise self._refuse(f"{written} is over a window; write it as {form}", node, form)
        field_of = {
            name: f"{function}(card, {vocabulary.width_text(ms)})" for (function, ms), name in KEPT.items()
        }
        if node.value in field_of:
            form = field_of[node.value].replace("merchants(card,", "distinct(card, merchant,")
            raise self._refuse(f"a window is written as {form}", node, form)
        ends, instead = suggestion(node.value, [*FACTS, *FUNCTIONS])
        if instead is None and written.isupper():
            raise self._refuse(
                f"{written} is no fact; a text stands in quotes, '{written}'", node, f"'{written}'"
            )
        raise self._refuse(f"there is no fact {written}; {ends}", node, instead)

    def _call(self, node: Node) -> _Value:
        function = FUNCTIONS.get(node.value)
        if function is None:
            ends, instead = suggestion(node.value, FUNCTIONS)
            raise self._refuse(f"there is no function {node.value}; {ends}", node, instead)
        arguments = node.parts
        wanted = 3 if node.value == "distinct" else 2
        if len(arguments) != wanted or arguments[-1].kind != "duration":
            raise self._refuse(f"{node.value} is written as {function.form}", node, function.form)
        entity = arguments[0]
        if entity.value not in ENTITIES:
            ends, instead = suggestion(entity.value, ENTITIES)
            raise self._refuse(f"there are no windows of each {self._shown(entity)}; {ends}", entity, instead)
        if wanted == 3 and arguments[1].value not in ("merchant", "merchant_id"):
            raise self._refuse("what is counted distinct is merchant", arguments[1], "merchant")
        width_ms = _ms(arguments[-1])
        if not vocabulary.SECOND_MS <= width_ms <= vocabulary.WIDTH_MAX_MS:
            longest = vocabulary.width_text(vocabulary.WIDTH_MAX_MS)
            raise self._refuse(
                f"a window is 1s to {longest} long, as far as the state reaches; shorten it", arguments[-1]
            )
        if node.value == "distinct" and ("merchants", width_ms) not in KEPT:
            raise self._refuse("distinct merchants are kept over 24h alone", arguments[-1], "24h")
        means = function.means(lambda name: Number(vocabulary.window_column(name, width_ms)))
        return _Value(function.kind, means)

    def _money(self, node: Node) -> _Value:
        amount, currency = node.value.split(" ")
        known = {*self.context.rates, self.context.currency}
        if not CODE.fullmatch(currency) or currency not in known:
            ends, instead = suggestion(currency, known)
            raise self._refuse(
                f"there is no rate for {currency}; {ends} (`millrace rules rates` states them)",
                node,
                instead and f"{amount} {instead}",
            )
        return _Value(Kind.MONEY, Money(Fraction(amount), currency))

    def _negative(self, node: Node) -> _Value:
        value = self._value(node.parts[0])
        if value.kind in (Kind.TEXT, Kind.CONDITION):
            raise self._refuse(f"{self._shown(node.parts[0])} is {value.kind}, and has no negative", node)
        if value.exact is not None:
            return _written(-value.exact)
        return _Value(value.kind, Arithmetic("-", Const(0.0), _number(value)))

    def _arithmetic(self, node: Node) -> _Value:
        left, right = self._both(node.parts[0], node.parts[1])
        for value, part in ((left, node.parts[0]), (right, node.parts[1])):
            if value.kind in (Kind.TEXT, Kind.CONDITION):
                raise self._refuse(
                    f"{self._shown(part)} is {value.kind}; only numbers are calculated with", part
                )
        sign = node.value
        if sign == "/" and right.exact == 0:
            raise self._refuse("division by zero is always unknown; change the divisor", node)
        if left.exact is not None and right.exact is not None:
            a, b = left.exact, right.exact
            return _written({"+": a + b, "-": a - b, "*": a * b}.get(sign) if sign != "/" else a / b)
        if sign in "+-":
            left, right = self._alike(node, left, right, "added")
            kind = left.kind
        elif sign == "*":
            if Kind.NUMBER not in (left.kind, right.kind):
                raise self._refuse(
                    f"{left.kind} times {right.kind} means nothing; multiply by a number", node
                )
            kind = right.kind if left.kind is Kind.NUMBER else left.kind
        elif left.kind is right.kind:
            kind = Kind.NUMBER
        elif right.kind is Kind.NUMBER:
            kind = left.kind
        else:
            raise self._refuse(f"{left.kind} divided by {right.kind} means nothing", node)
        return _Value(kind, Arithmetic(sign, _number(left), _number(right)))

    def _both(self, left: Node, right: Node) -> tuple[_Value, _Value]:
        """Two values; of both all problems are noted."""
        found: list[_Value] = []
        for node in (left, right):
            try:
                found.append(self._value(node))
            except _Refused:
                continue
        if len(found) < 2:
            raise _Refused
        return found[0], found[1]

    def _alike(self, node: Node, left: _Value, right: _Value, verb: str) -> tuple[_Value, _Value]:
        """Two values of one kind; a number that is written out beside an amount is one."""
        if Kind.CONDITION in (left.kind, right.kind) or Kind.TEXT in (left.kind, right.kind):
            raise self._refuse(f"{left.kind} and {right.kind} cannot be {verb}", node)
        if left.kind is right.kind:
            return left, right
        if left.kind is Kind.MONEY and right.exact is not None:
            return left, _Value(Kind.MONEY, Money(right.exact, self.context.currency))
        if right.kind is Kind.MONEY and left.exact is not None:
            return _Value(Kind.MONEY, Money(left.exact, self.context.currency)), right
        remedy = ""
        if Kind.TIME in (left.kind, right.kind) and (left.exact is not None or right.exact is not None):
            remedy = "; write the time with its unit, as 10m"
        raise self._refuse(f"{left.kind} and {right.kind} cannot be {verb}{remedy}", node)

    # Problems

    def _shown(self, node: Node) -> str:
        return self.text[node.start : node.end]

    def _note(self, message: str, start: int, end: int, instead: str | None = None) -> None:
        self.problems.append(Problem(message, start, max(end, start + 1), instead))

    def _refuse(self, message: str, node: Node, instead: str | None = None) -> _Refused:
        self._note(message, node.start, node.end, instead)
        return _Refused()


def _written(value: Fraction | None) -> _Value:
    assert value is not None
    return _Value(Kind.NUMBER, Const(float(value)), value)


def _ms(node: Node) -> int:
    return int(node.value[:-1]) * UNITS_MS[node.value[-1]]


def _duration(node: Node) -> _Value:
    return _Value(Kind.TIME, Const(float(_ms(node))))


def _number(value: _Value) -> Numeric:
    assert isinstance(value.tree, Const | Number | Money | Arithmetic)
    return value.tree
