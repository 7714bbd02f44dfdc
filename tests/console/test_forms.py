"""Events as forms: what a browser sends back unchanged stays what it was, to the last bit."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.console.forms import FIELD, NULL, Control, controls, event_of
from infra.dlq.edits import from_json
from schemas.declare import Topic
from schemas.fleet import TRUCK_POSITIONS, TRUCK_TELEMETRY
from schemas.fraud import CARD_TRANSACTIONS
from schemas.imaging import DICOM_INSTANCES
from schemas.orders import ORDER_EVENTS
from schemas.released import Declared

TOPICS = (CARD_TRANSACTIONS, TRUCK_TELEMETRY, TRUCK_POSITIONS, ORDER_EVENTS, DICOM_INSTANCES)

CARD: dict[str, Any] = {
    "event_id": "e1",
    "tenant": "default",
    "occurred_at": 1_700_000_000_000,
    "card_id": "c1",
    "amount_minor": 1200,
    "currency": "EUR",
    "customer_id": None,
    "channel": "ONLINE",
}


def sent(form: list[Control]) -> dict[str, str]:
    """What a browser sends for an untouched form: new lines as CR LF, no NUL, no box that is not checked."""
    found = {FIELD + c.name: re.sub("\r\n|\r|\n", "\r\n", c.text).replace("\x00", "\ufffd") for c in form}
    return found | {NULL + c.name: "1" for c in form if c.null}


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_an_untouched_form_changes_nothing(topic: Topic) -> None:
    """Every example event of every kind comes back equal."""
    examples = Declared((topic,)).examples
    assert examples
    for event in examples:
        assert event_of(topic, event, sent(controls(topic, event))) == (event, {})


@given(st.text(), st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1))
def test_values_that_a_browser_would_harm_are_kept(text: str, number: float, long: int) -> None:
    """Control characters, the last digit of a float, integers beyond 2^53: untouched, they stay."""
    card = {**CARD, "currency": text, "amount_minor": long}
    event, wrong = event_of(CARD_TRANSACTIONS, card, sent(controls(CARD_TRANSACTIONS, card)))
    assert wrong == {}
    assert (event["currency"], event["amount_minor"]) == (text, long)
    truck = {"speed_kmh": number}
    [speed] = [c for c in controls(TRUCK_TELEMETRY, truck) if c.name == "speed_kmh"]
    told, _ = event_of(TRUCK_TELEMETRY, truck, {FIELD + "speed_kmh": speed.text})
    assert told["speed_kmh"] == number


def test_what_is_typed_becomes_a_value_of_the_fields_type() -> None:
    """Numbers, choices, null and not null any more."""
    form = sent(controls(CARD_TRANSACTIONS, CARD))
    form |= {FIELD + "amount_minor": " 1300 ", FIELD + "channel": "PRESENT", FIELD + "customer_id": "k7"}
    del form[NULL + "customer_id"]
    form[NULL + "mcc"] = "1"
    event, wrong = event_of(CARD_TRANSACTIONS, CARD, form)
    assert wrong == {}
    assert (event["amount_minor"], event["channel"], event["customer_id"]) == (1300, "PRESENT", "k7")
    assert event["mcc"] is None


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("amount_minor", "12,5", "whole number"),
        ("amount_minor", str(2**63), "64 bits"),
        ("channel", "BY POST", "choose one"),
    ],
)
def test_what_does_not_fit_names_the_field_and_the_remedy(field: str, text: str, words: str) -> None:
    """Nothing is guessed: the field is named with what to write."""
    form = sent(controls(CARD_TRANSACTIONS, CARD)) | {FIELD + field: text}
    _, wrong = event_of(CARD_TRANSACTIONS, CARD, form)
    assert list(wrong) == [field] and words in wrong[field]


def test_nested_values_are_json() -> None:
    """A list of lines is edited as JSON; text that is none is refused."""
    [event] = [e for e in Declared((ORDER_EVENTS,)).examples if e["lines"]][:1]
    form = sent(controls(ORDER_EVENTS, event))
    lines = from_json(form[FIELD + "lines"])
    assert lines == event["lines"]
    _, wrong = event_of(ORDER_EVENTS, event, form | {FIELD + "lines": "[1,"})
    assert "JSON" in wrong["lines"]


def test_a_letter_without_an_event_gets_an_empty_form() -> None:
    """Bytes that say nothing: the schema's defaults, and what has none is asked for."""
    event, wrong = event_of(CARD_TRANSACTIONS, {}, {})
    assert event == {} and "event_id" in wrong and "tenant" not in wrong
