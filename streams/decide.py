"""What a domain writes: a pure decision over a batch, and the values it may answer with.

A `Logic` is the whole of a domain's processor. It reads no clock and does no I/O: all it knows is its
state, the records in log order, and the versions (rules, fences, models) that are in force for them.
The runtime in `streams/runtime.py` feeds it, produces what it emits and commits its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.columns import events_of
from schemas.declare import Topic
from schemas.platform import TICK

Event = dict[str, Any]
"""A decoded value: timestamps are integers in the schema's unit (UTC), never datetimes."""

Ints = npt.NDArray[np.int64]

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Record:
    """One decoded record with its place in the log. `append_ms` is the broker's append time, UTC.

    `is_tick`: the event is a tick (`schemas.platform`), which only `TickedLogic.tick` gets to see.
    """

    topic: str
    partition: int
    offset: int
    append_ms: int
    event: Event
    is_tick: bool = False


@dataclass(slots=True, frozen=True)
class ColumnRecords:
    """Records of one topic by column: row r of `batch` is the event at `offsets[r]` of `partitions[r]`.

    Those of a partition stand together, in log order. `append_ms` is the broker's append time, UTC.
    Timestamps are integers in the schema's unit.
    """

    topic: str
    partitions: Ints
    offsets: Ints
    append_ms: Ints
    batch: pa.RecordBatch

    @classmethod
    def joined(cls, parts: Sequence[ColumnRecords]) -> ColumnRecords:
        """Those of several partitions of one topic, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            parts[0].topic,
            np.concatenate([p.partitions for p in parts]),
            np.concatenate([p.offsets for p in parts]),
            np.concatenate([p.append_ms for p in parts]),
            pa.concat_batches([p.batch for p in parts]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def slice(self, start: int, end: int) -> ColumnRecords:
        """The rows from `start` up to, not including, `end`."""
        return self._chosen(slice(start, end), self.batch.slice(start, end - start))

    def take(self, rows: Ints) -> ColumnRecords:
        """These rows; they rise."""
        return self._chosen(rows, self.batch.take(pa.array(rows)))

    def _chosen(self, rows: Any, batch: pa.RecordBatch) -> ColumnRecords:
        return ColumnRecords(
            self.topic, self.partitions[rows], self.offsets[rows], self.append_ms[rows], batch
        )

    def record(self, row: int) -> Record:
        """One of them."""
        (record,) = self.slice(row, row + 1).records()
        return record

    def records(self) -> list[Record]:
        """The same one by one."""
        places = (self.partitions.tolist(), self.offsets.tolist(), self.append_ms.tolist())
        return [Record(self.topic, *row) for row in zip(*places, events_of(self.batch), strict=True)]


Encode = Callable[[Topic, pa.RecordBatch], list[bytes]]
Decode = Callable[[Topic, Sequence[bytes]], list[Event]]


def _no_codec(topic: Topic, _: Any) -> Any:
    raise LookupError(f"nobody encodes {topic.name} here; give Outcomes a codec")


@dataclass(slots=True)
class Outcomes:
    """What a batch came to: each record has its answer emitted, is a duplicate, or is a dead letter."""

    emitted: list[tuple[Topic, Event]] = field(default_factory=list)
    encoded: list[tuple[Topic, Sequence[bytes], Sequence[bytes]]] = field(default_factory=list)
    """Topic, keys and values of answers that are encoded already."""
    dead: list[tuple[Record, str, str, str]] = field(default_factory=list)
    duplicates_total: int = 0
    encode: Encode = _no_codec
    """The record values of a batch of answers, as the topic's schema has them."""
    decode: Decode = _no_codec
    """The events of answers that were encoded before."""

    def emit(self, topic: Topic, event: Event) -> None:
        """Answer with an event. Its key and id are the fields that the topic declares."""
        self.emitted.append((topic, event))

    def emit_encoded(self, topic: Topic, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Answer with record values that `encode` made, now or for an earlier batch; a key to each."""
        self.encoded.append((topic, keys, values))

    def dead_letter(self, record: Record, field_name: str, reason: str, error_class: str = "invalid") -> None:
        """Refuse a record: it takes no effect, and `reason` (one sentence with the remedy) says why."""
        self.dead.append((record, error_class, field_name, reason))

    def duplicate(self, records_total: int = 1) -> None:
        """Count records whose event id was applied before; the caller may emit the stored answer again."""
        self.duplicates_total += records_total


class State(Protocol):
    """The state of one partition. Deltas and snapshot chunks are self-contained: `load` takes either."""

    def delta(self) -> bytes | None:
        """What has changed since the last call, or None. Called only after a batch has fully succeeded."""
        ...

    def snapshot(self) -> Iterator[bytes]:
        """The whole state in chunks of at most a few MB."""
        ...

    def load(self, chunk: bytes) -> None:
        """Apply one chunk of a snapshot, or one delta, in the order in which they were written."""
        ...


class NoState:
    """The state of a processor that keeps none."""

    def delta(self) -> bytes | None:
        return None

    def snapshot(self) -> Iterator[bytes]:
        return iter(())

    def load(self, chunk: bytes) -> None:
        raise ValueError(
            "a processor without state was given some; its checkpoint belongs to another processor"
        )


class KeyedState(Generic[T]):
    """State per key, MessagePack-encoded (`T` is a msgspec type). `put` after every change of a value.

    A changed value is written whole into the next delta; keep values small, or write a State of your own.
    """

    def __init__(self, value_type: type[T], chunk_keys: int = 5_000) -> None:
        self._values: dict[str, T] = {}
        self._changed: set[str] = set()
        self._chunk_keys = chunk_keys
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(dict[str, value_type | None])  # type: ignore[valid-type]

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        return self._values.get(key)

    def put(self, key: str, value: T) -> None:
        self._values[key] = value
        self._changed.add(key)

    def delete(self, key: str) -> None:
        if self._values.pop(key, None) is not None:
            self._changed.add(key)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._values.items())

    def delta(self) -> bytes | None:
        if not self._changed:
            return None
        # Sorted: the same batch must give the same bytes whatever the hash seed.
        out = {key: self._values.get(key) for key in sorted(self._changed)}
        self._changed.clear()
        return self._encoder.encode(out)

    def snapshot(self) -> Iterator[bytes]:
        keys = sorted(self._values)
        for start in range(0, len(keys), self._chunk_keys):
            yield self._encoder.encode({k: self._values[k] for k in keys[start : start + self._chunk_keys]})

    def load(self, chunk: bytes) -> None:
        for key, value in self._decoder.decode(chunk).items():
            if value is None:
                self._values.pop(key, None)
            else:
                self._values[key] = value


Versions = Mapping[str, Any]
"""What is in force, by kind ('rules', 'fences', 'model', ...): the values that `Logic.load_version` made."""

S = TypeVar("S", bound=State)
S_co = TypeVar("S_co", bound=State, covariant=True)
S_contra = TypeVar("S_contra", bound=State, contravariant=True)


class Logic(Protocol[S_co]):
    """A domain's decision, as `RecordLogic` or `ColumnLogic`. One instance a process, state a partition."""

    version_kinds: Sequence[str]
    """Kinds of versioned configuration that change decisions; empty where nothing does."""

    def new_state(self) -> S_co:
        """An empty state of one partition."""
        ...

    def load_version(self, kind: str, version: int, body: Any) -> Any:
        """Make a version usable (compile rules, read a model); may do I/O; called once per version."""
        ...


@runtime_checkable
class RecordLogic(Protocol[S_contra]):
    """A `Logic` that decides record by record."""

    def decide(self, state: S_contra, records: Sequence[Record], versions: Versions, out: Outcomes) -> None:
        """Fold records, in log order, into the state and answer each. Pure; an exception is a defect.

        The answer may not depend on how the log was cut into batches. All records come from one
        partition of one topic, and one set of versions is in force for all of them.
        """
        ...


@dataclass(slots=True, frozen=True)
class Stretch(Generic[T]):
    """The rows of one partition among those of several: from `start` up to, not including, `end`."""

    state: T
    start: int
    end: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.end)


