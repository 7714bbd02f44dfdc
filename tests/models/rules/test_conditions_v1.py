"""Rules from before the language are checked as ever, and mean what they meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.postgres import MIGRATIONS
from models.rules.batch import Columns
from models.rules.conditions_v1 import FEATURE, TEXTS
from models.rules.problem import RuleError
from models.rules.ruleset import RuleSet, load_rules

RULE = {
    "id": "r",
    "description": "A rule",
    "when": [{"feature": "count_1h", "op": ">=", "value": 3}],
    "action": "review",
    "score": 0.5,
    "reason": "because",
}


def condition(feature: str, op: str, value: Any) -> list[dict[str, Any]]:
    return [RULE | {"when": [{"feature": feature, "op": op, "value": value}]}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the body is not one that `millrace rules` publishes"),
        ([3], "rule 1 is 3; make it an object"),
        ([{k: v for k, v in RULE.items() if k != "score"}], "rule 1 lacks 'score'; give it one"),
        ([RULE | {"points": 3}], "has 'points', which means nothing; use action,"),
        ([RULE | {"id": " "}], "id is ' '; make it text"),
        ([RULE | {"action": "block"}], r"(r): action is 'block'; use review or decline"),
        ([RULE | {"score": 1.5}], "score is 1.5; make it a number from 0 to 1"),
        ([RULE | {"score": True}], "score is True; make it a number"),
        ([RULE | {"when": []}], "when is an empty list; make it a list of at least one condition"),
        ([RULE, RULE], "the id 'r' is given twice; rename one"),
        ([RULE | {"when": [{"feature": "count_1h"}]}], "condition 1 is an object with feature; make it"),
        (condition("cnt_1h", ">", 1), "there is no feature 'cnt_1h'; use one of amount_minor, "),
        (condition("count_1h", "in", [1]), "op 'in' does not fit count_1h, a number; use <, <=, >"),
        (condition("count_1h", ">", "3"), "value is '3'; count_1h is compared with a number"),
        (condition("foreign", "==", 1), "value is 1; foreign is compared with true or false"),
        (condition("mcc", "in", []), "value is an empty list; make it a list of texts, at least one"),
        (condition("mcc", "==", 5411), "value is 5411; mcc is compared with a text"),
    ],
)
def test_wrong_rules_are_refused_readably(body: Any, message: str) -> None:
    """A rule that cannot be used is refused with its place, what is wrong, and the remedy."""
    with pytest.raises(RuleError, match=re.escape(message)) as error:
        load_rules(4, body)
    assert str(error.value).startswith("rules version 4")


def fired(rules: RuleSet, facts: dict[str, Any]) -> list[str]:
    """Ids of the rules that fire on one row; the unknown rows beside it fire none."""
    texts = {
        name: pa.array([None, value, None], type=pa.string())
        for name, value in facts.items()
        if name in TEXTS
    }
    numbers = {
        FEATURE + name: np.array([-1, value, -1]) for name, value in facts.items() if name not in TEXTS
    }
    found = rules.fired(Columns(np.zeros(3, np.int64), numbers, texts, {}))
    assert found.shadow == [] and found.would == found.decides
    return [rule.key for rule, rows in found.decides if rows[1]]


@pytest.mark.parametrize(
    ("feature", "op", "value", "fact", "fires"),
    [
        ("count_1h", ">=", 3, 3, True),
        ("count_1h", ">", 3, 3, False),
        ("count_1h", "<", 3, 2, True),
        ("count_1h", "<=", 2.5, 3, False),
        ("count_1h", "==", 3, 3, True),
        ("count_1h", "!=", 3, 3, False),
        ("mcc", "in", ["4829", "7995"], "7995", True),
        ("mcc", "not in", ["4829"], "4829", False),
        ("mcc", "in", ["4829"], None, False),
        ("mcc", "!=", "4829", None, False),
        ("foreign", "==", True, 1, True),
        ("foreign", "==", False, 1, False),
    ],
)
def test_conditions_compare(feature: str, op: str, value: Any, fact: Any, fires: bool) -> None:
    """Each comparison means what it says, and an unknown fact fulfils none."""
    rules = load_rules(1, condition(feature, op, value))
    assert fired(rules, {feature: fact}) == (["r"] if fires else [])


def test_all_conditions_must_hold() -> None:
    """A rule is a conjunction; the rules that fire come in the order of the list."""
    both = RULE | {
        "id": "both",
        "when": [
            {"feature": "count_1h", "op": ">=", "value": 3},
            {"feature": "currency", "op": "==", "value": "EUR"},
        ],
    }
    rules = load_rules(1, [both, RULE])
    facts = {"count_1h": 3, "currency": "EUR"}
    assert fired(rules, facts) == ["both", "r"]
    assert fired(rules, facts | {"currency": "USD"}) == ["r"]


def test_the_first_version_is_usable() -> None:
    """The rules that the migration brings load, and there are at least six of them."""
    text = (Path(MIGRATIONS) / "0010_fraud.sql").read_text()
    found = re.search(r"\$rules\$(.*)\$rules\$", text, re.DOTALL)
    assert found is not None
    assert len(load_rules(1, json.loads(found.group(1))).rules) >= 6
