"""What each query's results are, from all events at once in pandas, and the check of what a slice left.

The folds share no code with any subject and know neither partitions nor watermarks. What they share with
ours is the definition of the query, written down again.

A slice may end before its input does. So a result may be missing, but not before another one that must come
after it: of its auction (q0, q1, q2), of its partition (q5, q7: windows in their order), or, for q8, one of
its partition of which both the person and the first auction of the window come later than its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.harness import Check
from benchmarks.nexmark.declared import PARTITIONS
from benchmarks.nexmark.stream import START_MS, Ints, Rows, Stream, partition_of, rows_of
from infra.codec import HEADER_BYTES
from infra.columns import Columns

HOP_MS, HOPS_A_WINDOW = 2_000, 5
TEN_SECONDS_MS = 10_000
TAIL_MS = 640_000
"""Windows of the stream's last ten minutes (of a short stream: of its second half) are not counted. They may
stay open: nothing comes after them, and whoever waits with a grace waits in vain."""


@dataclass(frozen=True)
class Expected:
    """All results of a query: `batch` makes those of some numbers, `numbers` finds them by id (else -1).

    `group` says which of them have an order among one another, `ranks` (two to each) where in it they stand.
    The first `counted` of them, for which `inputs` records are read, tell how far a subject is.
    """

    inputs: int
    counted: int
    batch: Callable[[Ints], pa.RecordBatch]
    numbers: Callable[[pa.StringArray], Ints]
    group: Ints
    ranks: tuple[Ints, Ints]

    def __len__(self) -> int:
        return len(self.group)

    def check(self, records: Iterable[list[bytes]], columns: Columns) -> Check:
        """Compare results, in any order, with these. Passes if each has its value, none comes twice, none is
        left out before one that is there, and there is one at all.
        """
        times = np.zeros(len(self), np.int64)
        wrong = found_hash = expected_hash = 0
        for values in records:
            decoded = columns.decode(values)
            numbers = self.numbers(decoded.batch.column("event_id"))
            known = numbers >= 0
            wrong += len(values) - int(known.sum())
            numbers = numbers[known]
            found, expected = decoded.batch.filter(pa.array(known)), self.batch(numbers)
            wrong += int(_differ(found, expected).sum())
            np.add.at(times, numbers, 1)
            # Sums: the order in which partitions are read must not matter.
            found_hash += _hash(values[n] for n in decoded.rows[known].tolist())
            expected_hash += _hash(columns.encode(expected))
        there = times > 0
        counts = {
            "records": int(times.sum()) + wrong,
            "distinct": int(there.sum()),
            "duplicates": int((times - there).sum()),
            "wrong": wrong,
            "left_out": left_out(there, self.group, self.ranks),
        }
        passed = counts["distinct"] > 0 and not (
            counts["wrong"] or counts["duplicates"] or counts["left_out"]
        )
        return Check(passed, counts, f"{found_hash:016x}", f"{expected_hash:016x}")


def _hash(records: Iterable[bytes]) -> int:
    """Of the events alone: a schema's id may be another one in the next run."""
    return sum(zlib.crc32(record[HEADER_BYTES:]) for record in records)


def _differ(found: pa.RecordBatch, expected: pa.RecordBatch) -> Any:
    """Which rows are not the expected ones."""
    differ = np.zeros(len(expected), np.bool_)
    for name in expected.schema.names:
        mine, theirs = found.column(name), expected.column(name)
        if not mine.equals(theirs):
            equal = pc.fill_null(pc.equal(mine, theirs), False)
            differ |= ~equal.to_numpy(zero_copy_only=False)
    return differ


def left_out(there: Any, group: Ints, ranks: tuple[Ints, Ints]) -> int:
    """How many are missing though one of their group with both ranks higher is there."""
    if not len(group):
        return 0
    first, second = ranks
    order = np.lexsort((-first, group))
    reach = int(second.max()) + 2
    # Groups lie further apart than any rank, so the running maximum starts anew in each.
    behind = pd.factorize(group[order])[0] * reach
    at = behind + second[order]
    highest = np.maximum.accumulate(np.where(there[order], at, behind - 1))
    return int((~there[order] & (highest > at)).sum())


def expected(query: str, stream: Stream) -> Expected:
    """The results of a query over the stream."""
    return {"q0": _q0, "q1": _q1, "q2": _q2, "q5": _q5, "q7": _q7, "q8": _q8}[query](stream)


# Queries of single bids


def _of_bids(
    stream: Stream, change: Callable[[pa.RecordBatch], pa.RecordBatch], chosen: Ints | None = None
) -> Expected:
    bids = stream.bids
    rows = np.arange(len(bids)) if chosen is None else chosen

    def numbers(event_ids: pa.StringArray) -> Ints:
        found = rows_of(bids.topic, event_ids)
        at = np.minimum(np.searchsorted(rows, found), len(rows) - 1)
        return np.where(rows[at] == found, at, -1)

    return Expected(
        inputs=len(bids),
        counted=len(rows),
        batch=lambda wanted: change(bids.batch(rows[wanted])),
        numbers=numbers,
        group=bids.numbers["auction_id"][rows],
        ranks=(rows, rows),
    )


def _q0(stream: Stream) -> Expected:
    return _of_bids(stream, lambda bids: bids)


