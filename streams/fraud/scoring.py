"""The decision on a card transaction: windows, rules and model, combined into a risk.

risk     = 1 - (1 - model_risk) * product over fired rules of (1 - rule.score), rounded to 4 places
DECLINE    where a fired rule says so, or risk >= 0.95
REVIEW     where a fired rule says so, or risk >= 0.75
APPROVE    otherwise

Rules in shadow, and canaries on cards outside their share, are told of (`shadow_rules`, `shadow_decision`)
and change nothing. A rule that has used up its cap (`capped_rules`) asks for review instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.artifacts import load_artifact
from models.fraud import DAY_MS, NUMBERS, FraudModel, features
from models.rules.batch import Bools, Columns
from models.rules.conditions_v1 import columns_of_features
from models.rules.ruleset import Fired, RuleSet, combined, load_rules
from models.trees import Ints
from schemas.fraud import CARD_DECISIONS, FRAUD_SCORING
from streams.decide import ColumnRecords, Outcomes, Stretch, Versions
from streams.fraud.caps import Declines, FraudState, suppressed
from streams.fraud.faults import fault, suspects
from streams.fraud.histories import WINDOWS, Inserted

DECLINE_RISK = 0.95
REVIEW_RISK = 0.75
ANSWERS = pa.array(["APPROVE", "REVIEW", "DECLINE"])
RARITY_REASONS = (
    (0.75, "rarer than 1 in 1,000 to the anomaly model"),
    (0.5, "rarer than 1 in 100 to the anomaly model"),
)
CHANCE_REASONS = (
    (0.5, "more likely fraud than not by the frauds known"),
    (0.1, "like transactions of which 1 in 10 was fraud"),
)
"""From which value of a model's score which reason is given."""


IDENTITY = ("occurred_at", "card_id", "amount_minor", "currency")
RULE_TEXTS = (
    "tenant",
    "card_id",
    "currency",
    "country",
    "home_country",
    "mcc",
    "merchant_id",
    "terminal_id",
    "customer_id",
    "channel",
)
NO_RULES = RuleSet(0, ())
Floats = npt.NDArray[np.float64]


class FraudScoring:
    """The `ColumnLogic` of `fraud-scoring`. Rules and model are versions of the kinds `rules` and `model`.

    `object_store` gives the folder of the model artifacts; it is asked only when a model is loaded.
    """

    version_kinds: Sequence[str] = ("rules", "model")

    def __init__(self, object_store: Callable[[], Path]) -> None:
        self._object_store = object_store

    def new_state(self) -> FraudState:
        return FraudState()

    def load_version(self, kind: str, version: int, body: Any) -> RuleSet | FraudModel:
        """Rules are checked, a model is read and its hash compared; raises RuleError, ArtifactError."""
        if kind == "rules":
            return load_rules(version, body)
        if kind == "model":
            return FraudModel.of(version, load_artifact(self._object_store(), body["sha256"]))
        raise ValueError(f"fraud-scoring has no versions of kind {kind!r}; it has {self.version_kinds}")

    def decide_columns(
        self,
        stretches: Sequence[Stretch[FraudState]],
        records: ColumnRecords,
        versions: Versions,
        out: Outcomes,
    ) -> None:
        stretches, records = _without_faults(stretches, records, out)
        if not len(records):
            return
        rules: RuleSet = versions.get("rules") or NO_RULES
        found = place(stretches, records, [width_ms for _, width_ms in rules.named])
        first = found.first
        new = np.flatnonzero(first == np.arange(len(first)))
        answers: list[bytes | None] = [None] * len(records)
        if len(new):
            batch = records.batch if len(new) == len(records) else records.batch.take(pa.array(new))
            states = [
                (stretch.state.declines, *np.searchsorted(new, (stretch.start, stretch.end)).tolist())
                for stretch in stretches
            ]
            known = {name: found.windows[new, n] for n, name in enumerate(WINDOWS)}
            decided = _decisions(
                batch, known, _named(rules, found.named[new]), rules, versions.get("model"), states
            )
            for row, value in zip(new.tolist(), out.encode(CARD_DECISIONS, decided), strict=True):
                answers[row] = value
        for stretch in stretches:
            stretch.state.keep(answers[stretch.rows])
        if len(new) < len(records):
            _repeat(records, found, answers, out)
        cards = records.batch.column("card_id").cast(pa.binary()).to_pylist()
        sent = [(card, answer) for card, answer in zip(cards, answers, strict=True) if answer is not None]
        out.emit_encoded(CARD_DECISIONS, [card for card, _ in sent], [answer for _, answer in sent])


