"""A file of card transactions in the Fraud Detection Handbook's format, and what its ledger must hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Check
from benchmarks.transactions import Ints, folded
from infra.postgres import Connection
from schemas.declare import DAY_MS

COLUMNS = ("transaction_id", "occurred_at", "customer_id", "terminal_id", "amount")
START_MS = 1_522_540_800_000  # 2018-04-01
STEP_MS = 9_000
CUSTOMERS, TERMINALS = 5_000, 10_000
"""As many as the handbook has, with two transactions a customer and day as there."""
HASHED = ("occurred_at", "card", "amount_minor", "count_24h", "sum_24h_minor", "count_7d", "sum_7d_minor")


def generate(path: Path, rows: int) -> None:
    """Write a file of so many made up transactions, always the same ones; about one in a hundred a fraud."""
    random = np.random.default_rng(11)
    amount = np.round(random.gamma(2.0, 27.0, rows), 2)
    table = pa.table(
        {
            "transaction_id": np.arange(rows, dtype=np.int32),
            "occurred_at": pa.array(START_MS + np.arange(rows) * STEP_MS, pa.timestamp("ms")),
            "customer_id": random.integers(0, CUSTOMERS, rows, dtype=np.int32),
            "terminal_id": random.integers(0, TERMINALS, rows, dtype=np.int32),
            "amount": amount,
            "is_fraud": ((amount > 220) | (random.random(rows) < 0.005)).astype(np.int8),
        }
    )
    pq.write_table(table, path)


def first_rows(source: Path, path: Path, rows: int) -> None:
    """Write a file of the first rows of another one. Raises ValueError where it has another format."""
    missing = sorted(set(COLUMNS) - set(pq.read_schema(source).names))
    if missing:
        raise ValueError(f"{source.name} has no column {missing[0]}; give a file of the handbook's format")
    pq.write_table(pq.read_table(source).slice(0, rows), path)


@dataclass(frozen=True)
class Expected:
    """What the ledger must hold of a file: made from the file alone, without any code that is measured."""

    rows: int
    amount_minor: int
    hashes: dict[str, int]
    """Of each of `HASHED` the sum over all transactions of (id + 1) * value, modulo 2^64."""

    @classmethod
    def of(cls, path: Path) -> Expected:
        """Of a file in which no customer's transaction comes before an older one (else ValueError)."""
        table = pq.read_table(path, columns=list(COLUMNS))
        number, customer = (_ints(table[name]) for name in ("transaction_id", "customer_id"))
        at_ms = _ints(table["occurred_at"].cast(pa.timestamp("ms")).cast(pa.int64()))
        amount = np.array([round(value * 100) for value in table["amount"].to_pylist()], dtype=np.int64)
        order = np.argsort(customer, kind="stable")
        later = np.diff(at_ms[order]) >= 0
        if not (later | (np.diff(customer[order]) > 0)).all():
            raise ValueError(f"{path.name} is not in the order of its times; sort it by occurred_at")
        values = {"occurred_at": at_ms, "card": customer, "amount_minor": amount}
        for name, days in (("24h", 1), ("7d", 7)):
            count, total = folded(customer, at_ms, amount, days * DAY_MS)
            values |= {f"count_{name}": count, f"sum_{name}_minor": total}
        return cls(len(number), int(amount.sum()), {name: weighted(number, values[name]) for name in HASHED})

    def check(self, connection: Connection, versions: dict[str, int]) -> Check:
        """Compare the ledger, its dead letters and the versions it was decided by."""
        values = {name: name for name in HASHED} | {
            "occurred_at": "(extract(epoch FROM occurred_at) * 1000)::bigint",
            "card": "substr(card_id, 15)::bigint",  # behind handbook-card-
        }
        hashes = ", ".join(
            f"coalesce(sum((n + 1)::numeric * {values[name]}), 0) %% 18446744073709551616" for name in HASHED
        )
        row = connection.execute(
            f"SELECT count(*), count(DISTINCT n), coalesce(sum(amount_minor), 0),"
            f" count(*) FILTER (WHERE rules_version <> %(rules)s OR model_version <> %(model)s),"
            f" count(*) FILTER (WHERE cardinality(fired_rules) > 0),"
            f" (SELECT count(*) FROM dead_letters), {hashes}"
            f" FROM (SELECT *, substr(event_id, 10)::bigint AS n FROM card_ledger) ledger".encode(),
            versions,
        ).fetchone()
        assert row is not None
        rows, distinct, amount, otherwise, fired, dead, *found = (int(str(value)) for value in row)
        differing = [n for n, value in zip(HASHED, found, strict=True) if value != self.hashes[n]]
        counts = {
            "rows": rows,
            "expected_rows": self.rows,
            "duplicates": rows - distinct,
            "dead_letters": dead,
            "amount_minor": amount,
            "expected_amount_minor": self.amount_minor,
            "not_fully_scored": otherwise,
            "with_a_rule_fired": fired,
            **{f"differs_{name}": 1 for name in differing},
        }
        passed = (
            (rows, distinct, amount, dead, otherwise) == (self.rows, self.rows, self.amount_minor, 0, 0)
            and fired > 0
            and not differing
        )
        return Check(passed, counts, _joined(found), _joined(self.hashes.values()))


def weighted(number: Ints, values: Ints) -> int:
    """The sum of (number + 1) * value, modulo 2^64."""
    weights = (number + 1).astype(np.uint64)
    products: npt.NDArray[np.uint64] = weights * values.astype(np.uint64)
    return int(products.sum(dtype=np.uint64))


def _joined(hashes: Any) -> str:
    return "-".join(f"{value:016x}" for value in hashes)


def _ints(column: pa.ChunkedArray) -> Ints:
    values: Ints = column.to_numpy().astype(np.int64)
    return values
