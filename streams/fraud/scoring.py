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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.artifacts import load_artifact
from models.fraud import NUMBERS, FraudModel, features
from models.trees import Ints
from schemas.fraud import CARD_DECISIONS, FRAUD_SCORING
from streams.decide import ColumnRecords, Outcomes, Stretch, Versions
from streams.fraud.histories import WINDOWS, Histories, Inserted
from streams.fraud.rules import TEXTS as RULE_TEXTS
from streams.fraud.rules import Bools, Rules, load_rules

DECLINE_RISK = 0.95
REVIEW_RISK = 0.75
RARITY_REASONS = (
    (0.75, "rarer than 1 in 1,000 to the anomaly model"),
    (0.5, "rarer than 1 in 100 to the anomaly model"),
)
CHANCE_REASONS = (
    (0.5, "more likely fraud than not by the frauds known"),
    (0.1, "like transactions of which 1 in 10 was fraud"),
)
"""From which value of a model's score which reason is given."""

AMOUNT_MAX_MINOR = 10**12
OCCURRED_FROM_MS = 946_684_800_000  # 2000-01-01: a clock that was never set says 1970
NAME_MAX = 128
COUNTRY = re.compile(r"[A-Z]{2}")
CURRENCY = re.compile(r"[A-Z]{3}")
MCC = re.compile(r"[0-9]{4}")

IDENTITY = ("occurred_at", "card_id", "amount_minor", "currency")
NAMES = ("event_id", "card_id", "tenant", "customer_id", "merchant_id", "terminal_id")
CODES = (
    ("currency", pc.ascii_is_alpha, 3),
    ("country", pc.ascii_is_alpha, 2),
    ("home_country", pc.ascii_is_alpha, 2),
    ("mcc", pc.ascii_is_decimal, 4),
)
NO_RULES = Rules(0, ())


def suspects(batch: pa.RecordBatch) -> Bools:
    """Which rows `fault` must look at: every row with a fault, and those with names beyond ASCII."""
    fine = pc.and_(
        pc.and_(
            pc.greater_equal(batch.column("amount_minor"), 0),
            pc.less_equal(batch.column("amount_minor"), AMOUNT_MAX_MINOR),
        ),
        pc.greater_equal(batch.column("occurred_at"), OCCURRED_FROM_MS),
    )
    for name in NAMES:
        fine = pc.and_(fine, _has_form(batch.column(name), pc.ascii_is_printable, 1, NAME_MAX))
    for name, is_kind, length in CODES:
        fine = pc.and_(fine, _has_form(batch.column(name), is_kind, length, length))
        if is_kind is pc.ascii_is_alpha:
            fine = pc.and_(fine, _or_null(pc.ascii_is_upper(batch.column(name))))
    found: Bools = pc.invert(fine).to_numpy(zero_copy_only=False)
    return found


def _has_form(texts: pa.Array, is_kind: Callable[[pa.Array], pa.Array], shortest: int, longest: int) -> Any:
    """Which texts are of a kind and so long. (A regular expression is compiled anew at each call: 100 us.)"""
    lengths = pc.binary_length(texts)
    so_long = pc.and_(pc.greater_equal(lengths, shortest), pc.less_equal(lengths, longest))
    return _or_null(pc.and_(is_kind(texts), so_long))


