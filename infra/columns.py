"""Batches of records as Arrow columns, by pyruhvro (Avro to Arrow in Rust), agreed with `infra.codec`.

pyruhvro reads a batch whole or not at all, takes text that is not UTF-8, and passes over bytes that follow
the event. So a batch is taken only where its columns are valid and written again give the same bytes;
otherwise it is halved until the records at fault are few, and those are read one by one with fastavro.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyruhvro
from fastavro.schema import parse_schema, to_parsing_canonical_form

from infra.codec import HEADER_BYTES, Codec, Event, Undecodable, schema_id_of, without_logical_types
from schemas.declare import Topic

ONE_BY_ONE = 4
"""A stretch of this many records is not halved further."""
_PLAIN = {
    "string": pa.string(),
    "bytes": pa.binary(),
    "long": pa.int64(),
    "int": pa.int32(),
    "boolean": pa.bool_(),
    "double": pa.float64(),
    "float": pa.float32(),
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of a sequence of record values.

    Row r of `batch` (as the topic's reader schema has it) is the value number `rows[r]`; rows rise. `others`
    has the number of each value that is no event, with why: ticks (`IsTick`) are among them.
    """

    batch: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    others: list[tuple[int, Undecodable]]


def arrow_schema(topic: Topic) -> pa.Schema:
    """A topic's schema by column. Raises `LookupError`, as `Columns`."""
    try:
        return pa.schema(_fields(without_logical_types(topic.schema)))
    except LookupError as error:
        raise LookupError(f"{topic.name}: {error}; declare an array of records instead") from None


