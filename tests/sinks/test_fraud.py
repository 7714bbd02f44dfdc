"""The ledger in a real Postgres: decisions come back as they were, and nobody changes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from infra import versions
from infra.ledger.chain import CHAIN_COLUMNS
from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules.ruleset import RuleSet
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER
from sinks.fraud import ROWS
from sinks.rows import from_ms
from streams.fraud import PROCESSORS

DECISION: dict[str, Any] = json.loads(
    (CARD_DECISIONS.schema_path.parent / "examples" / "card-decisions.json").read_text()
)[0]

INSERT = sql.SQL("INSERT INTO card_ledger ({}) VALUES ({}) ON CONFLICT DO NOTHING").format(
    sql.SQL(", ").join(map(sql.Identifier, (*CARD_LEDGER.columns, "source_partition", "source_offset"))),
    sql.SQL(", ").join([sql.Placeholder()] * (len(CARD_LEDGER.columns) + 2)),
)


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    """A connection to the migrated database; what the test wrote is rolled back."""
    with connect(database.database_url) as connection, connection.transaction(force_rollback=True):
        yield connection


def store(connection: Connection, **changes: Any) -> int:
    """Store a decision as the sink does, partition first; returns the number of rows that were new."""
    decision = DECISION | changes
    at = from_ms(decision["occurred_at"])
    connection.execute("SELECT millrace_ensure_partitions('card_ledger', %s, %s)", (at, at))
    (row,) = ROWS[0].rows(decision)
    return connection.execute(INSERT, (*row, 3, 42)).rowcount


def test_a_decision_comes_back_as_it_was(connection: Connection) -> None:
    """Every field of a decision stands in the ledger with its own value, and the first one stays."""
    assert store(connection) == 1
    assert store(connection, risk=0.9) == 0
    cursor = connection.execute("SELECT * FROM card_ledger WHERE event_id = %s", (DECISION["event_id"],))
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    found = dict(zip(names, cursor.fetchone() or (), strict=True))
    expected = DECISION | {"occurred_at": from_ms(DECISION["occurred_at"])}
    for column in CHAIN_COLUMNS:  # the sink's own part: tests/infra/ledger
        del found[column]
    assert found == expected | {"source_partition": 3, "source_offset": 42}


def test_tenants_do_not_meet(connection: Connection) -> None:
    """Two tenants may use the same event id at the same time."""
    assert store(connection) + store(connection, tenant="other") == 2


PARTITION = "SELECT tableoid::regclass::text FROM card_ledger LIMIT 1"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET decision = 'APPROVE', risk = 0",
        "DELETE FROM {}",
        "TRUNCATE {}",
        "DELETE FROM {partition}",
        "UPDATE {partition} SET risk = 0",
    ],
)
@pytest.mark.parametrize("superuser", [False, True])
def test_the_ledger_is_append_only(connection: Connection, statement: str, superuser: bool) -> None:
    """Nobody updates, deletes or truncates: not the owner that the sink writes as, nor a superuser."""
    store(connection)
    partition = connection.execute(PARTITION).fetchone()
    assert partition is not None
    _act_as(connection, superuser)
    with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute(statement.format("card_ledger", partition=partition[0]).encode())
    assert connection.execute("SELECT count(*) FROM card_ledger").fetchone() == (1,)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM card_ledger",
        "UPDATE card_ledger SET card_id = 'erased:1'",
        "UPDATE card_ledger SET card_id = 'another', customer_id = NULL, seal_key = NULL",
        "UPDATE card_ledger SET card_id = 'erased:1', customer_id = NULL, seal_key = NULL, risk = 0",
    ],
)
def test_an_erasure_changes_personal_columns_alone(connection: Connection, statement: str) -> None:
    """Under the name of an erasure nothing passes but what an erasure does, and no row goes."""
    store(connection)
    connection.execute("SET LOCAL millrace.erasure = '1'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute(statement.encode())
    connection.execute("UPDATE card_ledger SET card_id = 'erased:1', customer_id = NULL, seal_key = NULL")


def _act_as(connection: Connection, superuser: bool) -> None:
    """Go on as a superuser, or as a plain role that may write as the owner may."""
    is_super = connection.execute("SELECT current_setting('is_superuser')").fetchone() == ("on",)
    if superuser and not is_super:
        pytest.skip("the database's role is no superuser here; the trigger's exception cannot be used at all")
    if not superuser and is_super:
        connection.execute("CREATE ROLE plain_writer BYPASSRLS")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO plain_writer")
        connection.execute("SET LOCAL ROLE plain_writer")


@pytest.mark.parametrize(
    "change",
    [{"risk": 1.5}, {"sum_1h_minor": 1}, {"count_24h": 0}, {"decision": "MAYBE"}, {"currency": "euro"}],
)
def test_checks_are_an_independent_witness(connection: Connection, change: dict[str, Any]) -> None:
    """The database refuses a decision that contradicts itself."""
    with pytest.raises(psycopg.errors.CheckViolation), connection.transaction():
        store(connection, **change)


def test_views_count_what_the_ledger_holds(connection: Connection) -> None:
    """The analysts' views sum transactions and value by card, rule and day."""
    for n, (decision, rules) in enumerate(
        [("APPROVE", []), ("REVIEW", ["a"]), ("DECLINE", ["a", "b"]), ("DECLINE", ["b"])]
    ):
        store(connection, event_id=f"v{n}", decision=decision, fired_rules=rules, risk=n / 10, late_ms=n)
    day = from_ms(DECISION["occurred_at"]).date()
    assert connection.execute(
        "SELECT day, transactions, amount_minor, reviewed, declined, countries, risk_max"
        " FROM card_activity_daily WHERE card_id = %s",
        (DECISION["card_id"],),
    ).fetchall() == [(day, 4, 4 * 1999, 1, 2, 1, 0.3)]
    assert connection.execute(
        "SELECT rule_id, decision, transactions FROM decisions_by_rule ORDER BY 1, 2"
    ).fetchall() == [("a", "DECLINE", 1), ("a", "REVIEW", 1), ("b", "DECLINE", 2)]
    assert connection.execute(
        "SELECT decision, transactions, late FROM decisions_daily ORDER BY 1"
    ).fetchall() == [("APPROVE", 1, 0), ("DECLINE", 2, 2), ("REVIEW", 1, 1)]
    store(connection, event_id="v4", decision="APPROVE", shadow_rules=["n@2"], shadow_decision="DECLINE")
    assert connection.execute(
        "SELECT rule_id, decision, shadow_decision, transactions, amount_minor FROM shadows_by_rule"
        " WHERE rule_id = 'n@2' AND decision = 'APPROVE'"
    ).fetchall() == [("n@2", "APPROVE", "DECLINE", 1, 1999)]


def test_analysts_find_every_column_described(connection: Connection) -> None:
    """The ledger, each of its columns and each view carry a comment."""
    undescribed = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'card_ledger'::regclass AND attnum > 0"
        " AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL"
    ).fetchall()
    assert undescribed == []
    for name in (
        "card_ledger",
        "card_activity_daily",
        "decisions_by_rule",
        "decisions_daily",
        "shadows_by_rule",
    ):
        assert connection.execute("SELECT obj_description(%s::regclass)", (name,)).fetchone() != (None,)


def test_the_database_brings_the_first_rules(connection: Connection) -> None:
    """The migrations publish rules that the processor loads, the same in the language as before."""
    latest = versions.latest(connection, "fraud", ["rules"])["rules"]
    logic = PROCESSORS["fraud-scoring"]()
    rules, before = (
        logic.load_version("rules", n, versions.body(connection, "fraud", "rules", n)) for n in (latest, 1)
    )
    assert isinstance(rules, RuleSet) and rules.version == latest == 2 and len(rules.rules) >= 6
    assert [(r.id, r.meaning.action, r.meaning.score) for r in rules.rules] == [
        (r.id, r.meaning.action, r.meaning.score) for r in before.rules
    ]