def _or_null(condition: pa.Array) -> pa.Array:
    """Null is fine wherever the schema allows it."""
    return pc.fill_null(condition, True) if condition.null_count else condition


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
    """The `ColumnLogic` of `fraud-scoring`. Rules and model are versions of the kinds `rules` and `model`.

    `object_store` gives the folder of the model artifacts; it is asked only when a model is loaded.
    """

    version_kinds: Sequence[str] = ("rules", "model")

    def __init__(self, object_store: Callable[[], Path]) -> None:
        self._object_store = object_store

    def new_state(self) -> Histories:
        return Histories()

    def load_version(self, kind: str, version: int, body: Any) -> Rules | FraudModel:
        """Rules are checked, a model is read and its hash compared; raises RuleError, ArtifactError."""
        if kind == "rules":
            return load_rules(version, body)
        if kind == "model":
            return FraudModel.of(version, load_artifact(self._object_store(), body["sha256"]))
        raise ValueError(f"fraud-scoring has no versions of kind {kind!r}; it has {self.version_kinds}")

    def decide_columns(
        self,
        stretches: Sequence[Stretch[Histories]],
        records: ColumnRecords,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        stretches, records = _without_faults(stretches, records, out)
        if not len(records):
            return
        found = place(stretches, records)
        first = found.first
        new = np.flatnonzero(first == np.arange(len(first)))
        answers: list[bytes | None] = [None] * len(records)
        if len(new):
            all_new = len(new) == len(records)
            batch = records.batch if all_new else records.batch.take(pa.array(new))
            windows = found.windows if all_new else found.windows[new]
            rules: Rules = versions.get("rules") or NO_RULES
            decided = _decisions(batch, windows, rules, versions.get("model"))
            for row, value in zip(new.tolist(), out.encode(CARD_DECISIONS, decided), strict=True):
                answers[row] = value
        for stretch in stretches:
            stretch.state.keep(answers[stretch.rows])
        if len(new) < len(records):
            _repeat(records, found, answers, out)
        cards = records.batch.column("card_id").cast(pa.binary()).to_pylist()
        sent = [(card, answer) for card, answer in zip(cards, answers, strict=True) if answer is not None]
        out.emit_encoded(CARD_DECISIONS, [card for card, _ in sent], [answer for _, answer in sent])


def place(stretches: Sequence[Stretch[Histories]], records: ColumnRecords) -> Inserted:
    """Put transactions without faults in their cards' histories; `keep` their answers next."""
    batch = records.batch
    cards, ids = (_scoped(batch.column("tenant"), batch.column(n)) for n in ("card_id", "event_id"))
    merchants = batch.column("merchant_id").to_pylist()
    at_ms, amounts = (batch.column(n).to_numpy() for n in ("occurred_at", "amount_minor"))
    parts = [
        stretch.state.insert(
            at_ms[rows], amounts[rows], records.append_ms[rows], cards[rows], ids[rows], merchants[rows]
        )
        for stretch in stretches
        for rows in [stretch.rows]
    ]
    starts = [stretch.start for stretch in stretches]
    return Inserted(
        np.concatenate([part.windows for part in parts]),
        np.concatenate(
            [np.where(p.first < 0, p.first, p.first + s) for p, s in zip(parts, starts, strict=True)]
        ),
        {row + s: answer for p, s in zip(parts, starts, strict=True) for row, answer in p.known.items()},
    )


def _without_faults(
    stretches: Sequence[Stretch[Histories]], records: ColumnRecords, out: Outcomes
) -> tuple[Sequence[Stretch[Histories]], ColumnRecords]:
    bad = suspects(records.batch)
    for row in np.flatnonzero(bad).tolist():
        record = records.record(row)
        wrong = fault(record.event)
        if wrong is None:
            bad[row] = False
        else:
            out.dead_letter(record, *wrong)
    if not bad.any():
        return stretches, records
    good_before = np.concatenate([[0], np.cumsum(~bad)]).tolist()
    left = [Stretch(s.state, good_before[s.start], good_before[s.end]) for s in stretches]
    return left, records.take(np.flatnonzero(~bad))


def _repeat(records: ColumnRecords, found: Inserted, answers: list[bytes | None], out: Outcomes) -> None:
    """Give rows that repeat a transaction its answer; one with the id of another one is a dead letter."""
    first = found.first
    known = dict(zip(found.known, out.decode(CARD_DECISIONS, list(found.known.values())), strict=True))
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        record = records.record(row)
        event = record.event
        before = known[row] if row in known else records.record(int(first[row])).event
        differs = next((name for name in IDENTITY if before[name] != event[name]), None)
        if differs is None:
            out.duplicate()
            answers[row] = found.known[row] if row in known else answers[int(first[row])]
            continue
        out.dead_letter(
            record,
            differs,
            f"event_id {event['event_id']} was sent before with {differs} {before[differs]}, now"
            f" with {event[differs]}; give another transaction another id",
        )


def _decisions(
    batch: pa.RecordBatch, windows: Ints, rules: Rules, model: FraudModel | None
) -> pa.RecordBatch:
    """The answers to new transactions, as CARD_DECISIONS has them. Element by element: see docs/adr/0031."""
    count = len(batch)
    known = {name: windows[:, n] for n, name in enumerate(WINDOWS)}
    numbers = {n: known[n] if n in known else batch.column(n).to_numpy() for n in NUMBERS}
    texts = {name: batch.column(name) for name in RULE_TEXTS}
    found = features(numbers, texts)
    scores = None if model is None else model.scores(found)
    model_risk = np.zeros(count) if scores is None else scores.risk
    fired = rules.fired({**found, **texts, "late_ms": known["late_ms"]})
    safe = 1.0 - model_risk
    declined, reviewed = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    reasons, ids = _Notes(), _Notes()
    for rule, fires in fired:
        safe = np.where(fires, safe * (1.0 - rule.score), safe)
        (declined if rule.action == "decline" else reviewed)[fires] = True
        rows = np.flatnonzero(fires)
        reasons.add(rows, rule.reason)
        ids.add(rows, rule.id)
    chance = None
    if scores is not None:
        chance = scores.chance
        _explain(reasons, scores.rarity, RARITY_REASONS)
        if chance is not None:
            _explain(reasons, chance, CHANCE_REASONS)
    risk = np.rint(np.clip(1.0 - safe, 0.0, 1.0) * 10_000) / 10_000
    decision = np.where(
        declined | (risk >= DECLINE_RISK),
        "DECLINE",
        np.where(reviewed | (risk >= REVIEW_RISK), "REVIEW", "APPROVE"),
    )
    columns = {
        **{name: batch.column(name) for name in batch.schema.names},
        **known,
        "since_previous_ms": pa.array(known["since_previous_ms"], mask=known["since_previous_ms"] < 0),
        "windows_complete": known["windows_complete"] == 1,
        "fraud_chance": pa.nulls(count, pa.float64()) if chance is None else chance,
        "model_risk": model_risk,
        "risk": risk,
        "decision": pa.array(decision, type=pa.string()),
        "reasons": reasons.of(count),
        "fired_rules": ids.of(count),
        "rules_version": np.full(count, rules.version, dtype=np.int32),
        "model_version": np.full(count, 0 if model is None else model.version, dtype=np.int32),
        "code_version": np.full(count, FRAUD_SCORING.code_version, dtype=np.int32),
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in CARD_DECISIONS.fields})


