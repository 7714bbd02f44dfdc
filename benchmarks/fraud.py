"""The fraud pipeline as production runs it, as a benchmark's subject: its input, its versions, its checker.

Worker and sink are the programs of the platform (`python -m streams fraud`, `python -m sinks fraud`) with
their default settings, 50 rules, and the model that `millrace models` trains. The transactions are those of
`benchmarks.transactions`, with the fields that production's schema adds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.harness import Check
from benchmarks.rules import fifty
from benchmarks.transactions import Transactions, numbered, one_of, records_of
from infra import versions
from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.columns import Columns
from infra.postgres import Connection
from infra.prepare import FIRST_MODELS
from infra.settings import Settings
from schemas.declare import DAY_MS
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER, CARD_TRANSACTIONS, PIPELINE

WORKER = (sys.executable, "-m", "streams", PIPELINE.name)
SINK = (sys.executable, "-m", "sinks", PIPELINE.name)
HISTORY = 480_000
"""Eight days of transactions, as far as a card's memory reaches: with them before, all windows are full."""
WIDTHS_MS = {"10m": 600_000, "1h": 3_600_000, "24h": DAY_MS, "7d": 7 * DAY_MS}
MCCS = (
    "4111",
    "4121",
    "4814",
    "5311",
    "5411",
    "5541",
    "5732",
    "5812",
    "5912",
    "5999",
    "6011",
    "7011",
    "7995",
)
HOMES = ("NL", "BE", "DE", "FR")
BATCH = 10_000
ID = "tx-[0-9]{12}"
RISKS = ("fraud_chance", "model_risk", "risk")
NONE = -1
"""Stands for null, in the table's columns and in the topic's."""
COPY_HEADER_BYTES = 19
COPY_BLOCK_BYTES = 1 << 20

Ints = npt.NDArray[np.int64]
Fields = dict[str, Ints]
"""Columns by name; doubles as their bits."""


def card_transactions(data: Transactions, start: int, end: int) -> pa.RecordBatch:
    """The transactions from a number up to another, as CARD_TRANSACTIONS has them."""
    card, merchant = data.card[start:end], data.merchant[start:end]
    columns = data.columns(start, end) | {
        "customer_id": numbered("customer-", card, 6),
        "terminal_id": numbered("terminal-", merchant * 3 + card % 3, 6),
        "home_country": one_of(HOMES, card),
        "mcc": one_of(MCCS, merchant),
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in CARD_TRANSACTIONS.fields})


def prepare(settings: Settings, connection: Connection, codec: Codec) -> dict[str, int]:
    """Topics, schemas, model and rules; returns the version of each kind that is in force."""
    topics = [t for declared in PIPELINE.topics for t in (declared, declared.dlq)]
    ensure_topics(settings.kafka, map(TopicSpec.of, topics))
    for topic in topics:
        codec.register(topic)
    subprocess.run(FIRST_MODELS, env=dict(settings.environ), check=True)
    versions.publish(connection, PIPELINE.name, "rules", fifty())
    kinds = [
        str(kind)
        for (kind,) in connection.execute(
            "SELECT DISTINCT kind FROM versions WHERE pipeline = %s", (PIPELINE.name,)
        )
    ]
    return versions.latest(connection, PIPELINE.name, kinds)