def _q1(stream: Stream) -> Expected:
    def change(bids: pa.RecordBatch) -> pa.RecordBatch:
        price = bids.column("price_minor").to_numpy() * 908 // 1000
        at = bids.schema.get_field_index
        return bids.set_column(at("price_minor"), "price_minor", pa.array(price)).set_column(
            at("currency"), "currency", pa.array(["EUR"] * len(bids), pa.string())
        )

    return _of_bids(stream, change)


def _q2(stream: Stream) -> Expected:
    chosen = np.flatnonzero(stream.bids.numbers["auction_id"] % 123 == 0)
    fields = ["event_id", "tenant", "occurred_at", "auction_id", "price_minor"]
    return _of_bids(stream, lambda bids: bids.select(fields), chosen)


# Queries of windows


def _of_table(
    inputs: int, results: pd.DataFrame, counted: int, group: Ints, ranks: tuple[Ints, Ints]
) -> Expected:
    """From a table of results, `event_id` first."""
    table = results.copy()
    table.insert(1, "tenant", "default")
    batch = pa.RecordBatch.from_pydict(
        {
            name: pa.array(values, pa.int64() if pd.api.types.is_integer_dtype(values) else pa.string())
            for name, values in table.items()
        }
    )
    known = {event_id: n for n, event_id in enumerate(results["event_id"])}
    return Expected(
        inputs=inputs,
        counted=counted,
        batch=lambda wanted: batch.take(pa.array(wanted)),
        numbers=lambda event_ids: np.array([known.get(i, -1) for i in event_ids.to_pylist()], np.int64),
        group=group,
        ranks=ranks,
    )


def _partitions(keys: pd.Series[int]) -> Ints:
    return np.array([partition_of(str(key).encode(), PARTITIONS) for key in keys], np.int64)


def _frame(rows: Rows, *names: str) -> pd.DataFrame:
    return pd.DataFrame({name: rows.numbers[name] for name in names})


def _id(results: pd.DataFrame, *names: str) -> pd.Series[str]:
    text = results[names[0]].astype(str)
    for name in names[1:]:
        text = text + "/" + results[name].astype(str)
    return text


def _of_windows(stream: Stream, results: pd.DataFrame) -> Expected:
    end = results["occurred_at"].to_numpy()
    until = max(stream.end_ms - TAIL_MS, (START_MS + stream.end_ms) // 2)
    counted, inputs = ((at_ms <= until).sum() for at_ms in (end, stream.bids.numbers["occurred_at"]))
    return _of_table(int(inputs), results, int(counted), _partitions(results["occurred_at"]), (end, end))


def _q5(stream: Stream) -> Expected:
    bids = _frame(stream.bids, "occurred_at", "auction_id")
    # A bid lies in the windows that end after it, the next five multiples of two seconds.
    bids["next"] = bids["occurred_at"] // HOP_MS + 1
    slices = bids.groupby(["next", "auction_id"]).size().rename("bids").reset_index()
    windows = pd.concat(slices.assign(end=(slices["next"] + n) * HOP_MS) for n in range(HOPS_A_WINDOW))
    counts = windows.groupby(["end", "auction_id"])["bids"].sum().reset_index()
    hot = counts[counts["bids"] == counts.groupby("end")["bids"].transform("max")]
    hot = hot.sort_values(["end", "auction_id"]).reset_index(drop=True).rename(columns={"end": "occurred_at"})
    hot.insert(0, "event_id", _id(hot, "occurred_at", "auction_id"))
    return _of_windows(stream, hot)


def _q7(stream: Stream) -> Expected:
    bids = _frame(stream.bids, "occurred_at", "auction_id", "bidder_id", "price_minor")
    bids = bids.rename(columns={"occurred_at": "bid_at"})
    bids["occurred_at"] = bids["bid_at"] // TEN_SECONDS_MS * TEN_SECONDS_MS + TEN_SECONDS_MS
    best = bids[bids["price_minor"] == bids.groupby("occurred_at")["price_minor"].transform("max")]
    best = best.sort_values(["occurred_at", "bid_at"]).reset_index(drop=True)
    best = best[["occurred_at", "auction_id", "bidder_id", "bid_at", "price_minor"]]
    best.insert(0, "event_id", _id(best, "occurred_at", "auction_id", "bidder_id", "bid_at"))
    return _of_windows(stream, best)


def _q8(stream: Stream) -> Expected:
    persons = _frame(stream.persons, "occurred_at", "person_id").rename_axis("person_row").reset_index()
    auctions = _frame(stream.auctions, "occurred_at", "seller_id").rename_axis("auction_row").reset_index()
    for side in (persons, auctions):
        side["occurred_at"] = side["occurred_at"] // TEN_SECONDS_MS * TEN_SECONDS_MS + TEN_SECONDS_MS
    sold = auctions.groupby(["occurred_at", "seller_id"])["auction_row"].min().reset_index()
    both = persons.merge(sold, left_on=["occurred_at", "person_id"], right_on=["occurred_at", "seller_id"])
    both = both.sort_values("person_row").reset_index(drop=True)
    rows = both["person_row"].to_numpy()
    vocabulary, places = stream.persons.words["name"]
    both["name"] = np.array(vocabulary)[places[rows]]
    both.insert(0, "event_id", _id(both, "occurred_at", "person_id"))
    return _of_table(
        len(stream.persons) + len(stream.auctions),
        both[["event_id", "occurred_at", "person_id", "name"]],
        len(both),
        _partitions(both["person_id"]),
        (rows, both["auction_row"].to_numpy()),
    )
