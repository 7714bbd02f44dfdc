"""What a rule would have done with the transactions of a period, by what scoring saw of them.

The condition runs as SQL over the ledger; its windows are those that were stored with each decision. What
matches comes out row by row and is folded into the report.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from psycopg import sql

from infra.postgres import Connection
from models.rules.checking import Meaning
from models.rules.currencies import Rates
from models.rules.history import condition
from models.rules.lists import Lists, lists_of
from models.rules.problem import RuleError
from models.rules.store import read_lists, read_rates, read_windows

SAMPLES = 10
LABELS = "fraud_labels"
"""Labels: `is_fraud` by `tenant` and `event_id`; without this table a report says nothing of frauds."""
STRICTER = {"APPROVE": 0, "REVIEW": 1, "DECLINE": 2}


class Match(NamedTuple):
    """A transaction for which the condition holds. `is_fraud`: None where nobody said."""

    tenant: str
    event_id: str
    at: datetime
    card_id: str
    amount_minor: int
    currency: str
    decision: str
    risk: float
    fired: Sequence[str]
    is_fraud: bool | None


@dataclass(slots=True)
class Labels:
    """What labels say of a rule. Value in minor units, by currency."""

    labelled: int = 0
    frauds: int = 0
    fraud_value: dict[str, int] = field(default_factory=dict)
    caught: int = 0
    caught_value: dict[str, int] = field(default_factory=dict)
    caught_first: int = 0
    """Of these, those that were approved."""
    false_positives: int = 0
    unlabelled_matches: int = 0
    precision: float | None = None
    recall: float | None = None


@dataclass(slots=True)
class Report:
    """The outcome. Value in minor units, by currency; shares 0.0 to 1.0.

    `unknown`: transactions for which the condition is neither true nor false, as where a window was not kept
    yet. `changes`: matches by what was decided and what the rule alone would make of it, as `APPROVE to
    REVIEW`. `overlap`: of the matches, those on which each rule fired then; `alone`: those on which none did.
    """

    since: str
    until: str
    transactions: int
    unknown: int = 0
    matches: int = 0
    share: float = 0.0
    cards: int = 0
    value: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    days: int = 0
    alerts_by_day: dict[str, int] = field(default_factory=dict)
    alerts_a_day: float = 0.0
    alerts_most: int = 0
    overlap: dict[str, int] = field(default_factory=dict)
    alone: int = 0
    labels: Labels | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_COLUMNS = "tenant, event_id, occurred_at, card_id, amount_minor, currency, decision, risk, fired_rules"


def backtest(connection: Connection, meaning: Meaning, since: datetime, until: datetime) -> Report:
    """Report on the ledger's transactions from `since` up to `until`, by event time. Raises `RuleError`.

    By the lists and rates of now. Labels are read where there are any.
    """
    if not since < until:
        raise RuleError(f"nothing lies from {since:%Y-%m-%d %H:%M} up to {until:%Y-%m-%d %H:%M}; swap them")
    rates, lists, windows = read_rates(connection), _lists_now(connection), read_windows(connection)
    return _reported(connection, meaning, (rates, lists, windows), since, until)


def _lists_now(connection: Connection) -> Lists:
    return lists_of(
        {
            name: [(value, None if at is None else at.timestamp() * 1000) for value, at in entries]
            for name, entries in read_lists(connection).items()
        }
    )


def _reported(
    connection: Connection,
    meaning: Meaning,
    by: tuple[Rates, Lists, Sequence[str]],
    since: datetime,
    until: datetime,
) -> Report:
    holds = condition(meaning.condition, *by)
    has_labels = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (LABELS,)).fetchone() == (True,)
    label = sql.SQL(
        "(SELECT l.is_fraud FROM {} l WHERE l.tenant = c.tenant AND l.event_id = c.event_id)"
    ).format(sql.Identifier(LABELS))
    period = sql.SQL("FROM card_ledger c WHERE occurred_at >= {} AND occurred_at < {}").format(since, until)
    # One snapshot for both: rows that arrive meanwhile are in neither.
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = connection.execute(
            sql.SQL("SELECT count(*), count(*) FILTER (WHERE ({}) IS NULL) {}").format(holds, period)
        ).fetchone()
        assert row is not None
        report = Report(since.isoformat(), until.isoformat(), int(str(row[0])), int(str(row[1])))
        if has_labels:
            report.labels = _labels(connection, label, period)
        fold = _Fold(report, meaning)
        with connection.cursor(name="backtest") as cursor:
            cursor.itersize = 5_000
            cursor.execute(
                sql.SQL("SELECT {}, {} {} AND {}").format(
                    sql.SQL(_COLUMNS), label if has_labels else sql.SQL("NULL::boolean"), period, holds
                )
            )
            for match in cursor:
                fold.add(Match(*match))  # type: ignore[arg-type]
    return fold.finished(since, until)


def _labels(connection: Connection, label: sql.Composable, period: sql.Composable) -> Labels:
    found = Labels()
    for currency, is_fraud, count, value in connection.execute(
        sql.SQL(
            "SELECT currency, is_fraud, count(*), sum(amount_minor)::bigint FROM"
            " (SELECT currency, amount_minor, {} AS is_fraud {}) AS labelled"
            " WHERE is_fraud IS NOT NULL GROUP BY 1, 2"
        ).format(label, period)
    ):
        found.labelled += int(str(count))
        if is_fraud:
            found.frauds += int(str(count))
            found.fraud_value[str(currency)] = int(str(value))
    return found


class _Fold:
    """Folds matches, in any order, into a report."""

    def __init__(self, report: Report, meaning: Meaning) -> None:
        self._report = report
        self._would = {"decline": "DECLINE", "review": "REVIEW", None: "APPROVE"}[meaning.action]
        self._cards: set[tuple[str, str]] = set()
        self._days: Counter[str] = Counter()
        self._value: Counter[str] = Counter()
        self._caught_value: Counter[str] = Counter()
        self._changes: Counter[str] = Counter()
        self._overlap: Counter[str] = Counter()
        self._samples: list[tuple[str, Match]] = []

    def add(self, match: Match) -> None:
        report = self._report
        report.matches += 1
        self._cards.add((match.tenant, match.card_id))
        self._days[f"{match.at:%Y-%m-%d}"] += 1
        self._value[match.currency] += match.amount_minor
        after = max(match.decision, self._would, key=STRICTER.__getitem__)
        if after != match.decision:
            self._changes[f"{match.decision} to {after}"] += 1
        self._overlap.update(set(match.fired))
        report.alone += not match.fired
        if report.labels is not None:
            self._label(report.labels, match)
        # By a hash of the id: spread evenly, and the same ones whenever it is asked.
        place = hashlib.sha256(f"{match.tenant}\0{match.event_id}".encode()).hexdigest()
        heapq.heappush(self._samples, (_inverse(place), match))
        if len(self._samples) > SAMPLES:
            heapq.heappop(self._samples)

    def _label(self, labels: Labels, match: Match) -> None:
        if match.is_fraud is None:
            labels.unlabelled_matches += 1
        elif match.is_fraud:
            labels.caught += 1
            labels.caught_first += match.decision == "APPROVE"
            self._caught_value[match.currency] += match.amount_minor
        else:
            labels.false_positives += 1

    def finished(self, since: datetime, until: datetime) -> Report:
        report = self._report
        report.share = report.matches / report.transactions if report.transactions else 0.0
        report.cards = len(self._cards)
        report.value = dict(sorted(self._value.items()))
        report.changes = dict(sorted(self._changes.items()))
        report.overlap = dict(self._overlap.most_common())
        report.days = max(1, -(-(until - since) // timedelta(days=1)))
        report.alerts_by_day = dict(sorted(self._days.items()))
        report.alerts_a_day = report.matches / report.days
        report.alerts_most = max(self._days.values(), default=0)
        if (labels := report.labels) is not None:
            labels.caught_value = dict(sorted(self._caught_value.items()))
            known = labels.caught + labels.false_positives
            labels.precision = labels.caught / known if known else None
            labels.recall = labels.caught / labels.frauds if labels.frauds else None
        report.samples = [
            _sample(match) for _, match in sorted(self._samples, reverse=True, key=lambda s: s[0])
        ]
        return report


def _inverse(place: str) -> str:
    """Sorts the other way round: a heap gives up its smallest."""
    return "".join(f"{15 - int(digit, 16):x}" for digit in place)


def _sample(match: Match) -> dict[str, Any]:
    found: Mapping[str, Any] = match._asdict()
    return {**found, "at": match.at.isoformat(), "fired": list(match.fired)}
