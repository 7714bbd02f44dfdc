"""A rule's text with its mistakes marked, and what a form sends to correct one."""

from __future__ import annotations

import pytest

from api.console.rule_text import corrected, correction, pieces
from models.rules.checking import Context, check
from models.rules.problem import Problem, RuleError

WRONG = "WHEN amont > 5 AND contry = 'IE' THEN review REASON 'r'"


def test_each_mistake_is_marked_where_it_is() -> None:
    """The pieces are the text; each problem's own are the characters that it names."""
    problems = check(WRONG, Context()).problems
    found = pieces(WRONG, problems)
    assert "".join(piece.text for piece in found) == WRONG
    assert [(piece.text, piece.faults) for piece in found if piece.faults] == [
        ("amont", (1,)),
        ("contry", (2,)),
    ]


def test_mistakes_may_overlap_and_lie_at_the_end() -> None:
    """A stretch that two problems name has both; what is missing is marked behind the text."""
    found = pieces("abcd", [Problem("", 0, 3), Problem("", 1, 2), Problem("", 4, 5)])
    assert [(p.text, p.faults) for p in found] == [
        ("a", (1,)),
        ("b", (1, 2)),
        ("c", (1,)),
        ("d", ()),
        ("", (3,)),
    ]


def test_a_correction_leads_to_a_text_without_its_mistake() -> None:
    """Taken one after the other, the suggestions of the checker leave nothing wrong."""
    text = WRONG
    while problems := check(text, Context()).problems:
        wanted = correction(problems[0])
        assert wanted is not None
        text = corrected(text, wanted)
    assert text == WRONG.replace("amont", "amount").replace("contry", "country")


@pytest.mark.parametrize("wanted", ["", "1-2", "5-3-x", "0-99-x", "a-b-c", "-1-2-x"])
def test_a_correction_of_another_text_is_refused(wanted: str) -> None:
    """A form that was changed by hand, or is of before, puts nothing anywhere."""
    with pytest.raises(RuleError, match="check the text again"):
        corrected("WHEN x", wanted)