class _Notes:
    """Texts about rows, and of each row those about it, in the order in which they were added."""

    def __init__(self) -> None:
        self._rows: list[Ints] = []
        self._texts: list[str] = []

    def add(self, rows: Ints, text: str) -> None:
        """A text about these rows."""
        self._rows.append(rows)
        self._texts.append(text)

    def of(self, count: int) -> pa.ListArray:
        """The texts of each of `count` rows."""
        rows = np.concatenate([np.empty(0, dtype=np.int64), *self._rows])
        which = np.repeat(np.arange(len(self._texts)), [len(r) for r in self._rows])
        ends = np.cumsum(np.bincount(rows, minlength=count))
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        texts = pa.array(self._texts, pa.string()).take(pa.array(which[np.argsort(rows, kind="stable")]))
        return pa.ListArray.from_arrays(offsets, texts)


def _explain(reasons: _Notes, values: npt.NDArray[np.float64], levels: Sequence[tuple[float, str]]) -> None:
    """Add the reason of the highest level that a row's value reaches."""
    above = np.inf
    for level, reason in levels:
        reasons.add(np.flatnonzero((values >= level) & (values < above)), reason)
        above = level


def _scoped(tenants: pa.Array, names: pa.Array) -> list[str]:
    """Names that cannot meet another tenant's. (Names are printable: no NUL can stand in them.)"""
    foreign = pc.not_equal(tenants, "default")
    if pc.any(foreign).as_py():
        names = pc.if_else(foreign, pc.binary_join_element_wise(tenants, names, "\0"), names)
    found: list[str] = names.to_pylist()
    return found
