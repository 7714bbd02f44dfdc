"""What rules did in the ledger's newest decisions, against counts by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules.lately import Change, Fired, changes, lately
from tests.sinks.test_fraud import DECISION
from tests.sinks.test_fraud import store as decide


@pytest.fixture(scope="module")
def connection(database: Settings) -> Iterator[Connection]:
    """Ten decisions, a second apart; what was decided last is the newest."""
    with connect(database.database_url) as connection:
        for n in range(10):
            decide(
                connection,
                event_id=f"l{n}",
                occurred_at=DECISION["occurred_at"] + n * 1000,
                decision="APPROVE",
                fired_rules=["a@1", "b@2"] if n % 2 else ["a@1"],
                capped_rules=["b@2"] if n in (1, 9) else [],
                shadow_rules=["c@1"] if n >= 4 else [],
                shadow_decision="REVIEW" if n in (4, 8, 9) else None,
            )
        yield connection


def test_every_rule_is_counted(connection: Connection) -> None:
    """Where it fired, where its cap held it back, and where it held without effect."""
    found = lately(connection)
    assert found.decisions == 10
    assert found.since and found.until and (found.until - found.since).total_seconds() == 9
    assert found.rules == {"a@1": Fired(10, 0, 0), "b@2": Fired(5, 2, 0), "c@1": Fired(0, 0, 6)}
    assert found.of("nothing@1") == Fired()


def test_only_the_newest_are_looked_at(connection: Connection) -> None:
    """Asking costs the same however long the ledger is: older decisions are not counted."""
    found = lately(connection, most=3)
    assert found.decisions == 3
    assert found.rules == {"a@1": Fired(3, 0, 0), "b@2": Fired(2, 1, 0), "c@1": Fired(0, 0, 3)}


def test_what_a_rule_on_trial_would_have_changed(connection: Connection) -> None:
    """By what was decided and what would have been; where nothing is told, nothing would have changed."""
    assert changes(connection, "c@1") == [Change("APPROVE", "APPROVE", 3), Change("APPROVE", "REVIEW", 3)]
    assert changes(connection, "a@1") == []
