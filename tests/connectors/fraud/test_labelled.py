"""Labelled files: read alike whatever they are written in, and refused by name where they are not right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from connectors.fraud.labelled import BATCH, LabelledError, read

ROWS = BATCH + 10
GOOD = pa.table(
    {
        "transaction_id": np.arange(ROWS),
        "occurred_at": pa.array(np.arange(ROWS) // 3 * 60_000 + 1_522_540_800_000, pa.timestamp("ms")),
        "customer_id": np.arange(ROWS) % 50,
        "terminal_id": np.arange(ROWS) % 70,
        "amount": np.arange(ROWS) % 1_000 / 100,
        "is_fraud": (np.arange(ROWS) % 9 == 0).astype(np.int8),
    }
)


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def changed(name: str, values: object) -> pa.Table:
    return GOOD.set_column(GOOD.column_names.index(name), name, pa.array(values))


def test_rows_come_in_order_whatever_order_and_file_they_are_in(tmp_path: Path) -> None:
    """Halves in two files, out of order, one of them as CSV, give what one file in order gives."""
    whole = read([written(tmp_path / "whole.parquet", GOOD)])
    shuffled = GOOD.take(pa.array(np.random.default_rng(1).permutation(ROWS)))
    part = shuffled.slice(5_000)
    part = part.set_column(1, "occurred_at", pc.strftime(part["occurred_at"].cast(pa.timestamp("s"))))
    pyarrow.csv.write_csv(part, tmp_path / "part.csv")
    found = read([written(tmp_path / "part.parquet", shuffled.slice(0, 5_000)), tmp_path / "part.csv"])
    for one, other in zip(whole.batches(), found.batches(), strict=True):
        assert one[0].equals(other[0]) and (one[1] == other[1]).all()
    assert (whole.amount_minor == found.amount_minor).all() and (whole.is_fraud == found.is_fraud).all()
    assert (whole.customers == found.customers).all() and (np.diff(whole.occurred_at) >= 0).all()


def test_batches_are_what_is_ingested(tmp_path: Path) -> None:
    """The stream sees each transaction as `millrace ingest fraud` sends it, and its label beside it."""
    batches = list(read([written(tmp_path / "a.parquet", GOOD)]).batches())
    assert [len(labels) for _, labels in batches] == [BATCH, 10]
    event = batches[1][0].slice(9, 1).to_pylist()[0]
    assert (event["event_id"], event["amount_minor"]) == (f"handbook-{ROWS - 1}", (ROWS - 1) % 1_000)
    assert batches[1][1][9] == ((ROWS - 1) % 9 == 0)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (GOOD.drop(["is_fraud"]), "has no column is_fraud; give a file with transaction_id, occurred_at"),
        (GOOD.slice(0, 0), "has no row"),
        (changed("customer_id", [None, *range(ROWS - 1)]), "customer_id is empty in 1 rows"),
        (changed("terminal_id", ["x"] * ROWS), "terminal_id of a.parquet is string and no int64"),
        (changed("transaction_id", [0, 0, *range(2, ROWS)]), "transaction_id 0 comes more than once"),
        (changed("amount", [-0.01, *[1.0] * (ROWS - 1)]), "amount is negative or no number"),
        (changed("is_fraud", [2, *[0] * (ROWS - 1)]), "is_fraud is neither 0 nor 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, table: pa.Table, reason: str) -> None:
    """Column, reason and remedy are named."""
    with pytest.raises(LabelledError, match=reason):
        read([written(tmp_path / "a.parquet", table)])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """What is no Parquet is said to be none."""
    (tmp_path / "a.parquet").write_text("nothing")
    with pytest.raises(LabelledError, match=r"a\.parquet is no Parquet or CSV file"):
        read([tmp_path / "a.parquet"])
