"""Rows that go into COPY by column, without being made one by one.

A table whose mapping gives its columns (`RowMapping.columns`) and whose types are plain is copied from Arrow
in Postgres' binary form (pgpq). Whatever the database refuses of a block is found row by row, as elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pgpq
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Message

from infra.checkpoints import TopicPartition
from schemas.declare import Topic

ARROW_TYPES: dict[int, pa.DataType] = {
    16: pa.bool_(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    25: pa.string(),
    700: pa.float32(),
    701: pa.float64(),
    1009: pa.list_(pa.string()),
    1016: pa.list_(pa.int64()),
    1184: pa.timestamp("us", "UTC"),
}
"""What a column's values are in Arrow, by the oid of its Postgres type."""


MS_MIN, MS_MAX = (
    int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 1000
    for year, month, day in ((1, 1, 1), (9999, 12, 31))
)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive events of one partition on their way into the tables; each makes one row in each table.

    Row r is `messages[numbers[r]]`. `columns` has, by the table's place in its pipeline, its columns by name.
    """

    at: TopicPartition
    topic: Topic
    messages: Sequence[Message]
    numbers: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    events: pa.RecordBatch
    columns: Mapping[int, Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.numbers)

    def since(self, offset: int) -> Block:
        """What of it lies at this offset or later."""
        first = int(np.searchsorted(self.offsets, offset))
        if first == 0:
            return self
        return Block(
            self.at,
            self.topic,
            self.messages,
            self.numbers[first:],
            self.offsets[first:],
            self.events.slice(first),
            {i: {n: column[first:] for n, column in columns.items()} for i, columns in self.columns.items()},
        )


class Layout:
    """A table's columns in the order of its COPY. Raises LookupError where a type has no plain column."""

    def __init__(self, names: Sequence[str], oids: Sequence[int]) -> None:
        unknown = [name for name, oid in zip(names, oids, strict=True) if oid not in ARROW_TYPES]
        if unknown:
            raise LookupError(f"column {unknown[0]} is of a type that is copied row by row only")
        fields = zip(names, (ARROW_TYPES[oid] for oid in oids), strict=True)
        self.schema = pa.schema([pa.field(name, type_) for name, type_ in fields])

    def batch(self, parts: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
        """The parts, one after the other. Raises `pa.ArrowException` for a misfit."""
        # Together: each cast costs something whatever it is given.
        arrays = [
            pa.concat_arrays([_array(columns[field.name]) for columns in parts]).cast(field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def copy_data(self, parts: Sequence[Mapping[str, Any]]) -> bytes:
        """The parts, one after the other, as COPY reads them. Raises `pa.ArrowException` for a misfit."""
        encoder = pgpq.ArrowToPostgresBinaryEncoder(self.schema)
        batch = self.batch(parts)
        return encoder.write_header() + encoder.write_batch(batch) + encoder.finish()

    def pieces(self, parts: Sequence[Mapping[str, Any]], first: int) -> Iterator[tuple[bytes, bytes]]:
        """Each row as binary COPY has it, without its number of columns: the `first` columns, and the others.
        Raises `pa.ArrowException` for a misfit."""
        batch = self.batch(parts)
        encoder = pgpq.ArrowToPostgresBinaryEncoder(self.schema)
        begin = len(encoder.write_header())
        data = bytes(begin) + encoder.write_batch(batch) + encoder.finish()
        # Where each value ends, row after row.
        lengths = np.stack([np.full(len(batch), _COUNT_BYTES), *map(_lengths, batch.columns)], axis=1)
        ends = np.cumsum(lengths.ravel()).reshape(lengths.shape) + begin
        if len(batch) and int(ends[-1, -1]) + _TRAILER_BYTES != len(data):
            raise pa.ArrowInvalid(f"rows up to {int(ends[-1, -1])} were written in {len(data)} bytes")
        begins, splits, stops = (ends[:, n].tolist() for n in (0, first, -1))
        for begin, split, stop in zip(begins, splits, stops, strict=True):
            yield data[begin:split], data[split:stop]


def layout_of(names: Sequence[str], oids: Sequence[int]) -> Layout | None:
    """The layout, or None where rows of such columns are copied one by one."""
    try:
        return Layout(names, oids)
    except LookupError:
        return None


_COUNT_BYTES, _TRAILER_BYTES = 2, 2
_ARRAY_BYTES = 20


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """How many bytes each value takes in binary COPY, with its length before it."""
    kind = column.type
    if pa.types.is_list(kind):
        before = np.concatenate([[0], np.cumsum(_lengths(column.flatten()))])
        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(counts.astype(np.int64))
        sizes = before[ends] - before[ends - counts] + _ARRAY_BYTES
    elif pa.types.is_string(kind):
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        width = 1 if pa.types.is_boolean(kind) else kind.bit_width // 8
        sizes = np.full(len(column), width, dtype=np.int64)
    if column.null_count:
        sizes = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, sizes)
    found: npt.NDArray[np.int64] = sizes + 4
    return found


def _array(values: Any) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values)


def ms(values: pa.Array) -> pa.Array:
    """Milliseconds since 1970 UTC as timestamps. Raises ValueError for years before 1 or after 9999."""
    bounds = pc.min_max(values).as_py()
    if bounds["min"] is not None and not MS_MIN <= bounds["min"] <= bounds["max"] <= MS_MAX:
        raise ValueError(f"{bounds} are no milliseconds of the years 1 to 9999")
    return values.cast(pa.timestamp("ms", "UTC"))
