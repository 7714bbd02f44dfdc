"""One row is proved by its chain up to the next signed head; whatever was done to it is found."""

from __future__ import annotations

import re

import pytest

from infra.ledger.erasure import erase
from infra.ledger.proof import Proof, prove
from infra.ledger.verify import rows_of
from schemas.fraud import CARD_LEDGER
from tests.infra.ledger.conftest import Ledger, decision
from tests.infra.ledger.test_tampering import as_owner


@pytest.fixture
def written(ledger: Ledger) -> Ledger:
    """Three chains of 14 rows; heads are signed after 8 and after 12 of each."""
    for first, last, signed in ((0, 24, True), (24, 36, True), (36, 42, False)):
        ledger.send([decision(n) for n in range(first, last)])
        ledger.store()
        if signed:
            ledger.sign()
    return ledger


def proof(ledger: Ledger, sequence: int, partition: int = 1) -> Proof:
    return prove(ledger.connection, CARD_LEDGER, ledger.heads, partition, sequence)


@pytest.mark.parametrize(
    ("sequence", "head", "walked"), [(1, 8, 8), (8, 8, 1), (9, 12, 4), (12, 12, 1), (13, None, 1)]
)
def test_a_row_is_what_was_written(written: Ledger, sequence: int, head: int | None, walked: int) -> None:
    """From the row to the first head behind it each hash is computed anew, and no row beyond."""
    found = proof(written, sequence)
    assert found.finding is None and not found.erased
    assert (found.head.sequence if found.head else None, found.walked) == (head, walked)
    (row,) = rows_of(written.connection, CARD_LEDGER, 1, (sequence, sequence))
    assert row.hash is not None and found.hash == row.hash.hex()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE card_ledger SET risk = 0.5 WHERE {at} = 10", "row 10 of .* is not the one that was written"),
        (
            "UPDATE card_ledger SET card_id = 'c' WHERE {at} = 9",
            "row 9 of .* is not the one that was written",
        ),
        ("DELETE FROM card_ledger WHERE {at} = 11", "row 11 of .* is missing"),
        ("DELETE FROM card_ledger WHERE {at} >= 11", "2 rows up to the head .* are cut off"),
    ],
)
def test_whatever_was_done_is_found(written: Ledger, statement: str, says: str) -> None:
    """An edit, a deletion or a truncation between the row and its head; others are proved all the same."""
    with as_owner(written) as run:
        run(statement.format(at="source_partition = 1 AND chain_sequence"))
        found = proof(written, 9)
        assert found.finding is not None
        assert re.search(says, found.finding)
        assert proof(written, 8).finding is None
        assert proof(written, 9, partition=2).finding is None


def test_a_head_that_was_altered_is_none(written: Ledger) -> None:
    """Its signature is not its own: the walk goes on to the next one, which finds what was rewritten."""
    lines = written.heads.path.read_text().splitlines()
    forged = [
        line.replace('"hash":"', '"hash":"00', 1) if '"sequence":8,' in line and "/1@" in line else line
        for line in lines
    ]
    assert forged != lines
    written.heads.path.write_text("\n".join(forged) + "\n")
    found = proof(written, 1)
    assert found.head is not None and found.head.sequence == 12 and found.finding is None


def test_an_erased_row_is_proved_and_says_so(written: Ledger) -> None:
    """Its seal stands for what was destroyed."""
    erase(written.connection, written.heads, CARD_LEDGER, "default", "card-0", "request 1", "tests")
    erased = [
        (row.partition, row.sequence)
        for row in rows_of(written.connection, CARD_LEDGER)
        if row.key is None and row.sequence
    ]
    assert erased
    for partition, sequence in erased:
        found = proof(written, sequence, partition)
        assert found.erased and found.finding is None


def test_a_row_that_is_not_there_is_not_proved(written: Ledger) -> None:
    """Nor one of a partition without a chain."""
    for partition, sequence in ((1, 99), (7, 1)):
        with pytest.raises(LookupError, match="has no row"):
            proof(written, sequence, partition)