NAMED_FUNCTIONS = ("count", "sum", "max")
"""What the histories answer of each named window, in this order."""


def _named(rules: RuleSet, found: Ints) -> Ints:
    """The named windows of a version of the rules, in their order: int64 (rows, windows)."""
    places = [3 * n + NAMED_FUNCTIONS.index(function) for n, (function, _) in enumerate(rules.named)]
    return found[:, places]


def place(
    stretches: Sequence[Stretch[Any]], records: ColumnRecords, named_ms: Sequence[int] = ()
) -> Inserted:
    """Put transactions without faults in their cards' `Histories`; `keep` their answers next.

    `named_ms`: widths of further windows, see `Histories.insert`.
    """
    batch = records.batch
    cards, ids = (_scoped(batch.column("tenant"), batch.column(n)) for n in ("card_id", "event_id"))
    merchants = batch.column("merchant_id").to_pylist()
    at_ms, amounts = (batch.column(n).to_numpy() for n in ("occurred_at", "amount_minor"))
    parts = [
        stretch.state.insert(
            at_ms[rows],
            amounts[rows],
            records.append_ms[rows],
            cards[rows],
            ids[rows],
            merchants[rows],
            named_ms,
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
        np.concatenate([part.named for part in parts]),
    )


def _without_faults(
    stretches: Sequence[Stretch[FraudState]], records: ColumnRecords, out: Outcomes
) -> tuple[Sequence[Stretch[FraudState]], ColumnRecords]:
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
    batch: pa.RecordBatch,
    known: Mapping[str, Ints],
    named: Ints,
    rules: RuleSet,
    model: FraudModel | None,
    states: Sequence[tuple[Declines, int, int]],
) -> pa.RecordBatch:
    """The answers to new transactions, as CARD_DECISIONS has them. Element by element: see docs/adr/0031.

    `known`: their windows by name; `named`: those that the rules name (rows, windows). `states`: of each
    partition its declines, and its rows from and to.
    """
    count = len(batch)
    numbers = {n: known[n] if n in known else batch.column(n).to_numpy() for n in NUMBERS}
    found = features(numbers, {name: batch.column(name) for name in RULE_TEXTS})
    scores = None if model is None else model.scores(found)
    model_risk = np.zeros(count) if scores is None else scores.risk
    chance = None if scores is None else scores.chance
    columns = Columns(
        numbers["occurred_at"],
        {
            **known,
            **dict(zip(rules.windows, named.T, strict=True)),
            **dict(columns_of_features({**found, "late_ms": known["late_ms"]})),
            "amount_minor": numbers["amount_minor"],
            "model_risk": model_risk,
            **({} if chance is None else {"fraud_chance": chance}),
        },
        {name: batch.column(name) for name in RULE_TEXTS},
        {"windows_complete": known["windows_complete"] == 1},
    )
    fired = rules.fired(columns)
    capped = _capped(rules, fired, model_risk, numbers["occurred_at"] // DAY_MS, states)
    in_effect = [
        (rule, where & ~capped[rule.key] if rule.key in capped else where) for rule, where in fired.decides
    ]
    risk, declined, reviewed = combined(model_risk, in_effect)
    for where in capped.values():
        reviewed |= where
    said = [(rule.meaning.reason, where) for rule, where in fired.decides]
    if scores is not None:
        said += _explained(scores.rarity, RARITY_REASONS)
    if chance is not None:
        said += _explained(chance, CHANCE_REASONS)
    decision = _decided(risk, declined, reviewed)
    values = {
        **{name: batch.column(name) for name in batch.schema.names},
        **known,
        "since_previous_ms": pa.array(known["since_previous_ms"], mask=known["since_previous_ms"] < 0),
        "windows_complete": known["windows_complete"] == 1,
        "rule_windows": _lists(named),
        "fraud_chance": pa.nulls(count, pa.float64()) if chance is None else chance,
        "model_risk": model_risk,
        "risk": risk,
        "decision": ANSWERS.take(pa.array(decision)),
        "reasons": _by_row(count, said),
        "fired_rules": _by_row(count, [(rule.key, where) for rule, where in fired.decides]),
        "capped_rules": _by_row(count, list(capped.items())),
        "shadow_rules": _by_row(count, [(rule.key, where) for rule, where in fired.shadow]),
        "shadow_decision": _shadow_decision(rules, fired, model_risk, decision),
        "rules_version": np.full(count, rules.version, dtype=np.int32),
        "model_version": np.full(count, 0 if model is None else model.version, dtype=np.int32),
        "code_version": np.full(count, FRAUD_SCORING.code_version, dtype=np.int32),
    }
    return pa.RecordBatch.from_pydict({name: values[name] for name in CARD_DECISIONS.fields})


def _decided(risk: Floats, declined: Bools, reviewed: Bools) -> Ints:
    """The place of each row's answer among `ANSWERS`."""
    return np.where(declined | (risk >= DECLINE_RISK), 2, np.where(reviewed | (risk >= REVIEW_RISK), 1, 0))


def _capped(
    rules: RuleSet,
    fired: Fired,
    model_risk: Floats,
    days: Ints,
    states: Sequence[tuple[Declines, int, int]],
) -> dict[str, Bools]:
    """Where a rule has used up its cap, by its key; counts the transactions while any rule has one."""
    if all(rule.cap is None for rule in rules.rules):
        return {}
    risk, declined, _ = combined(model_risk, fired.decides)
    else_risk, else_declined, _ = combined(model_risk, [f for f in fired.decides if f[0].cap is None])
    blamed = (declined | (risk >= DECLINE_RISK)) & ~(else_declined | (else_risk >= DECLINE_RISK))
    return suppressed(fired.decides, blamed, days, states)


def _shadow_decision(rules: RuleSet, fired: Fired, model_risk: Floats, decision: Ints) -> pa.Array:
    """The decision were all rules in shadow and canary active, where one of them has something to say."""
    count = len(decision)
    if not rules.is_tried:
        return pa.nulls(count, pa.string())
    would = _decided(*combined(model_risk, fired.would))
    speaks = would != decision
    for _, where in fired.shadow:
        speaks |= where
    return ANSWERS.take(pa.array(would, mask=~speaks))


def _explained(values: Floats, levels: Sequence[tuple[float, str]]) -> list[tuple[str, Bools]]:
    """The reason of the highest level that a row's value reaches, and where."""
    found = []
    below = np.inf
    for level, reason in levels:
        found.append((reason, (values >= level) & (values < below)))
        below = level
    return found


def _by_row(count: int, said: Sequence[tuple[str, Bools]]) -> pa.ListArray:
    """For each row the texts that are said of it, in their order."""
    where = np.stack([where for _, where in said]) if said else np.zeros((0, count), dtype=bool)
    texts = np.nonzero(where.T)[1]
    offsets = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(where.sum(axis=0), out=offsets[1:])
    values = pa.array([text for text, _ in said], pa.string()).take(pa.array(texts))
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _lists(values: Ints) -> pa.ListArray:
    """Each row's numbers as a list."""
    count, width = values.shape
    offsets = np.arange(count + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def _scoped(tenants: pa.Array, names: pa.Array) -> list[str]:
    """Names that cannot meet another tenant's. (Names are printable: no NUL can stand in them.)"""
    foreign = pc.not_equal(tenants, "default")
    if pc.any(foreign).as_py():
        names = pc.if_else(foreign, pc.binary_join_element_wise(tenants, names, "\0"), names)
    found: list[str] = names.to_pylist()
    return found
