"""The checker for subjects that may repeat results: what changes nothing passes, all else is found."""

from __future__ import annotations

import pytest

from benchmarks.effects import effects
from benchmarks.transactions import Transactions
from tests.benchmarks.scores import record

DATA = Transactions(20_000)


RECORDS = [record(e) for e in DATA.scored()]
EXPECTED = DATA.hashes(RECORDS)


def test_a_result_that_comes_again_as_it_was_passes() -> None:
    """Duplicates of the same bytes are counted, and the results are those that they would be without."""
    plain = effects(DATA, RECORDS, EXPECTED, complete=True)
    again = effects(DATA, [*RECORDS[:500], *RECORDS[300:]], EXPECTED, complete=True)
    assert plain.passed and again.passed
    assert (plain.counts["duplicates"], again.counts["duplicates"]) == (0, 200)
    assert plain.hash == again.hash == plain.expected_hash == again.expected_hash


def test_cards_may_come_in_any_order_but_not_a_cards_results() -> None:
    """Reading partitions in another order gives the same hash; two results of one card exchanged do not."""
    by_card = sorted(range(DATA.records), key=lambda n: (int(DATA.card[n]), n))
    moved = effects(DATA, [RECORDS[n] for n in by_card], EXPECTED, complete=True)
    assert moved.passed and moved.hash == effects(DATA, RECORDS, EXPECTED, complete=True).hash
    first = next(i for i, n in enumerate(by_card) if DATA.card[n] == DATA.card[by_card[i + 1]])
    by_card[first], by_card[first + 1] = by_card[first + 1], by_card[first]
    exchanged = effects(DATA, [RECORDS[n] for n in by_card], EXPECTED, complete=True)
    assert not exchanged.passed and exchanged.counts["out_of_order"] == 1
    assert exchanged.hash != exchanged.expected_hash


@pytest.mark.parametrize(
    ("finding", "records"),
    [
        ("differing", [*RECORDS, record({**next(DATA.scored()), "score": 0.5})]),
        ("wrong", [record({**next(DATA.scored()), "score": 0.5}), *RECORDS[1:]]),
        ("wrong", [*RECORDS, b"\0\0\0\0\1 no event"]),
        ("missing", RECORDS[1:]),
    ],
)
def test_a_fault_fails_the_check(finding: str, records: list[bytes]) -> None:
    """A repeated result with another value, a wrong one, bytes that are none, and a missing one are found."""
    check = effects(DATA, records, EXPECTED, complete=True)
    assert not check.passed
    assert check.counts[finding] == 1


def test_what_was_not_reached_is_missing_only_where_all_should_be_there() -> None:
    """A slice that is over before its input passes as far as it came; a gap within a card does not."""
    assert effects(DATA, RECORDS[:5_000], EXPECTED, complete=False).passed
    assert effects(DATA, RECORDS[:5_000], EXPECTED, complete=True).counts["missing"] == 15_000
    assert effects(DATA, RECORDS[1:], EXPECTED, complete=False).counts["missing"] == 1