class Columns:
    """Encodes and decodes batches of one topic.

    Raises `LookupError` for a schema with maps or with unions other than of null and one type.
    """

    def __init__(self, codec: Codec, topic: Topic) -> None:
        schema = without_logical_types(topic.schema)
        self._strict = arrow_schema(topic)
        self._by_batch = _by_batch(schema)
        self.schema: pa.Schema = (
            pyruhvro.avro_to_arrow_schema(json.dumps(schema)) if self._by_batch else self._strict
        )
        self._codec = codec
        self._topic = topic
        self._text = json.dumps(schema)
        self._canonical = canonical(schema)
        self._writers: dict[int, str | None] = {}

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The events in `values`. Raises `RegistryUnavailable` at the first sight of a schema id."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for n, value in enumerate(values):
            groups[b"" if value is None else value[:HEADER_BYTES]].append(n)
        parts: list[tuple[list[int], pa.RecordBatch]] = []
        others: list[tuple[int, Undecodable]] = []
        for head, numbers in groups.items():
            writer = self._writer(head)
            if writer is None:
                self._one_by_one(values, numbers, parts, others)
            else:
                self._halving(writer, values, numbers, parts, others)
        others.sort(key=lambda other: other[0])
        if len(parts) == 1:
            numbers, batch = parts[0]
            return Decoded(batch, np.array(numbers, dtype=np.int64), others)
        rows = np.array([n for numbers, _ in parts for n in numbers], dtype=np.int64)
        order = np.argsort(rows)
        empty = pa.RecordBatch.from_pylist([], schema=self.schema)
        whole = pa.concat_batches([empty, *(batch for _, batch in parts)])
        return Decoded(whole.take(pa.array(order)), rows[order], others)

    def encode(self, batch: pa.RecordBatch) -> list[bytes]:
        """The record values of a batch in the topic's schema. At first use raises `RegistryUnavailable`."""
        if not self._by_batch:
            return [self._codec.encode(self._topic, event) for event in batch.to_pylist()]
        head = self._codec.header(self._topic)
        return [head + body for body in pyruhvro.serialize_record_batch(batch, self._text, 1)[0].to_pylist()]

    def encode_strictly(self, batch: pa.RecordBatch) -> list[bytes]:
        """As `encode`, for columns of any origin. Raises ValueError where one may not hold a null it has."""
        for field in self._strict:
            _refuse_null(field, batch.column(field.name))
        return self.encode(batch)

    def encode_events(self, events: Sequence[Event]) -> list[bytes]:
        """As `encode`, for events as dicts. Raises `Unencodable` naming the field where one does not fit."""
        try:
            arrays = [pa.array([e[f.name] for e in events], type=f.type) for f in self.schema]
            return self.encode_strictly(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        except (KeyError, ValueError, TypeError, pa.ArrowException, OverflowError):
            # Whichever it is, fastavro writes it (with a default) or says what is wrong with it.
            return [self._codec.encode(self._topic, event) for event in events]

    def _writer(self, head: bytes) -> str | None:
        """The Avro schema to read bytes with this head by; None where they are read one by one."""
        if len(head) < HEADER_BYTES or head[0] or not self._by_batch:
            return None
        schema_id = schema_id_of(head)
        if schema_id not in self._writers:
            try:
                schema = self._codec.writer_schema(self._topic, schema_id)
            except Undecodable:
                return None  # unknown now, and perhaps not for ever
            # Only the reader's own schema: what another one lacks or names otherwise is resolved by fastavro.
            self._writers[schema_id] = self._text if canonical(schema) == self._canonical else None
        return self._writers[schema_id]

    def _halving(
        self,
        writer: str,
        values: Sequence[bytes | None],
        numbers: list[int],
        parts: list[tuple[list[int], pa.RecordBatch]],
        others: list[tuple[int, Undecodable]],
    ) -> None:
        batch = _read([(values[n] or b"")[HEADER_BYTES:] for n in numbers], writer)
        if batch is not None:
            parts.append((numbers, batch))
        elif len(numbers) <= ONE_BY_ONE:
            self._one_by_one(values, numbers, parts, others)
        else:
            half = len(numbers) // 2
            self._halving(writer, values, numbers[:half], parts, others)
            self._halving(writer, values, numbers[half:], parts, others)

    def _one_by_one(
        self,
        values: Sequence[bytes | None],
        numbers: list[int],
        parts: list[tuple[list[int], pa.RecordBatch]],
        others: list[tuple[int, Undecodable]],
    ) -> None:
        events: list[Event] = []
        good: list[int] = []
        for n in numbers:
            try:
                events.append(self._codec.decode(self._topic, values[n]).event)
                good.append(n)
            except Undecodable as error:
                others.append((n, error))
        if good:
            parts.append((good, pa.RecordBatch.from_pylist(events, schema=self.schema)))


def events_of(batch: pa.RecordBatch) -> list[Event]:
    """The rows of a batch as dicts (several times faster than its own `to_pylist`)."""
    names = batch.schema.names
    columns = [column.to_pylist() for column in batch.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _read(bodies: list[bytes], writer: str) -> pa.RecordBatch | None:
    """The batch, or None where not every body is exactly one event."""
    try:
        batch = pyruhvro.deserialize_array(bodies, writer)
        batch.validate(full=True)
        if pyruhvro.serialize_record_batch(batch, writer, 1)[0].to_pylist() == bodies:
            return batch
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # a panic in Rust is none of Exception's
        return None
    return None


def canonical(schema: Any) -> str:
    """Avro's parsing canonical form: equal for schemas that describe the same bytes."""
    text: str = to_parsing_canonical_form(parse_schema(without_logical_types(schema)))
    return text


def _refuse_null(field: pa.Field, array: pa.Array) -> None:
    # pyruhvro would write the type's zero for it.
    if not field.nullable and array.null_count:
        raise ValueError(f"{field.name} may not be null")
    if pa.types.is_list(field.type):
        _refuse_null(field.type.value_field, array.flatten())
    elif pa.types.is_struct(field.type):
        present = array.drop_null()
        for n, inner in enumerate(field.type):
            _refuse_null(inner, present.field(n))


def _fields(schema: Any) -> list[pa.Field]:
    return [pa.field(f["name"], *_type(f["type"])) for f in schema["fields"]]


def _type(schema: Any) -> tuple[pa.DataType, bool]:
    """The column that holds values of an Avro schema, and whether null is among them."""
    match schema:
        case str() if schema in _PLAIN:
            return _PLAIN[schema], False
        case [*branches] if len(branches) == 2 and "null" in branches:
            other = next(branch for branch in branches if branch != "null")
            return _type(other)[0], True
        case {"type": "record"}:
            return pa.struct(_fields(schema)), False
        case {"type": "array", "items": items}:
            return pa.list_(pa.field("item", *_type(items))), False
        case {"type": "enum"}:
            return pa.string(), False
        case {"type": "fixed", "size": size}:
            return pa.binary(size), False
        case {"type": str() | dict() | list() as other} if other not in ("map", "record", "array"):
            return _type(other)
    raise LookupError(f"a field of type {json.dumps(schema)[:80]} has no column")


def _by_batch(schema: Any) -> bool:
    """Whether pyruhvro reads values of this Avro schema as fastavro does."""
    match schema:
        case str():
            return schema != "bytes"
        case [first, second]:
            return bool(first == "null") and _by_batch(second)
        case {"type": "record", "fields": fields}:
            return all(_by_batch(f["type"]) for f in fields)
        case {"type": "array", "items": items}:
            return _by_batch(items)
        case {"type": "enum"}:
            return True
        case {"type": other}:
            return bool(other != "fixed") and _by_batch(other)
    return False