class Checker:
    """Compares all decisions and all rows with the fold of what was sent.

    Each transaction has one decision and one row, nothing else has; its counts and sums are those of the
    definition; it was decided by the versions in force, of which the model has both forests (else there is no
    chance of fraud); and row and decision agree bit by bit.
    """

    def __init__(self, data: Transactions, in_force: dict[str, int]) -> None:
        """`data`: what was sent; `in_force`: versions by kind."""
        self._records = data.records
        self.expected: Fields = {"occurred_at": data.at_ms, "amount_minor": data.amount}
        for word, width_ms in WIDTHS_MS.items():
            names = (f"count_{word}", f"sum_{word}_minor")
            if set(names) <= CARD_DECISIONS.fields.keys():
                self.expected |= zip(names, data.window(width_ms), strict=True)
        self.expected |= {
            f"{kind}_version": np.full(data.records, version)
            for kind, version in in_force.items()
            if f"{kind}_version" in CARD_DECISIONS.fields
        }
        self.names = [*self.expected, *RISKS]

    def check(self, settings: Settings, codec: Codec, connection: Connection) -> Check:
        """Read topic and table from their beginnings and compare."""
        columns = Columns(codec, CARD_DECISIONS)
        values = batched(records_of(settings, CARD_DECISIONS))
        decisions = self.gather(self._of_decisions(columns.decode(some).batch) for some in values)
        rows = self.gather(self._of_rows(connection))
        return self.compare(decisions, rows, self._accounted(connection))

    def gather(self, batches: Iterable[Fields]) -> Fields:
        """The checked fields by the transaction's number, and how many `times` it came.

        A batch has its transactions' numbers under `number`; `unknown` counts those that were never sent.
        """
        found = {name: np.zeros(self._records, np.int64) for name in (*self.names, "times")}
        found["unknown"] = np.zeros(1, np.int64)
        for batch in batches:
            known = (batch["number"] >= 0) & (batch["number"] < self._records)
            here = batch["number"][known]
            found["unknown"] += int((~known).sum())
            np.add.at(found["times"], here, 1)
            for name in self.names:
                found[name][here] = batch[name][known]
        return found

    def compare(self, decisions: Fields, rows: Fields, accounted: int) -> Check:
        """`accounted`: how many rows the sink's range records come to."""
        differs = np.zeros(self._records, bool)
        for name, values in self.expected.items():
            differs |= decisions[name] != values
        apart = np.zeros(self._records, bool)
        for name in self.names:
            apart |= rows[name] != decisions[name]
        stored = int(rows["times"].sum() + rows["unknown"][0])
        counts = {
            "sent": self._records,
            "decisions": int(decisions["times"].sum() + decisions["unknown"][0]),
            "rows": stored,
            "unknown": int(decisions["unknown"][0] + rows["unknown"][0]),
            "without_decision": int((decisions["times"] == 0).sum()),
            "without_row": int((rows["times"] == 0).sum()),
            "duplicates": sum(int(np.maximum(found["times"] - 1, 0).sum()) for found in (decisions, rows)),
            "wrong": int(differs.sum()),
            "rows_unlike_decisions": int(apart.sum()),
            "without_chance": int((decisions["fraud_chance"].view(np.float64) == NONE).sum()),
            "unaccounted": abs(accounted - stored),
        }
        faults = [name for name in counts if name not in ("sent", "decisions", "rows")]
        passed = self._records > 0 and not any(counts[name] for name in faults)
        return Check(passed, counts, _hash(self.expected, rows), _hash(self.expected, self.expected))

    def _of_decisions(self, batch: pa.RecordBatch) -> Fields:
        ids = batch.column("event_id")
        digits = pc.if_else(pc.match_substring_regex(ids, f"^{ID}$"), pc.utf8_slice_codeunits(ids, 3), "-1")
        return {
            "number": digits.cast(pa.int64()).to_numpy(zero_copy_only=False),
            **{name: _whole(batch.column(name)).cast(pa.int64()).to_numpy() for name in self.expected},
            **{name: _whole(batch.column(name)).to_numpy().view(np.int64) for name in RISKS},
        }

    def _of_rows(self, connection: Connection) -> Iterator[Fields]:
        """The ledger: all columns take eight bytes, so that COPY's binary form is an array of rows."""
        wanted = [
            f"CASE WHEN event_id ~ '^{ID}$' THEN substr(event_id, 4)::bigint ELSE -1 END",
            "(extract(epoch FROM occurred_at) * 1000)::bigint",
            *(f"coalesce({name}, {NONE})::bigint" for name in self.names[1:] if name not in RISKS),
            *(f"coalesce({name}, {NONE})" for name in RISKS),
        ]
        row = np.dtype([("columns", ">i2"), *((f, t) for n in ("number", *self.names) for f, t in _field(n))])
        statement = f"COPY (SELECT {', '.join(wanted)} FROM {CARD_LEDGER.name}) TO STDOUT (FORMAT BINARY)"
        with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for some in rows_of(map(bytes, copy), row):
                yield {name: some[name].astype(np.int64) for name in ("number", *self.names)}

    def _accounted(self, connection: Connection) -> int:
        row = connection.execute(
            "SELECT coalesce(sum(records_total - duplicates_total - dead_total), 0)::bigint"
            " FROM range_records WHERE consumer = %s AND topic = %s",
            (PIPELINE.sink_name, CARD_DECISIONS.name),
        ).fetchone()
        assert row is not None
        return int(str(row[0]))


def batched(records: Iterator[bytes]) -> Iterator[list[bytes]]:
    """The records in lists."""
    some: list[bytes] = []
    for record in records:
        some.append(record)
        if len(some) == BATCH:
            yield some
            some = []
    if some:
        yield some


def _whole(values: pa.Array) -> pa.Array:
    return values.fill_null(NONE)


def _field(name: str) -> list[tuple[str, str]]:
    """A column of eight bytes in COPY's binary form: its length and its value."""
    return [(f"{name} bytes", ">i4"), (name, ">i8")]


def rows_of(data: Iterable[bytes], row: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Rows of one size out of COPY's binary form, which begins with a header and ends with two bytes."""
    blocks: list[bytes] = []
    size, skip = 0, COPY_HEADER_BYTES
    for block in data:
        blocks.append(block)
        size += len(block)
        if size >= COPY_BLOCK_BYTES:
            whole = b"".join(blocks)
            end = skip + (len(whole) - skip) // row.itemsize * row.itemsize
            yield np.frombuffer(whole[skip:end], row)
            blocks, size, skip = [whole[end:]], len(whole) - end, 0
    whole = b"".join(blocks)[skip:]
    yield np.frombuffer(whole[: len(whole) // row.itemsize * row.itemsize], row)


def _hash(names: Iterable[str], found: Fields) -> str:
    """64 bits of whole columns: each value multiplied with an odd number of its row, and of its column."""
    total = 0
    for n, name in enumerate(names, 1):
        rows = np.arange(len(found[name]), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        mixed = (found[name].astype(np.uint64) + np.uint64(n)) * rows
        total += int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64)) * (2 * n + 1)
    return f"{total % 2**64:016x}"
