"""The backtest's report against counts by hand, over a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules.backtest import SAMPLES, Report, backtest
from models.rules.checking import understand
from models.rules.problem import RuleError
from models.rules.store import read_context
from tests.sinks.test_fraud import DECISION
from tests.sinks.test_fraud import store as decide

FIRST = datetime.fromtimestamp(DECISION["occurred_at"] / 1000, UTC).replace(hour=0, minute=0, second=0)
FIRST_MS = int(FIRST.timestamp() * 1000)
DAY_MS = 86_400_000
RULE = "WHEN amount > 50 AND NOT home_country = 'FR' THEN review REASON 'dear'"


@pytest.fixture(scope="module")
def connection(database: Settings) -> Iterator[Connection]:
    """A ledger of three days: 30 transactions of 10 to 300, each third without a home, two rules fired."""
    with connect(database.database_url) as connection:
        for n in range(30):
            amount = (n + 1) * 1000
            decide(
                connection,
                event_id=f"b{n}",
                card_id=f"card-{n % 7}",
                occurred_at=FIRST_MS + n * DAY_MS // 10,
                amount_minor=amount,
                **dict.fromkeys([f"sum_{w}_minor" for w in ("10m", "1h", "24h", "7d")], amount * 3),
                **dict.fromkeys(("max_24h_minor", "max_7d_minor"), amount * 2),
                count_1h=1, count_24h=2, count_7d=9, count_10m=1,
                currency="USD" if n == 29 else "EUR",
                home_country=(None, "IE", "FR")[n % 3],
                decision=("APPROVE", "REVIEW", "DECLINE")[n % 10 // 4],
                fired_rules=["old@1"] if n % 2 else ["old@1", "burst@2"] if n % 5 == 0 else [],
            )  # fmt: skip
        connection.execute(
            "CREATE TABLE IF NOT EXISTS fraud_labels"
            " (tenant text, event_id text, is_fraud boolean, PRIMARY KEY (tenant, event_id))"
        )
        connection.execute(
            "INSERT INTO fraud_labels"
            " SELECT tenant, event_id, substr(event_id, 2)::int % 4 = 0 FROM card_ledger"
            " WHERE substr(event_id, 2)::int % 6 <> 5"
        )
        yield connection


def report(connection: Connection, text: str = RULE, since: datetime = FIRST, days: int = 3) -> Report:
    meaning = understand(text, read_context(connection))
    return backtest(connection, meaning, since, since + timedelta(days=days))


def matching() -> list[int]:
    """Which of the transactions the rule is about: more than 50, the holder known not to be French."""
    return [n for n in range(30) if (n + 1) * 1000 > (5850 if n == 29 else 5000) and n % 3 == 1]


def test_matches_value_and_alerts(connection: Connection) -> None:
    """Matches, their value by currency, cards, alerts a day, and for how many the rule knows no answer."""
    found, wanted = report(connection), matching()
    assert (found.transactions, found.matches, found.cards) == (30, len(wanted), len({n % 7 for n in wanted}))
    assert found.unknown == sum((n + 1) * 1000 > 5000 and n % 3 == 0 for n in range(30))
    assert found.share == len(wanted) / 30
    assert found.value == {"EUR": sum((n + 1) * 1000 for n in wanted)}
    by_day = [sum(n // 10 == day for n in wanted) for day in range(3)]
    assert list(found.alerts_by_day.values()) == by_day and found.alerts_most == max(by_day)
    assert (found.days, found.alerts_a_day) == (3, len(wanted) / 3)


def test_frauds_by_label(connection: Connection) -> None:
    """Frauds caught and their value, frauds there were, false positives, and what nobody labelled."""
    found, wanted = report(connection).labels, matching()
    labelled = [n for n in range(30) if n % 6 != 5]
    frauds = [n for n in labelled if n % 4 == 0]
    caught = [n for n in wanted if n in frauds]
    assert found is not None and caught
    assert (found.labelled, found.frauds, found.caught) == (len(labelled), len(frauds), len(caught))
    assert found.false_positives == len([n for n in wanted if n in labelled and n not in frauds])
    assert found.unlabelled_matches == len([n for n in wanted if n not in labelled])
    assert found.caught_value == {"EUR": sum((n + 1) * 1000 for n in caught)}
    assert found.caught_first == len([n for n in caught if n % 10 // 4 == 0])
    assert found.recall == len(caught) / len(frauds)
    assert found.precision == len(caught) / (len(caught) + found.false_positives)


def test_overlap_with_what_fired_and_changes(connection: Connection) -> None:
    """With which rules it fired together, how often alone, and which decisions it alone would change."""
    found, wanted = report(connection), matching()
    old = [n for n in wanted if n % 2 or n % 5 == 0]
    burst = [n for n in wanted if not n % 2 and n % 5 == 0]
    assert found.overlap == {"old@1": len(old), "burst@2": len(burst)}
    assert found.alone == len(wanted) - len(old)
    assert found.changes == {"APPROVE to REVIEW": len([n for n in wanted if n % 10 // 4 == 0])}
    declining = report(connection, RULE.replace("review", "decline"))
    assert declining.changes["REVIEW to DECLINE"] == len([n for n in wanted if n % 10 // 4 == 1])


def test_samples_are_the_same_whenever_asked(connection: Connection) -> None:
    """At most ten, all of them matches, chosen by their ids alone."""
    found = report(connection, "WHEN amount > 0 THEN review REASON 'all'")
    assert found.matches == 30 and len(found.samples) == SAMPLES
    ids = [sample["event_id"] for sample in found.samples]
    again = report(connection, "WHEN amount > 1 THEN review REASON 'all'")
    assert [sample["event_id"] for sample in again.samples] == ids and len(set(ids)) == SAMPLES


def test_the_period_is_half_open(connection: Connection) -> None:
    """A transaction at its end is not in it, one at its beginning is."""
    assert report(connection, days=1).transactions == 10
    assert report(connection, since=FIRST + timedelta(days=1), days=1).transactions == 10
    with pytest.raises(RuleError, match="nothing lies from"):
        report(connection, days=0)
