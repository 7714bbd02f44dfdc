"""The fraud decision against a brute-force oracle: windows, duplicates, restarts, batches."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.codec import without_logical_types
from infra.columns import arrow_schema
from infra.postgres import MIGRATIONS
from models.fraud import FEATURES, FraudModel, features_of, train
from models.rules.ruleset import RuleSet, body_of, load_rules
from schemas.declare import Topic
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS
from streams.decide import ColumnLogic, Event, Outcomes, Record, decide_together
from streams.fraud.history import DAY_MS, HORIZON_MS, HOUR_MS, IDLE_MS, LATENESS_MS, WINDOWS_MS
from streams.fraud.scoring import CHANCE_REASONS, RARITY_REASONS, FraudScoring
from tests.streams.columns import columns_of

T0 = 1_700_000_000_000
TRANSACTIONS = arrow_schema(CARD_TRANSACTIONS)
SCHEMA = fastavro.parse_schema(without_logical_types(CARD_DECISIONS.schema))
RULES = load_rules(
    7,
    [
        {
            "id": "velocity",
            "description": "Three within an hour",
            "when": [{"feature": "count_1h", "op": ">=", "value": 3}],
            "action": "review",
            "score": 0.5,
            "reason": "three within an hour",
        },
        {
            "id": "abroad",
            "description": "A high amount abroad",
            "when": [
                {"feature": "foreign", "op": "==", "value": True},
                {"feature": "amount_minor", "op": ">", "value": 900},
            ],
            "action": "decline",
            "score": 0.7,
            "reason": "a high amount abroad",
        },
    ],
)


def transaction(event_id: str, at_ms: int, card: str = "a", amount: int = 100, **more: Any) -> Event:
    return {
        "event_id": event_id,
        "tenant": "default",
        "occurred_at": at_ms,
        "card_id": card,
        "amount_minor": amount,
        "currency": "EUR",
        "customer_id": None,
        "merchant_id": None,
        "terminal_id": None,
        "country": None,
        "home_country": "IE",
        "mcc": None,
        "channel": "UNKNOWN",
    } | more


def log_of(events: Iterable[Event], append_ms: int = T0) -> list[Record]:
    return [Record(CARD_TRANSACTIONS.name, 0, n, append_ms, event) for n, event in enumerate(events)]


def scoring() -> FraudScoring:
    def no_store() -> Path:
        raise AssertionError("no artifact is loaded here")

    return FraudScoring(no_store)


class Codec:
    """Encodes and decodes answers as the runtime would, without its header."""

    schema = arrow_schema(CARD_DECISIONS)

    def encode(self, topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
        assert topic is CARD_DECISIONS and tuple(batch.schema.names) == tuple(topic.fields)
        return [self.body(event) for event in batch.to_pylist()]

    def decode(self, topic: Topic, values: Sequence[bytes]) -> list[Event]:
        assert topic is CARD_DECISIONS
        return [fastavro.schemaless_reader(io.BytesIO(v), SCHEMA, None) for v in values]  # type: ignore[misc]

    def body(self, event: Event) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, SCHEMA, event, strict=True)
        return out.getvalue()


@dataclass
class Played:
    """What a log came to. `emitted` is what was sent, decoded, in its order."""

    out: Outcomes = field(default_factory=lambda: Outcomes(encode=Codec().encode, decode=Codec().decode))

    @property
    def emitted(self) -> list[Event]:
        return [e for topic, _, values in self.out.encoded for e in Codec().decode(topic, values)]

    @property
    def dead(self) -> list[tuple[Record, str, str, str]]:
        return self.out.dead

    def __bytes__(self) -> bytes:
        """Everything, as the bytes that would be produced."""
        sent = [(k, v) for _, keys, values in self.out.encoded for k, v in zip(keys, values, strict=True)]
        dead = [(record.offset, why) for record, *why in self.out.dead]
        return repr((sent, dead, self.out.duplicates_total)).encode()


def run(
    records: Sequence[Record], batch: int = 1, versions: dict[str, Any] | None = None, state: Any = None
) -> Played:
    """What a whole log came to, cut into batches."""
    logic, played = scoring(), Played()
    state = logic.new_state() if state is None else state
    for start in range(0, len(records), batch):
        some = columns_of(records[start : start + batch], TRANSACTIONS)
        decide_together(logic, [(state, some)], versions or {"rules": RULES}, played.out)
    return played


# Times that meet the windows' and the horizon's bounds, and ties, often.
times = st.builds(
    lambda hours, edge: T0 + hours * HOUR_MS + edge,
    st.one_of(st.integers(0, 30), st.sampled_from([24, 168, 191, 192, 193, 216, 360, 400])),
    st.sampled_from([-1, 0, 0, 0, 1]),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """A log of few cards: out of order, with ties, resends, conflicting resends and pauses."""
    drawn = draw(
        st.lists(
            st.tuples(
                times,
                st.sampled_from("aab"),
                st.integers(0, 1000),
                st.sampled_from(["default", "default", "other"]),
                st.sampled_from([None, "IE", "FR"]),
            ),
            min_size=1,
            max_size=40,
        )
    )
    distinct = [
        transaction(
            f"e{n}", at_ms, card, amount, tenant=tenant, country=country, merchant_id=(None, "m", "n")[n % 3]
        )
        for n, (at_ms, card, amount, tenant, country) in enumerate(drawn)
    ]
    events: list[Event] = []
    for n, event in enumerate(distinct):
        events.append(event)
        match draw(st.integers(0, 9)):
            case 0 | 1:
                events.append(distinct[draw(st.integers(0, n))])
            case 2:
                events.append(distinct[draw(st.integers(0, n))] | {"amount_minor": 1001})
    append_ms = T0
    records = []
    for offset, event in enumerate(events):
        append_ms += draw(st.sampled_from([0, 0, 0, 0, HOUR_MS, 5 * DAY_MS, IDLE_MS]))
        records.append(Record(CARD_TRANSACTIONS.name, 0, offset, append_ms, event))
    return records


@dataclass
class Known:
    """The oracle's card: everything it was told, in the order of the log."""

    known_from_ms: int
    last_append_ms: int
    events: list[Event] = field(default_factory=list)

    @property
    def newest_ms(self) -> int:
        return max(e["occurred_at"] for e in self.events)


