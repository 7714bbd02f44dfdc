"""The decision on a card transaction: windows, rules and model, combined into a risk.

risk     = 1 - (1 - model_risk) * product over fired rules of (1 - rule.score), rounded to 4 places
DECLINE    where a fired rule says so, or risk >= 0.95
REVIEW     where a fired rule says so, or risk >= 0.75
APPROVE    otherwise
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.artifacts import load_artifact
from models.fraud import AnomalyModel, features
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, FRAUD_SCORING
from streams.decide import Outcomes, Record, Versions
from streams.fraud.history import FraudState, Pending, Windows
from streams.fraud.rules import Rules, load_rules

DECLINE_RISK = 0.95
REVIEW_RISK = 0.75
MODEL_REASONS = (
    (0.75, "rarer than 1 in 1,000 to the anomaly model"),
    (0.5, "rarer than 1 in 100 to the anomaly model"),
)
"""From which model risk which reason is given."""

AMOUNT_MAX_MINOR = 10**12
OCCURRED_FROM_MS = 946_684_800_000  # 2000-01-01: a clock that was never set says 1970
NAME_MAX = 128
COUNTRY = re.compile(r"[A-Z]{2}")
CURRENCY = re.compile(r"[A-Z]{3}")
MCC = re.compile(r"[0-9]{4}")

INPUTS = tuple(CARD_TRANSACTIONS.fields)
IDENTITY = ("occurred_at", "card_id", "amount_minor", "currency")
WINDOW_FIELDS = Windows._fields
NO_RULES = Rules(0, ())


def fault(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a transaction's values: field and reason; None where nothing is."""
    for name in ("event_id", "card_id", "tenant"):
        value = event[name]
        if not value or len(value) > NAME_MAX or not value.isprintable():
            return name, f"{name} must have 1 to {NAME_MAX} printable characters; send such a one"
    for name in ("customer_id", "merchant_id", "terminal_id"):
        value = event[name]
        if value is not None and (len(value) > NAME_MAX or not value.isprintable()):
            return (
                name,
                f"{name} may have at most {NAME_MAX} printable characters; shorten it or leave it out",
            )
    if not 0 <= event["amount_minor"] <= AMOUNT_MAX_MINOR:
        return "amount_minor", (
            f"amount_minor is {event['amount_minor']}; send 0 to {AMOUNT_MAX_MINOR} in minor units (a refund"
            " is not a card transaction)"
        )
    if event["occurred_at"] < OCCURRED_FROM_MS:
        return "occurred_at", "occurred_at lies before the year 2000; send milliseconds since 1970 in UTC"
    if not CURRENCY.fullmatch(event["currency"]):
        return "currency", f"currency {event['currency']!r} is not an ISO 4217 code; send one such as EUR"
    for name, form, example in (
        ("country", COUNTRY, "IE"),
        ("home_country", COUNTRY, "IE"),
        ("mcc", MCC, "5411"),
    ):
        value = event[name]
        if value is not None and not form.fullmatch(value):
            return name, f"{name} {value[:20]!r} is not a code; send one such as {example}, or leave it out"
    return None


class FraudScoring:
    """The `Logic` of `fraud-scoring`. Rules and model are versions of the kinds `rules` and `model`.

    `object_store` gives the folder of the model artifacts; it is asked only when a model is loaded.
    """

    version_kinds: Sequence[str] = ("rules", "model")

    def __init__(self, object_store: Callable[[], Path]) -> None:
        self._object_store = object_store

    def new_state(self) -> FraudState:
        return FraudState(tuple(CARD_DECISIONS.fields))

    def load_version(self, kind: str, version: int, body: Any) -> Rules | AnomalyModel:
        """Rules are checked, a model is read and its hash compared; raises RuleError, ArtifactError."""
        if kind == "rules":
            return load_rules(version, body)
        if kind == "model":
            return AnomalyModel.of(version, load_artifact(self._object_store(), body["sha256"]))
        raise ValueError(f"fraud-scoring has no versions of kind {kind!r}; it has {self.version_kinds}")

    def decide(self, state: FraudState, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        rules: Rules = versions.get("rules") or NO_RULES
        model: AnomalyModel | None = versions.get("model")
        # Two passes, so that the model scores the whole batch at once: first every record takes its place
        # in its card's history, then the answers are completed in the order of the log.
        answers: list[tuple[dict[str, Any], dict[str, int] | None, Pending | None, int]] = []
        for record in records:
            event = record.event
            wrong = fault(event)
            if wrong is not None:
                out.dead_letter(record, *wrong)
                continue
            known = state.answer(event["tenant"], event["event_id"])
            if known is not None:
                differs = next((name for name in IDENTITY if known[name] != event[name]), None)
                if differs is not None:
                    out.dead_letter(
                        record,
                        differs,
                        f"event_id {event['event_id']} was sent before with {differs} {known[differs]}, now"
                        f" with {event[differs]}; give another transaction another id",
                    )
                    continue
                out.duplicate()
                answers.append((known, None, None, 0))
                continue
            answer = {name: event[name] for name in INPUTS}
            windows, pending = state.insert(answer, record.append_ms)
            answer.update(zip(WINDOW_FIELDS, windows, strict=True))
            answers.append((answer, features(answer), pending, record.append_ms))

        vectors = [tuple(found.values()) for _, found, _, _ in answers if found is not None]
        risks = iter(model.risks(vectors) if model is not None and vectors else [0.0] * len(vectors))
        for answer, found, pending, append_ms in answers:
            if found is not None:
                _complete(answer, found, next(risks), rules, model.version if model is not None else 0)
                if pending is not None:
                    state.keep(pending, append_ms)
            out.emit(CARD_DECISIONS, answer)


def _complete(
    answer: dict[str, Any], found: dict[str, int], model_risk: float, rules: Rules, model_version: int
) -> None:
    fired = rules.fired(answer | found)
    safe = 1.0 - model_risk
    actions = set()
    for rule in fired:
        safe *= 1.0 - rule.score
        actions.add(rule.action)
    risk = round(min(1.0, max(0.0, 1.0 - safe)), 4)
    reasons = [rule.reason for rule in fired]
    for level, reason in MODEL_REASONS:
        if model_risk >= level:
            reasons.append(reason)
            break
    answer["model_risk"] = model_risk
    answer["risk"] = risk
    answer["decision"] = (
        "DECLINE"
        if "decline" in actions or risk >= DECLINE_RISK
        else "REVIEW"
        if "review" in actions or risk >= REVIEW_RISK
        else "APPROVE"
    )
    answer["reasons"] = reasons
    answer["fired_rules"] = [rule.id for rule in fired]
    answer["rules_version"] = rules.version
    answer["model_version"] = model_version
    answer["code_version"] = FRAUD_SCORING.code_version
