"""A version of the rules: what it refuses, and which rules decide on which cards."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from models.rules.batch import Columns, columns_of_decisions
from models.rules.problem import RuleError
from models.rules.ruleset import Fired, body_of, combined, in_share, load_rules

OFTEN = "WHEN count(card, 1h) >= 3 THEN review SCORE +0.5 REASON 'often'"
OFTENER = "WHEN count(card, 1h) >= 4 THEN decline SCORE +0.5 REASON 'oftener'"
CARDS = 2_000


def cards(count: int = 5) -> Columns:
    """A transaction of each of many cards."""
    rows = [
        {"occurred_at": 0, "card_id": f"c{n}", "tenant": "default", "count_1h": count} for n in range(CARDS)
    ]
    return columns_of_decisions(rows)


def said(fired: Fired) -> list[dict[str, int]]:
    """How many rows each rule has, by key, in each part."""
    return [{rule.key: int(where.sum()) for rule, where in part} for part in fired]


def test_rules_in_the_order_of_the_set() -> None:
    """Active rules decide wherever they hold; both versions of the tuple agree where nothing is on trial."""
    rules = load_rules(4, body_of({"often": OFTEN, "oftener": OFTENER}))
    assert said(rules.fired(cards(4))) == [
        {"often@1": CARDS, "oftener@1": CARDS},
        {},
        {"often@1": CARDS, "oftener@1": CARDS},
    ]
    assert said(rules.fired(cards(3))) == [{"often@1": CARDS}, {}, {"often@1": CARDS}]
    assert said(load_rules(4, body_of({})).fired(cards())) == [{}, {}, {}]


def test_a_shadow_decides_nothing() -> None:
    """A rule in shadow is told of where it holds, and would decide."""
    rules = load_rules(1, body_of({"often": OFTEN}, stages={"often": {"stage": "shadow"}}))
    assert said(rules.fired(cards())) == [{}, {"often@1": CARDS}, {"often@1": CARDS}]


def test_a_canary_decides_on_its_share_of_the_cards() -> None:
    """Near the share that was asked for, and a shadow on all other cards."""
    rules = load_rules(1, body_of({"often": OFTEN}, stages={"often": {"stage": "canary", "share": 0.1}}))
    decides, shadow, would = said(rules.fired(cards()))
    assert 0.07 * CARDS < decides["often@1"] < 0.13 * CARDS
    assert decides["often@1"] + shadow["often@1"] == would["often@1"] == CARDS


def test_a_later_version_stands_in_for_the_earlier_one_on_its_cards() -> None:
    """On a card either the canary or the version before it decides, and both are told of."""
    body = body_of(
        {"often@1": OFTEN, "often@2": OFTENER}, stages={"often@2": {"stage": "canary", "share": 0.3}}
    )
    fired = load_rules(1, body).fired(cards())
    (old, old_rows), (new, new_rows) = fired.decides
    assert (old.key, new.key) == ("often@1", "often@2")
    assert (old_rows ^ new_rows).all() and 0 < new_rows.sum() < CARDS / 2
    assert said(fired)[1] == {"often@1": int(new_rows.sum()), "often@2": int(old_rows.sum())}
    assert said(fired)[2] == {"often@2": CARDS}
    only_old = load_rules(1, body).fired(cards(3))
    assert said(only_old)[0] == {"often@1": int(old_rows.sum())}, "the canary's silence counts too"


def test_a_larger_share_keeps_the_cards_of_a_smaller_one() -> None:
    """Cards do not change sides as a canary grows, nor with the next version of the rule."""
    small, large = (
        {n for n in range(CARDS) if in_share("often", share, "default", f"c{n}")} for share in (0.1, 0.4)
    )
    assert small < large and len(large) < CARDS
    assert {n for n in range(CARDS) if in_share("often", 1.0, "default", f"c{n}")} == set(range(CARDS))
    other = {n for n in range(CARDS) if in_share("rare", 0.1, "default", f"c{n}")}
    assert other != small, "each rule has cards of its own"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": OFTEN.replace("3", "2")}, "often@1: its text is not the one that was approved"),
        ({"stage": "draft"}, "'draft' is no stage in force"),
    ],
)
def test_a_set_that_was_altered_is_refused(change: dict[str, Any], message: str) -> None:
    """A text that is not the hashed one, or a stage that is none, is not decided by."""
    body = body_of({"often": OFTEN})
    body["rules"][0] |= change
    with pytest.raises(RuleError, match=f"rules version 9: .*{re.escape(message)}"):
        load_rules(9, body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"language": 2}, "it is of language 2, and this code knows 1"),
        ({}, "the body is not one that `millrace rules` publishes"),
        (None, "the body is not one that"),
        (body_of({"o": OFTEN.replace("1h", "2h")}), "o@1 needs count(card, 2h), which it does not keep"),
        (body_of({"o": "WHEN mcc IN list('x') THEN review REASON 'r'"}), "there is no list 'x'"),
        (body_of({"o": "WHEN amount > 5 GBP THEN review REASON 'r'"}), "there is no rate for GBP"),
        (body_of({"o": OFTEN}, rates={"USD": "0"}), "rates: '0' USD to one EUR cannot be used"),
        (body_of({"o": OFTEN}, lists={"x": [["", None]]}), "list x: '' cannot be an entry"),
        (
            body_of({"o": OFTEN}, lists={"x": [[f"v{n}", None] for n in range(20_001)]}),
            "20001 entries together",
        ),
        (body_of({"o": OFTEN}, windows=["count(terminal, 2h)"]), "cannot be kept"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused(body: Any, message: str) -> None:
    """What a rule needs must be in the set, and all of it usable."""
    with pytest.raises(RuleError, match="rules version 3: ") as error:
        load_rules(3, body)
    assert message in str(error.value)


def test_risks_combine_in_the_order_of_the_rules() -> None:
    """1 - (1 - model) * product of (1 - score), to four places."""
    rules = load_rules(1, body_of({"often": OFTEN, "oftener": OFTENER}))
    risk, declined, reviewed = combined(np.full(CARDS, 0.2), rules.fired(cards()).decides)
    assert set(risk) == {0.8} and declined.all() and reviewed.all()
