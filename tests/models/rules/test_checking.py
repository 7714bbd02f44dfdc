"""Rules' texts are read, and what is wrong with one is said where it is, with what was meant."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rules.checking import Context, check, understand
from models.rules.problem import CheckError
from models.rules.ruleset import content_hash
from models.rules.syntax import DEPTH_MAX, TEXT_MAX, normal

CONTEXT = Context({"risky", "stolen-cards"}, "EUR", {"EUR", "USD"})
EXAMPLE = (
    "WHEN amount > 5000 AND country != home_country AND count(card, 1h) >= 5 AND mcc IN list('risky')"
    " THEN review SCORE +0.3 REASON 'velocity abroad'"
)


def test_the_example_is_a_rule() -> None:
    """The rule of the documentation has its action, score and reason, and is in its normal form."""
    meaning = understand(EXAMPLE, CONTEXT)
    assert (meaning.action, meaning.score, meaning.reason) == ("review", 0.3, "velocity abroad")
    assert normal(EXAMPLE) == EXAMPLE and meaning.windows == []


@pytest.mark.parametrize(
    "other",
    [
        EXAMPLE.lower(),
        EXAMPLE.replace(" ", "  \n ").replace("velocity  \n abroad", "velocity abroad"),
        EXAMPLE.replace("+0.3", "0.3"),
        EXAMPLE.replace("!=", "<>").replace(" THEN", "\tthen"),
        EXAMPLE.replace("'risky'", '"risky"').replace("+0.3", "0.3").replace("SCORE", "SCORE +"),
    ],
)
def test_spelling_makes_no_other_rule(other: str) -> None:
    """Capitals, spaces, quotes and signs of the same meaning give the same content hash."""
    assert normal(other) == EXAMPLE and content_hash(other) == content_hash(EXAMPLE)


@pytest.mark.parametrize(
    "change", [("5000", "5001"), ("risky", "Risky"), ("review", "decline"), ("0.3", "0.4")]
)
def test_another_rule_has_another_hash(change: tuple[str, str]) -> None:
    """Whatever means something else is another version."""
    assert content_hash(EXAMPLE.replace(*change)) != content_hash(EXAMPLE)


@pytest.mark.parametrize(
    ("condition", "at", "message", "instead"),
    [
        # Names
        ("amont > 5", "amont", "there is no fact amont; did you mean amount?", "amount"),
        ("home_contry = 'IE'", "home_contry", "did you mean home_country?", "home_country"),
        ("cnt(card, 1h) > 5", "cnt(card, 1h)", "there is no function cnt; did you mean count?", "count"),
        ("count(crd, 1h) > 5", "crd", "no windows of each crd; did you mean card?", "card"),
        ("count_1h > 5", "count_1h", "a window is written as count(card, 1h)", "count(card, 1h)"),
        ("merchants_24h > 5", "merchants_24h", "written as distinct(card, merchant, 24h)", None),
        ("count > 5", "count", "count is over a window; write it as count(card, 1h)", "count(card, 1h)"),
        (
            "mcc IN list('riski')",
            "list('riski')",
            "there is no list 'riski'; did you mean risky?",
            "list('risky')",
        ),
        ("mcc IN list('xyz')", "list('xyz')", "millrace lists add xyz VALUE", None),
        ("country = IE", "IE", "IE is no fact; a text stands in quotes, 'IE'", "'IE'"),
        ("amount > 5 GBP", "5 GBP", "there is no rate for GBP", None),
        ("count(card, 1w) > 5", "1w", "there is no unit w; a time is a number with s, m, h or d", "1h"),
        ("count(card, 30d) > 5", "30d", "a window is 1s to 7d long", None),
        ("distinct(card, merchant, 2h) > 5", "2h", "distinct merchants are kept over 24h alone", "24h"),
        # Kinds
        ("amount > count(card, 1h)", None, "an amount and a number cannot be compared", None),
        ("amount * amount > 5", "amount * amount", "an amount times an amount means nothing", None),
        ("amount + hour > 5", "amount + hour", "an amount and a number cannot be added", None),
        ("since_previous < 60", None, "write the time with its unit, as 10m", None),
        ("mcc = 5411", "5411", "write it in quotes, '5411'", "'5411'"),
        ("mcc > '5411'", None, "texts are compared with = or !=, not with >", None),
        ("amount", "amount", "amount is an amount, no condition; compare it, as amount > 100", None),
        ("country", "country", "compare it, as country = '…'", None),
        ("foreign = TRUE", None, "foreign is a condition of its own; write foreign", "foreign"),
        ("foreign = FALSE", None, "write NOT foreign", "NOT foreign"),
        ("foreign + 1 > 2", "foreign", "foreign is a condition; only numbers are calculated with", None),
        ("amount IN list('risky')", None, "amount is in no list; lists hold one of card_id", None),
        ("mcc IN ('5411', 4829)", "4829", "4829 is no text; write it in quotes", "'4829'"),
        ("hour / 0 > 3", "hour / 0", "division by zero is always unknown", None),
        # Values that cannot be
        ("mcc = '541'", "'541'", "mcc is never '541'; it has four digits", None),
        ("country = 'ie'", "'ie'", "country is never 'ie'; it has two capitals", "'IE'"),
        ("channel = 'ONLIN'", "'ONLIN'", "channel is never 'ONLIN'; did you mean ONLINE?", "'ONLINE'"),
        ("currency IS NULL", None, "currency is never null", None),
        # Conditions that are always the same
        ("hour > 23", None, "hour > 23 is never true: it is 0 to 23", None),
        ("count(card, 1h) >= 1", None, "always true where it is known: it is 1 or more", None),
        ("amount < 0", None, "amount < 0 is never true", None),
        ("1 = 1", None, "1 = 1 is always true", None),
        ("amount >= amount", None, "always true where it is known", None),
        ("country = country", None, "both sides are the same", None),
        ("amount > 50 AND amount < 30", None, "can never be true: its parts contradict one another", None),
        ("amount > 50 AND hour < 3 AND NOT amount > 30", None, "can never be true", None),
        ("30 > amount AND amount >= 30", None, "can never be true", None),
        ("mcc = '5411' AND mcc = '4829'", None, "can never be true", None),
        ("mcc IN ('5411', '4829') AND mcc NOT IN ('4829', '5411')", None, "can never be true", None),
        ("country IS NULL AND country = 'IE'", None, "can never be true", None),
        ("foreign AND NOT foreign", None, "can never be true", None),
        ("hour <= 5 OR hour > 5", None, "always true where it is known: its parts leave nothing out", None),
        ("country IS NULL OR country IS NOT NULL", None, "always true", None),
        ("hour BETWEEN 5 AND 3", None, "nothing lies between these", None),
        ("hour < 3 OR hour < 3", None, "the same condition stands here twice", None),
        ("TRUE", "TRUE", "TRUE alone decides nothing", None),
        # Form
        ("amount > 5,000", "5,000", "numbers have no comma; write 5000", "5000"),
        ("amount > ", "THEN", "THEN stands where a fact such as amount or a value is missing", None),
        ("amount > 5 AND", "THEN", "a value is missing", None),
        ("(amount > 5", "THEN", "THEN stands where ) should; close ( with )", None),
        ("amount ~ 5", "~", "'~' means nothing in a rule", None),
        ("1 < hour < 5", "<", "only two things can be compared at once", None),
        ("amount > 5 foreign", "foreign", "foreign stands where THEN should", None),
        ("mcc IN '5411'", "'5411'", "behind IN comes list('name'), or values", None),
        ("mcc IN list(risky)", "risky", "write the list's name in quotes", None),
        ("amount > 1234567890123456", "1234567890123456", "a number has at most 15 digits", None),
        ("amount" + " * 2" * 9 + " > 3 * mean(card, 1h)", None, "at most 8 multiplications", None),
    ],
)
def test_what_is_wrong_is_said_where_it_is(
    condition: str, at: str | None, message: str, instead: str | None
) -> None:
    """Each mistake has one message, under the characters that it is about, with what was meant."""
    text = f"WHEN {condition} THEN review REASON 'why'"
    checked = check(text, CONTEXT)
    assert checked.meaning is None and len(checked.problems) == 1, checked.problems
    (problem,) = checked.problems
    assert message in problem.message
    wanted = condition.strip() if at is None else at
    assert text[problem.start : problem.end].strip("()") == wanted.strip("()")
    assert instead is None or problem.instead == instead


@pytest.mark.parametrize(
    ("consequence", "message"),
    [
        ("", "say what follows: review or decline"),
        ("reviw REASON 'x'", "there is no action reviw; did you mean review?"),
        ("review SCORE -0.3 REASON 'x'", "a score raises the risk; write SCORE +0.3"),
        ("review SCORE 30 REASON 'x'", "a score is from 0 to 1"),
        ("review SCORE +0.3", "say why, for whoever reads the decision"),
        ("review REASON 'x' SCORE 0.3", "SCORE stands where the rule should have ended"),
        ("review REASON x", "write the reason behind REASON in quotes"),
        (f"review REASON '{'x' * 201}'", "a reason has at most 200 printable characters"),
    ],
)
def test_what_follows_is_checked(consequence: str, message: str) -> None:
    """Action, score and reason are there and can be used."""
    problems = check(f"WHEN amount > 5 THEN {consequence}", CONTEXT).problems
    assert any(message in problem.message for problem in problems), problems


def test_several_problems_are_told_at_once() -> None:
    """Whoever types sees all that is wrong with names, lists and score, in the order of the text."""
    condition = "amont > 5 AND mcc IN list('riski') AND (hour > 30 OR cuntry = 'IE')"
    text = f"WHEN {condition} THEN review SCORE 7 REASON 'r'"
    problems = check(text, CONTEXT).problems
    assert [text[p.start : p.end] for p in problems[:4]] == ["amont", "list('riski')", "hour > 30", "cuntry"]
    assert len(problems) == 5
    with pytest.raises(CheckError, match=r"(?s)amont.*riski.*cuntry") as error:
        understand(text, CONTEXT)
    assert str(error.value).splitlines()[1] == " " * 5 + "^" * 5


@pytest.mark.parametrize(
    "condition",
    [
        "amount > 5_000.50",
        "amount / usual(card, 3d) BETWEEN 3 AND 8",
        "sum(card, 90m) > 2 * amount + 10 USD",
        "NOT (country IS NULL OR mcc IN ('5411'))",
        "since_previous * 2 < late + 5m",
        "hour IN (1, 2, 3) AND weekday NOT IN (6, 7)",
        "-hour < 3 - 5 * 2",
        "3 < hour",
        "fraud_chance >= 0.5 OR model_risk > .5 + 0.1".replace(".5 +", "0.5 +"),
        "count(card, 1d) >= 3 AND count(card, 24h) < 30",
    ],
)
def test_what_may_be_said(condition: str) -> None:
    """Arithmetic, ranges, sets, other currencies and windows of any width up to 7 days can be used."""
    checked = check(f"WHEN {condition} THEN SCORE +0.1 REASON 'r'", CONTEXT)
    assert checked.problems == ()


def test_windows_that_no_decision_has_are_named() -> None:
    """A window of another width is asked for by its one name, however it is written."""
    meaning = understand(
        "WHEN count(card, 120m) > 3 AND mean(card, 2h) > 5 AND sum(card, 24h) > 9 THEN review REASON 'r'",
        CONTEXT,
    )
    assert meaning.windows == ["count(card, 2h)", "sum(card, 2h)"]


@given(st.text(alphabet="WHENTHEamount ()<>='5,.~\n'\"1hd/*+-_éANDORIlist", max_size=80))
@settings(max_examples=400)
def test_no_text_breaks_the_parser(text: str) -> None:
    """Whatever is typed has a meaning or problems within it, never an exception."""
    checked = check(text, CONTEXT)
    assert (checked.meaning is None) == bool(checked.problems)
    assert all(0 <= p.start <= len(text) and p.start < p.end for p in checked.problems)


def test_a_text_may_not_exhaust_the_stack() -> None:
    """Too long and too deep is said, not tried."""
    deep = "(" * 2000 + "amount > 5" + ")" * 2000
    (problem,) = check(f"WHEN {deep} THEN review REASON 'r'", CONTEXT).problems
    assert str(DEPTH_MAX) in problem.message
    (problem,) = check(f"WHEN {'x' * TEXT_MAX}", CONTEXT).problems
    assert str(TEXT_MAX) in problem.message