@runtime_checkable
class ColumnLogic(Protocol[S]):
    """A `Logic` that decides by column: for what must be fast."""

    def decide_columns(
        self, stretches: Sequence[Stretch[S]], records: ColumnRecords, versions: Versions, out: Outcomes
    ) -> None:
        """As `RecordLogic.decide`, for several partitions at once: each has its own state, and no record's
        answer depends on another partition's. Answers go out by `Outcomes.encode` and `emit_encoded`.
        """
        ...


@runtime_checkable
class TickedLogic(Protocol[S_contra]):
    """A `Logic` that also answers ticks, between the records before and after them in the log.

    A processor without it passes ticks over.
    """

    def tick(self, state: S_contra, now_ms: int, record: Record, versions: Versions, out: Outcomes) -> None:
        """Act on what is due at `now_ms`, the tick's event time. Pure, as `Logic.decide`."""
        ...


LogicFactory = Callable[[], Logic[Any]]


def decide_in_order(
    logic: Any,
    state: Any,
    records: ColumnRecords,
    ticks: Sequence[Record],
    versions: Versions,
    out: Outcomes,
) -> None:
    """Hand records and ticks to a `Logic` in log order; one that is no `TickedLogic` sees no tick."""
    start = 0
    if isinstance(logic, TickedLogic):
        for tick in ticks:
            end = int(np.searchsorted(records.offsets, tick.offset))
            _decide(logic, state, records.slice(start, end), versions, out)
            logic.tick(state, tick.event[TICK.event_time], tick, versions, out)
            start = end
    _decide(logic, state, records.slice(start, len(records)) if start else records, versions, out)


def decide_together(
    logic: Any, parts: Sequence[tuple[Any, ColumnRecords]], versions: Versions, out: Outcomes
) -> None:
    """Hand records of several partitions of one topic, each with its state, to a `Logic`; at once, if it can.

    What a batch costs whatever its size is then paid once for all of them.
    """
    if not isinstance(logic, ColumnLogic):
        for state, records in parts:
            _decide(logic, state, records, versions, out)
        return
    parts = [(state, records) for state, records in parts if len(records)]
    if not parts:
        return
    ends = np.cumsum([len(records) for _, records in parts]).tolist()
    stretches = [Stretch(state, end - len(r), end) for (state, r), end in zip(parts, ends, strict=True)]
    logic.decide_columns(stretches, ColumnRecords.joined([r for _, r in parts]), versions, out)


def _decide(logic: Any, state: Any, records: ColumnRecords, versions: Versions, out: Outcomes) -> None:
    if isinstance(logic, ColumnLogic):
        decide_together(logic, [(state, records)], versions, out)
    elif len(records):
        logic.decide(state, records.records(), versions, out)
