"""Tables like the ledger that hold millions of rows before a slice begins, and hold the same ones after it.

Two layouts: `partitioned` as card_ledger is (by time, ids in the order of time, its three indexes), and
`single`, one table whose primary key is random. A slice's rows are later than those loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.transactions import CARDS, START_MS, STEP_MS, Event, Transactions
from infra.postgres import Connection
from sinks.blocks import Layout

WEEK_MS = 7 * 86_400_000
BEGIN_MS = START_MS // WEEK_MS * WEEK_MS
"""The week in which slices begin; what is loaded ends before it, so that their partitions are their own."""
BLOCK = 100_000
TOLD_ROWS = 5_000_000
LOADED_FROM = 1 << 40
"""Numbers of loaded rows, which no slice has."""
_SPREAD = 0x9E3779B97F4A7C15
TYPES = {
    "event_id": 25,
    "tenant": 25,
    "occurred_at": 1184,
    "card_id": 25,
    "amount_minor": 20,
    "currency": 25,
    "merchant_id": 25,
    "country": 25,
    "channel": 25,
    "count_24h": 20,
    "sum_24h_minor": 20,
    "score": 701,
    "source_partition": 23,
    "source_offset": 20,
}
_NAMES = {
    16: "boolean",
    20: "bigint",
    23: "integer",
    25: "text",
    701: "double precision",
    1184: "timestamptz",
}
_COLUMNS = ", ".join(f"{name} {_NAMES[oid]} NOT NULL" for name, oid in TYPES.items())


@dataclass(frozen=True)
class Arrangement:
    """A table's form: what it is called here, its key, and whether it is partitioned by time."""

    name: str
    key: tuple[str, ...]
    time: str | None
    about: str


PARTITIONED = Arrangement(
    "partitioned", ("occurred_at", "tenant", "event_id"), "occurred_at", "weeks, ids in order of time"
)
SINGLE = Arrangement("single", ("event_id",), None, "one table, random ids")


class RandomIds(Transactions):
    """The same transactions, whose ids have no order."""

    def events(self) -> Iterator[Event]:
        ids = random_ids(np.arange(self.records, dtype=np.uint64)).to_pylist()
        for event, event_id in zip(super().events(), ids, strict=True):
            yield {**event, "event_id": event_id}


def random_ids(numbers: Any) -> pa.Array:
    """An id for each number: all differ, and neighbours lie far apart."""
    spread = numbers.astype(np.uint64) * np.uint64(_SPREAD)  # odd: one to one, modulo 2^64
    return _named("rx-", spread, 20)


