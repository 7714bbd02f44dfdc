"""The three back ends say the same of any rule and transaction, and what the language means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from psycopg import sql

from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules import one
from models.rules.batch import Bools, Program, columns_of_decisions
from models.rules.checking import check, understand
from models.rules.history import condition as in_sql
from models.rules.tree import Condition
from sinks.rows import from_ms
from tests.models.rules.written import CONTEXT, LISTS, RATES, T0, WINDOWS, conditions, decision, rule_text

RULES, TRANSACTIONS = 1_000, 10_000
AT_ONCE = 50


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    """A connection to the migrated database; what the test wrote is rolled back."""
    with connect(database.database_url) as connection, connection.transaction(force_rollback=True):
        yield connection


def by_one(wanted: Sequence[Condition], decisions: Sequence[dict[str, Any]]) -> Bools:
    """Where each condition holds, bool (conditions, rows), a transaction at a time."""
    held = one.compiled(wanted, RATES, LISTS)
    return np.array([held(one.of_decision(d, WINDOWS)) for d in decisions], dtype=bool).T


def by_batch(wanted: Sequence[Condition], decisions: Sequence[dict[str, Any]]) -> Bools:
    return Program(wanted, RATES, LISTS).held(columns_of_decisions(decisions, WINDOWS))


def stage(connection: Connection, decisions: Sequence[dict[str, Any]]) -> None:
    """Put the decisions into table `facts`, whose columns are the ledger's."""
    names = [*decisions[0], "n"]
    columns = sql.SQL(", ").join(map(sql.Identifier, names[:-1]))
    connection.execute("DROP TABLE IF EXISTS facts")
    connection.execute(
        sql.SQL("CREATE TEMP TABLE facts AS SELECT {}, 0 AS n FROM card_ledger WITH NO DATA").format(columns)
    )
    with connection.cursor() as cursor:
        copy_into = sql.SQL("COPY facts ({}) FROM STDIN").format(
            sql.SQL(", ").join(map(sql.Identifier, names))
        )
        with cursor.copy(copy_into) as copy:
            for n, row in enumerate(decisions):
                copy.write_row([from_ms(v) if k == "occurred_at" else v for k, v in row.items()] + [n])


def by_history(connection: Connection, wanted: Sequence[Condition]) -> Bools:
    found = []
    for start in range(0, len(wanted), AT_ONCE):
        some = [
            sql.SQL("({}) IS TRUE").format(in_sql(c, RATES, LISTS, WINDOWS))
            for c in wanted[start : start + AT_ONCE]
        ]
        rows = connection.execute(
            sql.SQL("SELECT ARRAY[{}] FROM facts ORDER BY n").format(sql.SQL(", ").join(some))
        )
        found.append(np.array([row[0] for row in rows], dtype=bool).T)
    return np.concatenate(found)


def test_a_thousand_rules_on_ten_thousand_transactions(connection: Connection) -> None:
    """1,000 random rules hold for the same of 10,000 random transactions in all three back ends."""
    rng = Random(7)
    rules = conditions(rng, RULES)
    decisions = [decision(rng.choice) for _ in range(TRANSACTIONS)]
    wanted = [condition for _, condition in rules]
    batch = by_batch(wanted, decisions)
    stage(connection, decisions)
    for name, other in (("one", by_one(wanted, decisions)), ("history", by_history(connection, wanted))):
        differing = np.argwhere(batch != other)
        shown = [(rules[r][0], decisions[n], bool(batch[r, n])) for r, n in differing[:1].tolist()]
        assert not len(differing), f"{len(differing)} differ between batch and {name}: {shown}"
    sometimes = batch.any(axis=1) & ~batch.all(axis=1)
    assert sometimes.sum() > RULES * 0.8, "rules that never or always hold tell nothing"


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_rule_on_any_transactions(connection: Connection, data: st.DataObject) -> None:
    """As above, for rules and transactions that hypothesis may make smaller when they differ."""

    def choose(values: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(values))

    text = rule_text(choose)
    meaning = check(text, CONTEXT).meaning
    assume(meaning is not None)
    assert meaning is not None
    rng = Random(data.draw(st.integers(0, 1000)))
    decisions = [decision(rng.choice) for _ in range(200)]
    batch = by_batch([meaning.condition], decisions)
    stage(connection, decisions)
    assert (batch == by_one([meaning.condition], decisions)).all()
    assert (batch == by_history(connection, [meaning.condition])).all()


BASE = {**decision(Random(0).choice), "occurred_at": T0, "currency": "EUR"}