def biggest(inside: Sequence[Event]) -> dict[str, int]:
    """What the windows of 24 h and 7 d say beside counts and sums, were these all of their transactions."""
    amount = max(e["amount_minor"] for e in inside)
    merchants = {e["merchant_id"] for e in inside} - {None}
    return {"max_24h_minor": amount, "merchants_24h": len(merchants), "max_7d_minor": amount}


def oracle(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What each record must come to, by looking at everything again for each."""
    cards: dict[tuple[str, str], Known] = {}
    forgotten_ms = -(1 << 62)
    newest_append_ms = 0
    answers: list[dict[str, Any]] = []
    for record in records:
        event = record.event
        at_ms = event["occurred_at"]
        remembered = {
            (tenant, e["event_id"]): e
            for (tenant, _), card in cards.items()
            for e in card.events
            if e["occurred_at"] > card.newest_ms - HORIZON_MS
        }
        before = remembered.get((event["tenant"], event["event_id"]))
        if before is not None:
            same = before["amount_minor"] == event["amount_minor"]
            answers.append({"duplicate_of": event["event_id"]} if same else {"dead": "amount_minor"})
            continue
        key = (event["tenant"], event["card_id"])
        if key not in cards:
            cards[key] = Known(forgotten_ms, 0)
        card = cards[key]
        if card.events and at_ms <= card.newest_ms - HORIZON_MS:
            expected = {f"count_{w}": 1 for w in WINDOWS_MS} | {
                f"sum_{w}_minor": event["amount_minor"] for w in WINDOWS_MS
            }
            answers.append(
                expected
                | {
                    **biggest([event]),
                    "late_ms": card.newest_ms - at_ms,
                    "windows_complete": False,
                    "since_previous_ms": None,
                }
            )
            continue
        card.events.append(event)
        newest_append_ms = max(newest_append_ms, record.append_ms)
        card.last_append_ms = newest_append_ms
        known = [e for e in card.events if e["occurred_at"] > card.newest_ms - HORIZON_MS]
        expected = {}
        for name, width_ms in WINDOWS_MS.items():
            inside = [e for e in known if at_ms - width_ms < e["occurred_at"] <= at_ms]
            expected[f"count_{name}"] = len(inside)
            expected[f"sum_{name}_minor"] = sum(e["amount_minor"] for e in inside)
            expected |= {k: v for k, v in biggest(inside).items() if name in k}
        earlier = [
            e["occurred_at"] for e in known[:-1] if at_ms - WINDOWS_MS["7d"] < e["occurred_at"] <= at_ms
        ]
        late_ms = card.newest_ms - at_ms
        answers.append(
            expected
            | {
                "since_previous_ms": at_ms - max(earlier) if earlier else None,
                "late_ms": late_ms,
                "windows_complete": late_ms <= LATENESS_MS and at_ms - WINDOWS_MS["7d"] >= card.known_from_ms,
            }
        )
        for idle in [k for k, c in cards.items() if c.last_append_ms <= newest_append_ms - IDLE_MS]:
            forgotten_ms = max(forgotten_ms, cards.pop(idle).newest_ms)
    return answers


@given(logs())
@settings(max_examples=300, deadline=None)
def test_windows_are_exact(records: list[Record]) -> None:
    """Every decision has the windows that a full scan finds, in any order of arrival and with resends."""
    out = run(records, batch=3)
    emitted = iter(out.emitted)
    dead = {record.offset: field_name for record, _, field_name, _ in out.dead}
    first: dict[tuple[str, str], Event] = {}
    for record, expected in zip(records, oracle(records), strict=True):
        if "dead" in expected:
            assert dead.pop(record.offset) == expected["dead"]
            continue
        answer = next(emitted)
        scoped = (record.event["tenant"], record.event["event_id"])
        if "duplicate_of" in expected:
            assert answer == first[scoped]
            continue
        first[scoped] = answer
        assert {name: answer[name] for name in expected} == expected
        assert {name: answer[name] for name in CARD_TRANSACTIONS.fields} == record.event
    assert not dead and next(emitted, None) is None


@given(logs(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_restored_state_goes_on_the_same(records: list[Record], data: st.DataObject) -> None:
    """A processor restored from snapshot and deltas, at any cut, answers like one that never stopped."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(records)), min_size=1, max_size=4)))
    versions = {"rules": data.draw(st.sampled_from([RULES, TRIED]))}
    logic, state = scoring(), scoring().new_state()
    played = Played()
    chunks: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
        some = columns_of(records[start:end], TRANSACTIONS)
        decide_together(logic, [(state, some)], versions, played.out)
        delta = state.delta()
        if delta is not None:
            chunks.append(delta)
        assert state.delta() is None
        if data.draw(st.booleans()):
            chunks = list(state.snapshot())
        state = logic.new_state()
        for chunk in chunks:
            state.load(chunk)
        assert state.delta() is None
    assert bytes(played) == bytes(run(records, versions=versions))


@pytest.fixture(scope="module")
def model() -> FraudModel:
    """A model trained on what the decision itself answers to random transactions."""
    rng = Random(5)
    events = (
        transaction(
            f"t{n}",
            T0 + n * 600_000 + rng.randrange(HOUR_MS),
            f"c{rng.randrange(20)}",
            int(rng.lognormvariate(7, 1)),
            country=rng.choice(["IE", "IE", "IE", "FR"]),
            channel=rng.choice(["ONLINE", "PRESENT"]),
        )
        for n in range(1200)
    )
    decided = run(log_of(events), batch=400).emitted
    return FraudModel.of(3, train([{**e, "is_fraud": e["amount_minor"] > 4_000} for e in decided]))


TRIED = load_rules(
    8,
    body_of(
        {
            "velocity@1": "WHEN count(card, 1h) >= 3 THEN review SCORE +0.5 REASON 'three within an hour'",
            "velocity@2": "WHEN count(card, 2h) >= 2 THEN decline SCORE +0.5 REASON 'two within two hours'",
            "spent": "WHEN sum(card, 90m) > 4 * usual(card, 7d) THEN review SCORE +0.2 REASON 'unusual'",
            "abroad": "WHEN foreign AND amount > 5 THEN decline SCORE +0.7 REASON 'a high amount abroad'",
        },
        stages={
            "velocity@2": {"stage": "canary", "share": 0.5, "cap": 0.1},
            "spent": {"stage": "shadow"},
            "abroad": {"cap": 0.0},
        },
        windows=["sum(card, 90m)", "count(card, 2h)"],
    ),
)
"""Rules of every stage, with caps and named windows."""


@given(logs())
@settings(max_examples=40, deadline=None)
def test_decisions_do_not_depend_on_batches(model: FraudModel, records: list[Record]) -> None:
    """The same log in batches of 1, 2, 7 and 512 gives the same bytes, with all stages and a model."""
    for rules in (RULES, TRIED):
        versions = {"rules": rules, "model": model}
        whole = bytes(run(records, 512, versions))
        for batch in (1, 2, 7):
            assert bytes(run(records, batch, versions)) == whole


def test_a_long_log_does_not_depend_on_batches(model: FraudModel) -> None:
    """Batches of full size too give the bytes of single records, and leave the same state."""
    rng = Random(11)
    records = log_of(
        transaction(
            f"e{rng.randrange(1500)}" if rng.random() < 0.05 else f"e{n}",
            T0 + n * 60_000 - rng.randrange(2 * HOUR_MS),
            f"c{rng.randrange(30)}",
            rng.randrange(5000),
            country="FR",
        )
        for n in range(1500)
    )
    seen = set()
    for batch in (1, 2, 7, 512):
        state = scoring().new_state()
        out = run(records, batch, {"rules": TRIED, "model": model}, state)
        seen.add((bytes(out), b"".join(state.snapshot())))
    assert len(seen) == 1
    assert len({e["model_risk"] for e in run(records, 512, {"model": model}).emitted}) > 20


def test_risk_combines_rules_and_model(model: FraudModel) -> None:
    """Risk is 1 - (1 - model) * product of (1 - score); a rule's action decides whatever the risk."""
    event = transaction("e", T0, amount=1000, country="FR")
    by_rules = run(log_of([event])).emitted[0]
    assert (by_rules["risk"], by_rules["decision"], by_rules["fired_rules"]) == (0.7, "DECLINE", ["abroad"])
    assert by_rules["reasons"] == ["a high amount abroad"]
    assert (by_rules["rules_version"], by_rules["model_version"], by_rules["model_risk"]) == (7, 0, 0.0)
    both = run(log_of([event]), versions={"rules": RULES, "model": model}).emitted[0]
    assert 0 < both["model_risk"] <= 1 and both["model_version"] == 3
    assert both["risk"] == round(1 - (1 - both["model_risk"]) * (1 - 0.7), 4)
    neither = run(log_of([event]), versions={"rules": None}).emitted[0]
    assert (neither["risk"], neither["decision"], neither["rules_version"]) == (0.0, "APPROVE", 0)


def tried(text: str, **stage: Any) -> RuleSet:
    """A rule of this stage beside one that is active."""
    texts = {"active": "WHEN amount >= 3 THEN review REASON 'three'", "new": text}
    return load_rules(5, body_of(texts, stages={"new": stage}, windows=["count(card, 2h)", "max(card, 30m)"]))


DECLINING = "WHEN amount >= 5 THEN decline SCORE +0.4 REASON 'five'"


def test_a_shadow_is_told_of_and_changes_nothing() -> None:
    """A decision says what a rule in shadow would have made of it, and is the decision without that rule."""
    events = [transaction(f"e{n}", T0 + n, amount=100 * n) for n in range(7)]
    with_shadow = run(log_of(events), versions={"rules": tried(DECLINING, stage="shadow")}).emitted
    plain = run(log_of(events), versions={"rules": tried(DECLINING.replace("5 THEN", "500000 THEN"))}).emitted
    told = ("shadow_rules", "shadow_decision")
    for one, other in zip(with_shadow, plain, strict=True):
        assert {k: v for k, v in one.items() if k not in told} == {
            k: v for k, v in other.items() if k not in told
        }
    assert [(e["decision"], e["shadow_decision"], e["shadow_rules"]) for e in with_shadow[4:6]] == [
        ("REVIEW", None, []),
        ("REVIEW", "DECLINE", ["new@1"]),
    ]


def test_a_canary_decides_on_its_cards_alone() -> None:
    """On some cards the rule declines, on all others it is told of, and a card stays where it is."""
    rules = tried(DECLINING, stage="canary", share=0.3)
    events = [transaction(f"e{n}", T0 + n, f"c{n % 100}", amount=500) for n in range(200)]
    decided = run(log_of(events), 64, {"rules": rules}).emitted
    declined = {e["card_id"] for e in decided if e["decision"] == "DECLINE"}
    assert 15 <= len(declined) <= 45
    for e in decided:
        expected = (["active@1", "new@1"], []) if e["card_id"] in declined else (["active@1"], ["new@1"])
        assert (e["fired_rules"], e["shadow_rules"]) == expected
        assert (e["shadow_decision"] is None) == (e["card_id"] in declined)


def test_a_cap_holds() -> None:
    """Beyond its share of a day's transactions a rule asks for review, says so, and adds no score."""
    rules = tried(DECLINING, cap=0.25)
    events = [
        transaction(f"e{n}", T0 + (n >= 100) * DAY_MS, f"c{n}", amount=500 if n % 2 else 300)
        for n in range(140)
    ]
    decided = run(log_of(events), 32, {"rules": rules}).emitted
    first, second = decided[:100], decided[100:]
    for day, allowed in ((first, 25), (second, 10)):
        declined = [n for n, e in enumerate(day) if e["decision"] == "DECLINE"]
        assert len(declined) == allowed
        for e in day:
            is_capped = e["amount_minor"] == 500 and e["decision"] != "DECLINE"
            assert e["capped_rules"] == (["new@1"] if is_capped else [])
            if is_capped:
                assert (e["decision"], e["risk"], e["fired_rules"]) == ("REVIEW", 0.0, ["active@1", "new@1"])
    without = run(log_of(events), 32, {"rules": tried(DECLINING)}).emitted
    assert sum(e["decision"] == "DECLINE" for e in without) == 70


def test_a_cap_does_not_touch_what_others_decline() -> None:
    """What an older rule declines anyway uses up no cap, and stays declined."""
    texts = {"old": DECLINING, "new": DECLINING.replace("5 THEN", "4 THEN")}
    rules = load_rules(5, body_of(texts, stages={"new": {"cap": 0.0}}))
    events = [transaction(f"e{n}", T0, f"c{n}", amount=500) for n in range(30)]
    decided = run(log_of(events), 30, {"rules": rules}).emitted
    assert {(e["decision"], *e["fired_rules"], *e["capped_rules"]) for e in decided} == {
        ("DECLINE", "old@1", "new@1")
    }


def test_each_partition_has_a_cap_of_its_own() -> None:
    """Partitions that are decided together answer as each does alone."""
    rules = tried(DECLINING, cap=0.3)
    logs_ = [
        log_of(transaction(f"{p}-{n}", T0 + n * DAY_MS // 20, f"{p}-{n}", amount=500) for n in range(60))
        for p in "ab"
    ]
    together, logic = Played(), scoring()
    parts = [(logic.new_state(), columns_of(log, TRANSACTIONS)) for log in logs_]
    decide_together(logic, parts, {"rules": rules}, together.out)
    alone = [e for log in logs_ for e in run(log, 7, {"rules": rules}).emitted]
    assert together.emitted == alone
    assert 20 < sum(e["decision"] == "DECLINE" for e in alone) < 100


def test_a_replay_decides_by_what_was_in_force_where() -> None:
    """Versions that follow one another within a log give the same bytes, however it is cut and restarted."""
    rng = Random(2)
    records = log_of(
        transaction(f"e{n}", T0 + n * 600_000, f"c{rng.randrange(9)}", rng.randrange(1000), country="FR")
        for n in range(400)
    )
    stages = [{"stage": "shadow"}, {"stage": "canary", "share": 0.4, "cap": 0.05}, {"cap": 0.05}, {}]
    borders = [0, 100, 200, 300, 400]
    seen, decisions = set(), []
    for batch in (1, 7, 512):
        logic, played = scoring(), Played()
        state = logic.new_state()
        for stage, (start, end) in zip(stages, pairwise(borders), strict=True):
            for at in range(start, end, batch):
                some = columns_of(records[at : min(at + batch, end)], TRANSACTIONS)
                rules = tried(DECLINING, **stage)
                decide_together(logic, [(state, some)], {"rules": rules}, played.out)
            chunks = [*state.snapshot()]
            state.delta()
            state = logic.new_state()
            for chunk in chunks:
                state.load(chunk)
        seen.add(bytes(played))
        decisions = played.emitted
    assert len(seen) == 1
    for name, among in (("shadow_rules", decisions[:200]), ("capped_rules", decisions[100:300])):
        assert any(e[name] for e in among), name


def test_windows_that_rules_name_are_kept_with_the_decision() -> None:
    """In the order of the version, exact, and read by its rules."""
    rules = tried("WHEN count(card, 2h) >= 2 AND max(card, 30m) < 4 THEN review REASON 'r'")
    events = [transaction(f"e{n}", T0 + n * HOUR_MS, amount=100 * n) for n in range(1, 7)]
    decided = run(log_of(events), 4, {"rules": rules}).emitted
    assert [e["rule_windows"] for e in decided] == [[min(n, 2), 100 * n] for n in range(1, 7)]
    assert [e["fired_rules"] for e in decided][:4] == [[], ["new@1"], ["active@1", "new@1"], ["active@1"]]


def test_old_versions_and_the_language_decide_alike() -> None:
    """The first rules, written in the language, decide as their older form did in EUR."""
    text = (Path(MIGRATIONS) / "0010_fraud.sql").read_text()
    old = load_rules(1, json.loads(text.split("$rules$")[1]))
    found = re.findall(
        r"\((\d), '([a-z0-9-]+)', '[^']*',\s+\$\$(.*?)\$\$", (Path(MIGRATIONS) / "0070_rules.sql").read_text()
    )
    risky = [[mcc, None] for mcc in ("4829", "6051", "6211", "7995", "5967")]
    new = load_rules(2, body_of({id_: rule for _, id_, rule in found}, lists={"risky": risky}))
    assert [rule.id for rule in new.rules] == [rule.id for rule in old.rules] and len(new.rules) == 7
    rng = Random(3)
    events = [
        transaction(
            f"e{n}",
            T0 + n * 20_000 * rng.choice([1, 1, 30]),
            f"c{rng.randrange(12)}",
            int(rng.lognormvariate(8, 1.5)),
            country=rng.choice([None, "IE", "FR"]),
            mcc=rng.choice([None, "4829", "5411"]),
            channel=rng.choice(["ONLINE", "PRESENT"]),
        )
        for n in range(3000)
    ]
    decided = [run(log_of(events), 512, {"rules": rules}).emitted for rules in (old, new)]
    fired = set()
    for before, after in zip(*decided, strict=True):
        assert [id_.partition("@")[0] for id_ in after["fired_rules"]] == before["fired_rules"]
        assert (before["risk"], before["decision"]) == (after["risk"], after["decision"])
        fired |= set(before["fired_rules"])
    assert len(fired) == 7


def test_an_unusual_transaction_is_riskier(model: FraudModel) -> None:
    """What the model never saw the like of is rarer than 1 in 100 to it, an ordinary first use is not."""
    usual = transaction("u", T0 + 12 * HOUR_MS, "x", 1100, country="IE", channel="PRESENT")
    odd = transaction("o", T0 + 3 * HOUR_MS, "y", 10_000_000, country="FR", channel="ONLINE")
    risks = {e["event_id"]: e["model_risk"] for e in run(log_of([usual, odd]), 2, {"model": model}).emitted}
    assert risks["u"] < 0.5 <= risks["o"]


def test_what_the_model_says_is_explained(model: FraudModel) -> None:
    """That a transaction is rare and that it is like known frauds is said, in that order."""
    event = transaction("o", T0 + 3 * HOUR_MS, "y", 100_000, country=None, channel="ONLINE")
    (said,) = run(log_of([event]), versions={"model": model}).emitted
    assert said["reasons"] == [RARITY_REASONS[0][1], CHANCE_REASONS[0][1]]
    assert said["fraud_chance"] >= 0.5 and said["decision"] == "DECLINE"
    (silent,) = run(log_of([event]), versions={"rules": None}).emitted
    assert (silent["reasons"], silent["fraud_chance"]) == ([], None)


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("amount_minor", -1),
        ("amount_minor", 10**12 + 1),
        ("occurred_at", 0),
        ("currency", "eur"),
        ("country", "Ireland"),
        ("mcc", "12"),
        ("event_id", ""),
        ("card_id", "x" * 129),
        ("event_id", "a\0b"),
        ("merchant_id", "m\n"),
    ],
)
def test_invalid_values_are_dead_letters(field_name: str, value: Any) -> None:
    """A value that cannot be is refused with its field, and leaves no trace in the state."""
    state = scoring().new_state()
    out = run(log_of([transaction("e", T0) | {field_name: value}]), state=state)
    assert not out.emitted and [d[2] for d in out.dead] == [field_name]
    assert field_name in out.dead[0][3]
    assert len(state) == 0 and state.delta() is None


@pytest.mark.parametrize("change", [{"occurred_at": T0 + 1}, {"card_id": "b"}, {"amount_minor": 5}])
def test_one_id_for_two_transactions_is_invalid(change: dict[str, Any]) -> None:
    """An id that comes again with another time, card or amount is refused, in one batch and across two."""
    records = log_of([transaction("e", T0), transaction("e", T0) | change])
    for batch in (1, 2):
        out = run(records, batch)
        assert len(out.emitted) == 1 and out.out.duplicates_total == 0
        assert [(d[0].offset, d[2]) for d in out.dead] == [(1, next(iter(change)))]


def test_a_day_late_is_exact_and_later_is_marked() -> None:
    """Just a day behind the newest still finds whole windows; beyond, the decision says it may not."""
    oldest, newest = T0, T0 + HORIZON_MS
    for late_ms, complete, count in (
        (LATENESS_MS, True, 2),
        (LATENESS_MS + 1, False, 2),
        (HORIZON_MS, False, 1),
    ):
        log = [
            transaction("o", oldest + 1, amount=5),
            transaction("n", newest, amount=7),
            transaction("late", newest - late_ms, amount=11),
        ]
        answer = run(log_of(log)).emitted[-1]
        assert (answer["late_ms"], answer["windows_complete"]) == (late_ms, complete)
        assert (answer["count_7d"], answer["sum_7d_minor"]) == (count, 5 * (count - 1) + 11)


def test_idle_cards_are_forgotten() -> None:
    """Memory stays flat while cards that never come back follow one another."""
    state = scoring().new_state()
    sizes = []
    for day in range(60):
        records = [
            Record("t", 0, n, T0 + day * DAY_MS, transaction(f"{day}-{n}", T0 + day * DAY_MS, f"c{day}-{n}"))
            for n in range(50)
        ]
        run(records, 50, state=state)
        sizes.append((state.cards_total, len(state)))
    assert max(sizes[20:]) == min(sizes[20:]) == (9 * 50, 9 * 50)


def test_a_restored_state_knows_the_newest_append_time() -> None:
    """A broker's clock that steps back after a restart makes no card look idle before its time."""
    before = log_of([transaction("a1", T0, "a")], T0)
    after = [
        *log_of([transaction("b1", T0, "b"), transaction("a2", T0, "a")], T0 - HOUR_MS),
        *log_of([transaction("c1", T0, "c"), transaction("b2", T0, "b")], T0 - HOUR_MS + IDLE_MS),
    ]
    state, restored = scoring().new_state(), scoring().new_state()
    run(before, state=state)
    for chunk in state.snapshot():
        restored.load(chunk)
    assert bytes(run(after, state=restored)) == bytes(run(after, state=state))
    assert state.cards_total == restored.cards_total == 3


def test_the_answer_is_the_schemas() -> None:
    """An answer has exactly the fields of card-decisions, and the vector exactly the declared features."""
    answer = run(log_of([transaction("e", T0)])).emitted[0]
    assert tuple(answer) == tuple(CARD_DECISIONS.fields)
    assert isinstance(scoring(), ColumnLogic) and tuple(features_of([answer])) == FEATURES
