"""What a ledger must hold of a file, and a ledger that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import rules
from benchmarks.handbook import Expected, first_rows, generate, weighted
from infra.postgres import Connection, connect
from infra.settings import Settings
from models.rules.ruleset import load_rules

ROWS = 3_000
VERSIONS = {"rules": 2, "model": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generate(tmp_path / "file.parquet", ROWS)
    return tmp_path / "file.parquet"


@pytest.fixture
def ledger(database: Settings, path: Path) -> Iterator[Connection]:
    """A stand-in of card_ledger that holds what the file says, windows by a loop over all pairs."""
    table = pq.read_table(path).to_pydict()
    at = [int(t.timestamp() * 1000) for t in table["occurred_at"]]
    minor = [round(a * 100) for a in table["amount"]]
    with connect(database.database_url) as connection:
        connection.execute(
            "CREATE TEMP TABLE card_ledger (event_id text, occurred_at timestamptz, card_id text,"
            " amount_minor bigint, count_24h bigint, sum_24h_minor bigint, count_7d bigint,"
            " sum_7d_minor bigint, rules_version int, model_version int, fired_rules text[])"
        )
        connection.execute("CREATE TEMP TABLE dead_letters (topic text)")
        with connection.cursor() as cursor, cursor.copy("COPY card_ledger FROM STDIN") as copy:
            for n, customer in enumerate(table["customer_id"]):
                seen = [i for i in range(n + 1) if table["customer_id"][i] == customer]
                day, week = ([minor[i] for i in seen if at[i] > at[n] - days * 86_400_000] for days in (1, 7))
                windows = (len(day), sum(day), len(week), sum(week))
                name = f"handbook-{table['transaction_id'][n]}"
                card = f"handbook-card-{customer}"
                copy.write_row((name, table["occurred_at"][n], card, minor[n], *windows, 2, 1, ["a"]))
        yield connection


def test_the_ledger_of_the_file_passes(ledger: Connection, path: Path) -> None:
    """Rows, sums and windows found by a plain loop are those that are expected."""
    check = Expected.of(path).check(ledger, VERSIONS)
    assert check.passed, check
    assert check.hash == check.expected_hash


@pytest.mark.parametrize(
    "fault",
    [
        "DELETE FROM card_ledger WHERE event_id = 'handbook-7'",
        "INSERT INTO card_ledger SELECT * FROM card_ledger WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET amount_minor = amount_minor + 1 WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET count_24h = 9 WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET occurred_at = occurred_at + interval '1 s' WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET card_id = card_id || '1' WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET model_version = 0 WHERE event_id = 'handbook-7'",
        "UPDATE card_ledger SET fired_rules = '{}'",
        "INSERT INTO dead_letters VALUES ('card-transactions')",
    ],
)
def test_a_fault_fails_the_check(ledger: Connection, path: Path, fault: str) -> None:
    """A row missing, twice, with another value or not fully scored, and a dead letter, each fail it."""
    ledger.execute(fault.encode())
    assert not Expected.of(path).check(ledger, VERSIONS).passed


def test_hashes_hold_values_at_their_rows() -> None:
    """Two values exchanged, or one of them nought, give another sum."""
    numbers = np.arange(3)
    hashes = {weighted(numbers, np.array(v)) for v in ([5, 7, 9], [7, 5, 9], [0, 7, 9], [5, 7, 10])}
    assert len(hashes) == 4


def test_a_file_out_of_order_is_refused(path: Path, tmp_path: Path) -> None:
    """Its windows would depend on which transactions had come: nothing could be expected."""
    table = pq.read_table(path)
    pq.write_table(table.take(np.arange(ROWS)[::-1]), tmp_path / "back.parquet")
    with pytest.raises(ValueError, match="not in the order of its times"):
        Expected.of(tmp_path / "back.parquet")


def test_the_first_rows_of_a_file_are_taken_as_they_are(path: Path, tmp_path: Path) -> None:
    """So many rows from its start; a file of another format is refused by what it lacks."""
    first_rows(path, tmp_path / "first.parquet", 10)
    assert pq.read_table(tmp_path / "first.parquet").equals(pq.read_table(path).slice(0, 10))
    pq.write_table(pq.read_table(path).drop(["amount"]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no column amount"):
        first_rows(tmp_path / "other.parquet", tmp_path / "first.parquet", 10)


def test_there_are_fifty_rules_that_can_be_loaded() -> None:
    """As many as promised, none of them refused."""
    assert len(load_rules(2, rules.fifty()).rules) == rules.COUNT