class Filled:
    """A table of one arrangement with so many rows."""

    def __init__(self, connection: Connection, arrangement: Arrangement, rows: int) -> None:
        self.arrangement, self.rows = arrangement, rows
        self.name = f"{arrangement.name}_{rows}"
        self.slice_rows = f"{self.name}_new"
        """A view of what a slice has added."""
        self._connection = connection
        self._blocks = 0

    def load(self) -> None:
        """Create it, fill it by COPY, and then build its indexes."""
        began = time.monotonic()
        c, name = self._connection, self.name
        with c.transaction():
            if self.arrangement.time is not None:
                c.execute("SELECT millrace_time_table(%s, 'occurred_at', '7 days', %s)", (name, _COLUMNS))
                c.execute(
                    "SELECT millrace_ensure_partitions(%s, to_timestamp(%s), to_timestamp(%s))",
                    (name, (BEGIN_MS - self.rows * STEP_MS) / 1000, (BEGIN_MS - 1) / 1000),
                )
            else:
                c.execute(f"CREATE TABLE {name} ({_COLUMNS})".encode())
            self._copy()
        c.execute(f"ALTER TABLE {name} ADD PRIMARY KEY ({', '.join(self.arrangement.key)})".encode())
        if self.arrangement.time is not None:
            c.execute(f"CREATE INDEX ON {name} (event_id)".encode())
        c.execute(f"CREATE INDEX ON {name} (card_id, occurred_at DESC, event_id DESC)".encode())
        c.execute(f"ANALYZE {name}".encode())
        self._blocks = self._ask(f"pg_relation_size('{name}') / 8192")
        since = f"occurred_at >= to_timestamp({BEGIN_MS / 1000})"
        if self.arrangement.time is None:  # (not by reading all of it)
            since += f" AND ctid >= '({max(self._blocks - 1, 0)},0)'::tid"
        c.execute(f"CREATE VIEW {self.slice_rows} AS SELECT * FROM {name} WHERE {since}".encode())
        size = self._ask(f"sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{name}')")
        print(
            f"{name}: {self.rows:,} rows, {size / 1e9:.1f} GB, loaded in {time.monotonic() - began:.0f} s",
            flush=True,
        )

    def restore(self) -> None:
        """Take out what a slice has added, leaving nothing dead behind."""
        c = self._connection
        if self.arrangement.time is None:
            c.execute(
                f"DELETE FROM {self.name} WHERE ctid >= '({max(self._blocks - 1, 0)},0)'::tid"
                f" AND occurred_at >= to_timestamp({BEGIN_MS / 1000})".encode()
            )
            c.execute(f"VACUUM {self.name}".encode())
        else:
            begins = f"{self.name}_{_stamp(BEGIN_MS)}"
            for (partition,) in c.execute(
                "SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE isleaf", (self.name,)
            ).fetchall():
                if str(partition) >= begins:
                    c.execute(f"DROP TABLE {partition}".encode())
        if left := self._ask(f"count(*) FROM {self.slice_rows}"):
            raise RuntimeError(f"{left} rows of a slice are still in {self.name}")

    def drop(self) -> None:
        """Delete it with all its rows."""
        self._connection.execute(f"DROP VIEW {self.slice_rows}".encode())
        self._connection.execute(f"DROP TABLE {self.name}".encode())
        self._connection.execute("DELETE FROM time_tables WHERE name = %s", (self.name,))

    def _copy(self) -> None:
        # Frozen where Postgres can: no slice then waits for rows to be looked at for the first time.
        options = "FORMAT BINARY" + (", FREEZE" if self.arrangement.time is None else "")
        layout = Layout(list(TYPES), list(TYPES.values()))
        statement = f"COPY {self.name} ({', '.join(TYPES)}) FROM STDIN ({options})".encode()
        for start in range(0, self.rows, TOLD_ROWS):
            until = min(start + TOLD_ROWS, self.rows)
            with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                header = True
                for first in range(start, until, BLOCK):
                    data = layout.copy_data(
                        [_rows(self.arrangement, first, min(first + BLOCK, until), self.rows)]
                    )
                    # One header before all blocks and one trailer behind them.
                    copy.write(data[0 if header else 19 : -2])
                    header = False
                copy.write(b"\xff\xff")
            if self.rows > TOLD_ROWS:
                print(f"  {self.name}: {until:,} of {self.rows:,} rows", flush=True)

    def _ask(self, what: str) -> int:
        row = self._connection.execute(f"SELECT {what}".encode()).fetchone()
        assert row is not None
        return int(str(row[0] or 0))


def _rows(arrangement: Arrangement, first: int, end: int, rows: int) -> dict[str, pa.Array]:
    """Loaded rows by column, in the order of their time."""
    n = np.arange(first, end, dtype=np.int64)
    count = len(n)
    ordered = arrangement.time is not None
    numbers = n + LOADED_FROM
    card = n * 7_919 % CARDS
    return {
        # `ld-` comes before a slice's `tx-`, as its times do.
        "event_id": _named("ld-", n, 12) if ordered else random_ids(numbers),
        "tenant": _constant("default", count),
        "occurred_at": pa.array(BEGIN_MS - (rows - n) * STEP_MS).cast(pa.timestamp("ms", "UTC")),
        "card_id": _named("card-", card, 6),
        "amount_minor": pa.array(100 + n * 31 % 50_000),
        "currency": _constant("EUR", count),
        "merchant_id": _named("merchant-", n * 17 % 1_000, 4),
        "country": _constant("NL", count),
        "channel": _constant("ONLINE", count),
        "count_24h": pa.array(1 + n % 6),
        "sum_24h_minor": pa.array(100 + n * 31 % 300_000),
        "score": pa.array((n % 1_000) / 1_000.0),
        "source_partition": pa.array((card % 12).astype(np.int32)),
        "source_offset": pa.array(n),
    }


def _named(prefix: str, numbers: Any, digits: int) -> pa.Array:
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def _constant(value: str, count: int) -> pa.Array:
    return pa.repeat(value, count)


def _stamp(at_ms: int) -> str:
    """As millrace_ensure_partitions writes a partition's begin into its name."""
    return str(np.datetime64(at_ms, "ms").astype("datetime64[m]")).translate({45: "", 58: "", 84: "t"})
