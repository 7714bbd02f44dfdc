"""Rules on their way into force and out, in a real Postgres: who may take them where, what is published."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest

from infra import versions
from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules import store
from models.rules.lifecycle import NEXT, Stage, Standing, require
from models.rules.problem import CheckError, RuleError
from models.rules.ruleset import load_rules
from tests.sinks.test_fraud import store as decide

TEXT = "WHEN amount > 50 AND mcc IN list('risky') THEN decline SCORE +0.3 REASON 'dear and risky'"
OTHER = TEXT.replace("50", "60")


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    """A connection to the migrated database; what the test wrote is rolled back."""
    with connect(database.database_url) as connection, connection.transaction(force_rollback=True):
        yield connection


def take(connection: Connection, rule: str, *stages: str, **more: Any) -> int | None:
    """Take a rule through stages as somebody else; returns what the last one published."""
    published = None
    for name in stages:
        found = store.find(connection, rule)
        if name == "backtested":
            now = datetime(2026, 1, 1, tzinfo=UTC)
            store.record_backtest(connection, found, now, now, {"matches": 3}, "ann")
        else:
            _, published = store.move(connection, rule, Stage(name), "bob", **more)
    return published


def entry(connection: Connection, key: str) -> dict[str, Any] | None:
    """The rule as the version in force has it."""
    version = versions.latest(connection, "fraud", ["rules"])["rules"]
    body = versions.body(connection, "fraud", "rules", version)
    load_rules(version, body)
    return next((e for e in body["rules"] if f"{e['id']}@{e['version']}" == key), None)


def test_from_text_to_active(connection: Connection) -> None:
    """Each stage in force publishes a version; the set has the rule with its stage, share and cap."""
    before = versions.latest(connection, "fraud", ["rules"])["rules"]
    rule, is_new = store.add(connection, "dear", TEXT, "ann")
    assert is_new and (rule.key, rule.stage) == ("dear@1", Stage.DRAFT)
    assert take(connection, "dear", "backtested", "approved") is None
    assert versions.latest(connection, "fraud", ["rules"])["rules"] == before
    assert take(connection, "dear", "shadow") == before + 1
    assert (entry(connection, "dear@1") or {})["stage"] == "shadow"
    assert take(connection, "dear", "canary", share=0.2, cap=0.05) == before + 2
    found = entry(connection, "dear@1") or {}
    assert (found["stage"], found["share"], found["cap"]) == ("canary", 0.2, 0.05)
    assert take(connection, "dear", "active", cap=0.05) == before + 3
    found = entry(connection, "dear@1") or {}
    assert (found["stage"], found["share"], found["cap"]) == ("active", 1.0, 0.05)
    assert take(connection, "dear", "active", cap=None) == before + 4
    assert (entry(connection, "dear@1") or {})["cap"] is None
    assert take(connection, "dear", "retired") == before + 5
    assert entry(connection, "dear@1") is None and len(store.in_force(connection).rules) == 7
    steps = [(e.stage, e.actor, e.rules_version) for e in store.events(connection, "dear")]
    assert [s for s, _, _ in steps] == [*list(Stage)[:6], Stage.ACTIVE, Stage.RETIRED]
    assert [v for _, _, v in steps] == [None, None, None, *range(before + 1, before + 6)]


def test_the_same_text_is_the_same_version(connection: Connection) -> None:
    """Spelled otherwise it is no other rule; a changed text is the next version, of the same place."""
    first, _ = store.add(connection, "dear", TEXT, "ann")
    again, is_new = store.add(
        connection,
        "dear",
        TEXT.lower().replace(" ", "  ").replace("dear  and  risky", "dear and risky"),
        "bob",
    )
    assert not is_new and again == first
    second, is_new = store.add(connection, "dear", OTHER, "bob")
    assert is_new and (second.key, second.place) == ("dear@2", first.place)
    assert store.find(connection, "dear").key == "dear@2" and store.find(connection, "dear@1") == first


@pytest.mark.parametrize(
    ("id_", "text", "message"),
    [
        ("Dear", TEXT, "'Dear' cannot be a rule's id; use kebab-case"),
        ("dear", TEXT.replace("risky'", "risk'"), "there is no list 'risk'; did you mean risky?"),
        ("dear", TEXT.replace("50", "50 SEKK"), "stands where THEN should"),
    ],
)
def test_what_is_no_rule_is_not_stored(connection: Connection, id_: str, text: str, message: str) -> None:
    """A draft too must be a rule that could run."""
    with pytest.raises(RuleError, match=r"cannot be|there is no|stands where") as error:
        store.add(connection, id_, text, "ann")
    assert message in str(error.value)
    assert isinstance(error.value, CheckError) == (id_ == "dear")


def test_only_somebody_else_may_approve(connection: Connection) -> None:
    """Its author may not, and the database says the same to whoever writes past our code."""
    store.add(connection, "dear", TEXT, "ann")
    take(connection, "dear", "backtested")
    with pytest.raises(RuleError, match="dear@1 was written by ann; let somebody else approve it"):
        store.move(connection, "dear", Stage.APPROVED, "ann")
    insert = "INSERT INTO rule_events (rule_id, version, stage, actor) VALUES ('dear', 1, %s, %s)"
    for stage, actor in (("approved", "ann"), ("active", "bob"), ("shadow", "bob"), ("canary", "bob")):
        with pytest.raises(psycopg.errors.CheckViolation), connection.transaction():
            connection.execute(insert, (stage, actor))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rules SET text = text",
        "DELETE FROM rules",
        "UPDATE rule_events SET actor = 'x'",
        "UPDATE rule_events SET rules_version = 9 WHERE rules_version IS NOT NULL",
        "DELETE FROM rule_events",
        "TRUNCATE rule_events",
        "UPDATE rule_backtests SET report = '{}'",
    ],
)
def test_what_was_written_stays(connection: Connection, statement: str) -> None:
    """Texts, steps and reports are added to, never changed."""
    store.add(connection, "dear", TEXT, "ann")
    take(connection, "dear", "backtested")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute(statement.encode())


@pytest.mark.parametrize("stage", list(Stage))
def test_stages_follow_one_another(stage: Stage) -> None:
    """Wherever a rule stands, only the next stages can be reached, and the message names the commands."""
    for to in Stage:
        if to in NEXT[stage]:
            require(Standing("r@1", stage, "ann"), to, "bob")
            continue
        with pytest.raises(RuleError, match=f"r@1 is {stage} and cannot become {to}"):
            require(Standing("r@1", stage, "ann"), to, "bob")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"share": 0.0}, "a canary's share is above 0 and at most 1; 0.0 is not"),
        ({"share": 1.5}, "1.5 is not"),
        ({"cap": 2.0}, "a cap is a share from 0 to 1; 2.0 is not"),
        ({"actor": " "}, "say who you are"),
    ],
)
def test_bounds_are_checked(more: dict[str, Any], message: str) -> None:
    """A share of none of the cards, a cap of twice the transactions, and nobody are refused."""
    with pytest.raises(RuleError, match=message):
        require(Standing("r@1", Stage.SHADOW, "ann"), Stage.CANARY, **{"actor": "bob", **more})


def test_a_later_version_beside_the_earlier(connection: Connection) -> None:
    """Both are in force while the later one is tried; active it retires the earlier; a rollback undoes it."""
    store.add(connection, "dear", TEXT, "ann")
    take(connection, "dear@1", "backtested", "approved", "shadow", "canary", "active", cap=0.07)
    store.add(connection, "dear", OTHER, "ann")
    take(connection, "dear@2", "backtested", "approved", "shadow", "canary", share=0.5)
    assert [(entry(connection, f"dear@{n}") or {}).get("stage") for n in (1, 2)] == ["active", "canary"]
    take(connection, "dear@2", "active")
    assert [(entry(connection, f"dear@{n}") or {}).get("stage") for n in (1, 2)] == [None, "active"]
    back, published = store.roll_back(connection, "dear", "eve")
    assert back is not None and back.cap == 0.07, "as it was active before"
    assert back is not None and back.key == "dear@1" and published is not None
    assert [(entry(connection, f"dear@{n}") or {}).get("stage") for n in (1, 2)] == ["active", None]
    assert [e.note for e in store.events(connection, "dear")][-2:] == [
        "rolled back",
        "rolled back from dear@2",
    ]


def test_what_is_on_trial_is_rolled_back_first(connection: Connection) -> None:
    """A canary goes, what was active stays."""
    store.add(connection, "dear", TEXT, "ann")
    take(connection, "dear@1", "backtested", "approved", "shadow", "canary", "active")
    store.add(connection, "dear", OTHER, "ann")
    take(connection, "dear@2", "backtested", "approved", "shadow", "canary", share=0.5)
    assert store.roll_back(connection, "dear", "eve")[0] is None
    assert [(entry(connection, f"dear@{n}") or {}).get("stage") for n in (1, 2)] == ["active", None]
    assert store.roll_back(connection, "dear", "eve")[0] is None
    assert entry(connection, "dear@1") is None
    with pytest.raises(RuleError, match="nothing of dear is in force"):
        store.roll_back(connection, "dear", "eve")


def test_the_whole_set_can_be_rolled_back(connection: Connection) -> None:
    """Every rule stands as it stood in that version: in force, retired, with its share and cap."""
    before = versions.latest(connection, "fraud", ["rules"])["rules"]
    store.add(connection, "dear", TEXT, "ann")
    in_canary = take(connection, "dear", "backtested", "approved", "shadow", "canary", share=0.5, cap=0.2)
    take(connection, "dear", "active")
    take(connection, "night-amount", "retired")
    assert in_canary is not None
    store.roll_back_to(connection, in_canary, "eve")
    found = entry(connection, "dear@1") or {}
    assert (found["stage"], found["share"], found["cap"]) == ("canary", 0.5, 0.2)
    assert entry(connection, "night-amount@1") is not None
    version = store.roll_back_to(connection, before, "eve")
    assert versions.body(connection, "fraud", "rules", version) == versions.body(
        connection, "fraud", "rules", before
    )
    version = store.roll_back_to(connection, 1, "eve")
    assert versions.body(connection, "fraud", "rules", version) == versions.body(
        connection, "fraud", "rules", 1
    )
    with pytest.raises(RuleError, match="there is no version 999"):
        store.roll_back_to(connection, 999, "eve")


def test_a_rule_that_names_a_window_warms_up(connection: Connection) -> None:
    """The window is kept from the draft on; until decisions hold it the rule gets as far as approved."""
    rule, _ = store.add(connection, "often", "WHEN count(card, 2h) > 5 THEN review REASON 'often'", "ann")
    assert rule.missing_windows == ("count(card, 2h)",)
    assert store.in_force(connection).windows == ("count(card, 2h)",)
    take(connection, "often", "backtested", "approved")
    with pytest.raises(RuleError, match=r"often@1 is warming: decisions do not hold count\(card, 2h\) yet"):
        take(connection, "often", "shadow")
    decide(connection, event_id="before", rule_windows=[])
    assert store.find(connection, "often").missing_windows != ()
    later = 1762167600000 + 1000
    for n in range(store.NEWEST_DECISIONS):
        decide(connection, event_id=f"after-{n}", rule_windows=[3], occurred_at=later + n)
    assert store.find(connection, "often").missing_windows == ()
    assert take(connection, "often", "shadow") is not None
    second, _ = store.add(connection, "spent", "WHEN sum(card, 2h) > 5 THEN review REASON 'often'", "ann")
    assert store.read_windows(connection) == ["count(card, 2h)", "sum(card, 2h)"], "places are for good"
    assert second.missing_windows == ("sum(card, 2h)",)


def test_lists_are_part_of_the_version(connection: Connection) -> None:
    """Whatever changes a list publishes; entries expire in event time; a list that is asked stays."""
    until = datetime(2026, 5, 1, tzinfo=UTC)
    published = store.put_in_list(connection, "stolen", ["m2", "m1"], "ann", until)
    assert published is not None and store.put_in_list(connection, "stolen", ["m1"], "ann", until) is None
    body = versions.body(connection, "fraud", "rules", published)
    assert body["lists"]["stolen"] == [["m1", 1777593600000], ["m2", 1777593600000]]
    store.put_in_list(connection, "stolen", ["m1"], "ann")
    assert store.set_body(connection)["lists"]["stolen"][0] == ["m1", None]
    with pytest.raises(RuleError, match="m3 is not in list stolen; use one of m1, m2"):
        store.take_from_list(connection, "stolen", ["m3"], "ann")
    assert store.take_from_list(connection, "stolen", ["m1", "m2"], "ann") is not None
    with pytest.raises(RuleError, match="there is no list 'risky'"), connection.transaction():
        store.take_from_list(connection, "risky", ["4829", "6051", "6211", "7995", "5967"], "ann")


def test_rates_are_part_of_the_version(connection: Connection) -> None:
    """Rates that are stated apply with the next version; one that a rule in force needs cannot go."""
    day = date(2026, 1, 2)
    published = store.state_rates(connection, "EUR", {"USD": "1.08"}, day, "ann")
    assert published is not None
    assert versions.body(connection, "fraud", "rules", published)["currency"] == {
        "stated": "EUR",
        "as_of": "2026-01-02",
        "rates": {"USD": "1.08"},
    }
    store.add(connection, "usd", TEXT.replace("50", "50 USD"), "ann")
    take(connection, "usd", "backtested", "approved", "shadow")
    with pytest.raises(RuleError, match="there is no rate for USD"), connection.transaction():
        store.state_rates(connection, "EUR", {"GBP": "0.85"}, day, "ann")
    with pytest.raises(RuleError, match="'x' GBP to one EUR cannot be used"):
        store.state_rates(connection, "EUR", {"GBP": "x"}, day, "ann")
