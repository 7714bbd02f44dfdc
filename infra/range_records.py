"""Range records against the log: they cover every offset once, and the log still says what they say."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infra.checkpoints import TopicPartition
from infra.postgres import Connection
from infra.verification import Check


@dataclass(slots=True)
class Reread:
    """One partition as it was read again, in any order: per record its offset, the hash of its id where it
    was stored (0 where not), and whether the sink refused it."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    refused: array[int] = field(default_factory=lambda: array("b"))

    def add(self, offset: int, id_hash: int, is_refused: bool) -> None:
        self.offsets.append(offset)
        self.hashes.append(id_hash)
        self.refused.append(is_refused)


def check_ranges(
    connection: Connection,
    consumer: str,
    at: TopicPartition,
    begin: int,
    end: int,
    reread: Reread,
    cover: Check,
    recount: Check,
) -> None:
    """Check the range records of [begin, end), where `end` lies at the consumer's position or before it.

    `cover`: none is missing and none overlaps. `recount`: those that lie within the stretch as a whole name
    as many records, as many dead letters and the same ids as the log.
    """
    if begin >= end:
        return
    ranges = [
        tuple(int(str(v)) for v in row)
        for row in connection.execute(
            "SELECT from_offset, to_offset, records_total, dead_total, ids_hash FROM range_records"
            " WHERE consumer = %s AND topic = %s AND partition = %s AND to_offset > %s AND from_offset < %s"
            " ORDER BY from_offset",
            (consumer, at.topic, at.partition, begin, end),
        )
    ]
    cover.compared += len(ranges)
    reached = begin
    for n, (from_offset, to_offset, *_) in enumerate(ranges):
        if from_offset > reached:
            cover.fails(_gap(consumer, at, reached, from_offset), (at, reached))
        elif n and from_offset < reached:
            cover.fails(
                f"{consumer} has two range records for {at} offset {from_offset}; its records may have taken"
                " effect twice, look at the rows with that source_offset",
                (at, from_offset),
            )
        reached = max(reached, to_offset)
    if reached < end:
        cover.fails(_gap(consumer, at, reached, end), (at, reached))

    inside = [r for r in ranges if r[0] >= begin and r[1] <= end]
    recount.compared += len(inside)
    offsets = np.array(reread.offsets, dtype=np.int64)
    order = np.argsort(offsets, kind="stable")
    offsets = offsets[order]
    refused = _sums(np.array(reread.refused, dtype=np.uint64)[order])
    hashes = _sums(np.array(reread.hashes, dtype=np.uint64)[order])
    for from_offset, to_offset, records, dead, ids_hash in inside:
        i, j = (int(n) for n in np.searchsorted(offsets, (from_offset, to_offset)))
        found = (j - i, int(refused[j]) - int(refused[i]), (int(hashes[j]) - int(hashes[i])) % 2**64)
        if found == (records, dead, ids_hash % 2**64):
            continue
        what = (
            f"{records} records, where the log has {found[0]}"
            if found[0] != records
            else f"{dead} dead letters, where the table has {found[1]}"
            if found[1] != dead
            else "other event ids than the log holds"
        )
        recount.fails(
            f"{consumer} noted for {at} offsets {from_offset} to {to_offset - 1} {what}", (at, from_offset)
        )


def _sums(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Running sums modulo 2^64, beginning with 0."""
    return np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(values, dtype=np.uint64)))


def _gap(consumer: str, at: TopicPartition, first: int, end: int) -> str:
    return (
        f"{consumer} has passed {at} offsets {first} to {end - 1} without a range record;"
        " replay that stretch (`millrace replay plan`)"
    )