@pytest.mark.parametrize(
    ("condition", "row", "holds"),
    [
        # Null: unknown, whether asked or denied.
        ("country = 'IE'", {"country": None}, False),
        ("NOT country = 'IE'", {"country": None}, False),
        ("country != 'IE'", {"country": None}, False),
        ("country NOT IN ('IE', 'FR')", {"country": None}, False),
        ("country NOT IN list('near')", {"country": None}, False),
        ("country IN list('none') OR hour < 24 / 1 - 1", {"country": None}, True),
        ("NOT (country = 'IE' AND hour < 3)", {"country": None}, True),
        ("NOT (country = 'IE' OR hour < 3)", {"country": None}, False),
        ("country IS NULL", {"country": None}, True),
        ("NOT country IS NOT NULL", {"country": None}, True),
        ("foreign", {"country": None, "home_country": "IE"}, False),
        ("NOT foreign", {"country": None, "home_country": "IE"}, False),
        ("foreign", {"country": "FR", "home_country": "IE"}, True),
        ("since_previous < 10m", {"since_previous_ms": None}, False),
        ("NOT since_previous < 10m", {"since_previous_ms": None}, False),
        ("since_previous + late < 10m OR since_previous IS NULL", {"since_previous_ms": None}, True),
        # Division by zero is unknown.
        ("amount / (count(card, 1h) - 1) > 3", {"count_1h": 1, "amount_minor": 500}, False),
        ("NOT amount / (count(card, 1h) - 1) > 3", {"count_1h": 1, "amount_minor": 500}, False),
        ("usual(card, 7d) IS NULL", {"count_7d": 1}, True),
        ("amount >= 8 * usual(card, 7d)", {"amount_minor": 800, "sum_7d_minor": 1000, "count_7d": 3}, True),
        ("amount > 8 * usual(card, 7d)", {"amount_minor": 800, "sum_7d_minor": 1000, "count_7d": 3}, False),
        # Amounts compare in a stated currency, in whole minor units of the card's.
        ("amount >= 10", {"amount_minor": 1000}, True),
        ("amount >= 10", {"amount_minor": 999}, False),
        ("amount >= 10", {"amount_minor": 1170, "currency": "USD"}, True),
        ("amount >= 10", {"amount_minor": 1169, "currency": "USD"}, False),
        ("amount >= 10", {"amount_minor": 1690, "currency": "JPY"}, True),
        ("amount >= 10", {"amount_minor": 1689, "currency": "JPY"}, False),
        ("amount >= 10", {"amount_minor": 4400, "currency": "BHD"}, True),
        ("amount >= 10 USD", {"amount_minor": 1000, "currency": "USD"}, True),
        ("amount >= 1.17 USD", {"amount_minor": 100, "currency": "EUR"}, True),
        ("amount >= 10", {"amount_minor": 10**9, "currency": "XXX"}, False),
        ("NOT amount >= 10", {"amount_minor": 10**9, "currency": "XXX"}, False),
        ("amount_minor >= 10", {"amount_minor": 10, "currency": "XXX"}, True),
        # Lists expire in event time: an entry counts for what came before.
        ("mcc IN list('risky')", {"mcc": "5411", "occurred_at": T0 - 1}, True),
        ("mcc IN list('risky')", {"mcc": "5411", "occurred_at": T0}, False),
        ("mcc NOT IN list('risky')", {"mcc": "5411", "occurred_at": T0}, True),
        ("mcc IN list('risky')", {"mcc": "4829", "occurred_at": T0 + 10**11}, True),
        # Named windows: unknown in decisions from before they were kept.
        ("count(card, 2h) >= 5", {"rule_windows": [5]}, True),
        ("count(card, 2h) >= 5", {"rule_windows": []}, False),
        ("NOT count(card, 2h) >= 5", {"rule_windows": []}, False),
        ("max(card, 3d) > 4", {"rule_windows": [1, 1, 500]}, True),
        # Time is UTC. 2023-11-14 was a Tuesday; T0 is 22:13.
        ("hour = 22 AND weekday = 2 AND NOT weekend", {}, True),
        ("weekend", {"occurred_at": T0 + 4 * 86_400_000}, True),
        ("merchant_id = 'it''s'", {"merchant_id": "it's"}, True),
        ("hour BETWEEN 20 AND 22", {}, True),
        ("hour NOT BETWEEN 20 AND 22", {}, False),
        ("weekday NOT IN (1, 2)", {}, False),
    ],
)
def test_what_conditions_mean(
    connection: Connection, condition: str, row: dict[str, Any], holds: bool
) -> None:
    """The stated semantics: of null, division by zero, currencies, expiry, windows and time."""
    wanted = [understand(f"WHEN {condition} THEN review REASON 'r'", CONTEXT).condition]
    decisions = [BASE | row]
    stage(connection, decisions)
    found = (by_one(wanted, decisions), by_batch(wanted, decisions), by_history(connection, wanted))
    assert [bool(held[0, 0]) for held in found] == [holds] * 3


def test_parts_that_rules_share_are_computed_once() -> None:
    """Two hundred rules over the same facts take few more steps than their own comparisons."""
    texts = [
        f"WHEN amount > 3.5 * mean(card, 7d) AND foreign AND hour < {h} THEN review REASON 'r'"
        for h in range(1, 20)
    ]
    wanted = [understand(text, CONTEXT).condition for text in texts]
    once, all_ = Program(wanted[:1], RATES, LISTS), Program(wanted, RATES, LISTS)
    assert len(all_) - len(once) == 3 * (len(wanted) - 1)
