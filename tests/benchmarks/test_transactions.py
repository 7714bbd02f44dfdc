"""The benchmarks' own data, fold and checker: a figure counts only if these can say no."""

from __future__ import annotations

import pytest

from benchmarks.transactions import ID_AT, Transactions
from schemas.declare import DAY_MS
from tests.benchmarks.scores import record

DATA = Transactions(30_000)


RECORDS = [record(e) for e in DATA.scored()]
EXPECTED = DATA.hashes(RECORDS)


def test_the_fold_is_that_of_the_definition() -> None:
    """Count and sum are those of the card's transactions in (t - 24 h, t], also where one is at its edge."""
    data = Transactions(3_000)
    data.card %= 5
    data.at_ms[7] = data.at_ms[100] - DAY_MS
    data.at_ms[8] = data.at_ms[101] - DAY_MS + 1
    data.card[[7, 8, 100, 101]] = 1
    data.at_ms.sort()
    events = list(data.scored())
    for n in range(0, 3_000, 7):
        e = events[n]
        window = [
            x["amount_minor"]
            for x in events
            if x["card_id"] == e["card_id"]
            and e["occurred_at"] - DAY_MS < x["occurred_at"] <= e["occurred_at"]
        ]
        assert (e["count_24h"], e["sum_24h_minor"]) == (len(window), sum(window))


def test_the_same_transactions_come_again() -> None:
    """Two runs measure over the same data, and their ids stand where the checker looks for them."""
    assert list(Transactions(500).events()) == list(Transactions(500).events())
    assert [int(r[ID_AT]) for r in RECORDS[:50]] == list(range(50))


def test_the_first_of_them_are_themselves() -> None:
    """So many of them by themselves have the events, windows and order that they have among all."""
    assert list(DATA.first(700).scored()) == list(DATA.scored())[:700]
    assert (DATA.first(700).rank == DATA.rank[:700]).all()


def test_every_card_comes_before_any_comes_again() -> None:
    """With all cards first, so many transactions bring as many cards in; six a day of each follow."""
    data = Transactions(9_000, 3_000, all_cards_first=True)
    assert len(set(data.card[:3_000].tolist())) == 3_000
    assert data.at_ms[-1] - data.at_ms[0] == pytest.approx(9_000 / 3_000 / 6 * DAY_MS, rel=0.01)


def test_a_prefix_of_each_card_passes() -> None:
    """What a slice leaves when it is over is right as far as it goes, in whatever order it is read."""
    check = DATA.check(reversed(RECORDS[:20_000]), EXPECTED)
    assert check.passed
    assert check.counts["records"] == 20_000
    assert check.hash == check.expected_hash


@pytest.mark.parametrize(
    ("finding", "records"),
    [
        ("wrong", [*RECORDS[:99], record({**next(DATA.scored()), "event_id": f"tx-{99:012}"})]),
        ("wrong", [*RECORDS[:99], b"", b"\0\0\0\0\1 no event"]),
        ("duplicates", [*RECORDS, RECORDS[4]]),
        ("left_out", [*RECORDS[:4], *RECORDS[5:]]),
    ],
)
def test_a_fault_fails_the_check(finding: str, records: list[bytes]) -> None:
    """A wrong value, bytes that are no event, a repeated and a missing one are each found as such."""
    check = DATA.check(records, EXPECTED)
    assert not check.passed
    assert check.counts[finding] > 0


def test_nothing_at_all_fails_the_check() -> None:
    """A subject that produced nothing has not passed."""
    assert not DATA.check([], EXPECTED).passed
