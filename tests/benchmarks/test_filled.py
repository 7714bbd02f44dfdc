"""Tables that are full before a slice: what a slice adds comes out again, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.filled import BEGIN_MS, PARTITIONED, SINGLE, Arrangement, Filled, RandomIds, random_ids
from benchmarks.transactions import START_MS, Transactions
from infra.postgres import Connection, connect
from infra.settings import Settings

ROWS = 2_500


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url) as connection:
        yield connection


@pytest.mark.parametrize("arrangement", [PARTITIONED, SINGLE], ids=lambda a: a.name)
def test_a_slice_leaves_the_rows_that_were_there(connection: Connection, arrangement: Arrangement) -> None:
    """So many rows, all before a slice's; its own are seen by themselves, and gone after it."""
    table = Filled(connection, arrangement, ROWS)
    table.load()
    try:
        ask = (
            f"SELECT count(*), max(occurred_at) < to_timestamp({BEGIN_MS / 1000}) FROM {table.name}".encode()
        )
        assert connection.execute(ask).fetchone() == (ROWS, True)
        if arrangement.time:
            connection.execute(
                f"SELECT millrace_ensure_partitions('{table.name}', to_timestamp({START_MS / 1000}),"
                f" to_timestamp({START_MS / 1000 + 999_999}))".encode()
            )
        connection.execute(
            f"INSERT INTO {table.name} SELECT 'tx-' || n, 'default',"
            f" to_timestamp({START_MS / 1000} + 300 * n), card_id, 1, 'EUR', 'm', 'NL', 'ONLINE', 1, 1, 0, 0,"
            " n"
            f" FROM generate_series(1, 3000) n, (SELECT card_id FROM {table.name} LIMIT 1) c".encode()
        )
        seen = f"SELECT count(*), min(source_offset) FROM {table.slice_rows}".encode()
        assert connection.execute(seen).fetchone() == (3_000, 1)
        table.restore()
        assert connection.execute(ask).fetchone() == (ROWS, True)
    finally:
        table.drop()


def test_ids_differ_and_neighbours_lie_far_apart() -> None:
    """Random ids are one to one, and no two in a row share their first digits."""
    ids = random_ids(np.arange(50_000, dtype=np.uint64)).to_pylist()
    assert len(set(ids)) == 50_000
    assert all(a[3:5] != b[3:5] for a, b in pairwise(ids))


def test_transactions_with_random_ids_are_otherwise_the_same() -> None:
    """Only the id is another one, so that the fold holds for both."""
    plain, random = list(Transactions(300).scored()), list(RandomIds(300).scored())
    assert [{**e, "event_id": ""} for e in plain] == [{**e, "event_id": ""} for e in random]
    assert not {e["event_id"] for e in plain} & {e["event_id"] for e in random}
