"""The sink benchmark's checker and counter, on the real database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.sink import DDL, SOURCE, Reference, Rows, twice
from benchmarks.transactions import Transactions
from infra.postgres import Connection, connect
from infra.settings import Settings

DATA = Transactions(20_000)


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url) as connection:
        yield connection
        connection.execute("DROP TABLE IF EXISTS reference, stored")


@pytest.fixture
def reference(connection: Connection) -> Iterator[Reference]:
    reference = Reference(connection, DATA)
    connection.execute(DDL.format("stored", SOURCE).encode())
    yield reference
    reference.file.unlink()


@pytest.mark.parametrize(
    ("finding", "fault"),
    [
        ("wrong", "UPDATE stored SET score = score / 2 WHERE event_id = 'tx-000000000005'"),
        ("wrong", "UPDATE stored SET event_id = 'tx-another' WHERE event_id = 'tx-000000019999'"),
        ("left_out", "DELETE FROM stored WHERE event_id = 'tx-000000000005'"),
    ],
)
def test_a_fault_fails_the_check(
    connection: Connection, reference: Reference, finding: str, fault: str
) -> None:
    """The limit's rows pass; a changed value, a row of nowhere and a missing row do not."""
    assert reference.load("stored").check.passed
    connection.execute(fault.encode())
    check = reference.check("stored")
    assert not check.passed
    assert check.counts[finding] == 1


def test_a_row_that_no_range_record_accounts_for_fails_the_check(
    connection: Connection, reference: Reference
) -> None:
    """Rows alone do not pass for our sink: what it says it has read must come to the same."""
    reference.load("stored")
    check = reference.check("stored", sink="a-sink-that-read-nothing")
    assert not check.passed
    assert check.counts["unaccounted"] == DATA.records


def test_rows_are_counted_as_they_are_committed(connection: Connection, reference: Reference) -> None:
    """The counter agrees with count(*) after each commit, and a rolled back one leaves it where it was."""
    rows = Rows(connection, "stored")
    assert rows() == 0
    for start in range(0, 9_000, 3_000):
        insert = f"INSERT INTO stored SELECT * FROM (TABLE reference OFFSET {start} LIMIT 3000) r".replace(
            "SELECT *", f"SELECT {', '.join(_columns(connection))}"
        )
        with connection.transaction(force_rollback=True):
            connection.execute(insert.encode())
        assert rows() == start
        connection.execute(insert.encode())
        assert rows() == start + 3_000


def _columns(connection: Connection) -> list[str]:
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'stored'::regclass AND attnum > 0 ORDER BY attnum"
    )
    return [str(name) for (name,) in found]


def test_records_are_sent_twice_at_the_given_distance() -> None:
    """Every so manieth record comes a second time, as it was, soon after the first."""
    sent = [e["event_id"] for e in twice(DATA.events(), 1_000)]
    assert len(sent) == 20_020
    again = [n for n, event_id in enumerate(sent) if event_id in sent[max(0, n - 30) : n]]
    assert len(again) == 20
