"""From batches of records to those that may be decided, in columns; the others with why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.broker import PartitionBatch
from infra.codec import IsTick, schema_id_of
from infra.columns import Columns
from infra.dead_letters import reason_given
from schemas.declare import FUTURE_MS, RECORD_BYTES, Topic
from schemas.platform import TICK
from streams.decide import ColumnRecords, Event, Record

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that no decision is made of. `number` is its place in the batch."""

    number: int
    error_class: str
    reason: str
    field: str | None = None
    schema_id: int | None = None
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A batch read. `newest_ms` is the newest event time among records and ticks; 0 without any."""

    records: ColumnRecords
    ticks: list[Record]
    refused: list[Refusal]
    newest_ms: int


def read(
    batches: Sequence[PartitionBatch], topic: Topic, columns: Columns, *, is_input: bool
) -> list[Reading]:
    """Decode batches of one topic and check what every event must keep to: size, key, a time that has come.

    At once, as each call costs something whatever it is given; a Reading for each batch.
    """
    messages = [m for batch in batches for m in batch.messages]
    ends = np.cumsum([len(batch.messages) for batch in batches])
    partitions = np.repeat([batch.at.partition for batch in batches], np.diff(ends, prepend=0))
    values = [m.value() for m in messages]
    offsets = np.array([m.offset() for m in messages], dtype=np.int64)
    append_ms = np.array([m.timestamp()[1] for m in messages], dtype=np.int64)
    refused: list[Refusal] = []
    ticks: list[tuple[int, Record]] = []
    too_large: dict[int, bytes] = {}
    if is_input:
        # Its result could be more than the broker takes, and the processor would never get past it.
        too_large = {n: v for n, v in enumerate(values) if v is not None and len(v) > RECORD_BYTES}
        for n, value in too_large.items():
            values[n] = None
            reason = f"it has {len(value)} bytes, and an event at most {RECORD_BYTES}; send it in parts"
            schema_id = schema_id_of(value) if value[0] == 0 else None
            refused.append(Refusal(n, "oversized", reason, schema_id=schema_id))
    decoded = columns.decode(values)
    for n, error in decoded.others:
        if isinstance(error, IsTick):
            # Like any event time, a tick's must not run ahead: timers that it ends cannot be set again.
            if error.event[TICK.event_time] <= append_ms[n] + FUTURE_MS:
                place = (topic.name, int(partitions[n]), int(offsets[n]), int(append_ms[n]))
                ticks.append((n, Record(*place, error.event, is_tick=True)))
        elif n not in too_large:
            reason = reason_given(messages[n]) or error.reason
            refused.append(Refusal(n, "undecodable", reason, schema_id=error.schema_id))
    rows, events = decoded.rows, decoded.batch
    times_ms = events.column(topic.event_time).to_numpy() // topic.event_time_unit_per_ms
    ahead = times_ms > append_ms[rows] + FUTURE_MS
    keys = [str(key).encode() for key in events.column(topic.key).to_pylist()]
    strayed = np.array(
        [messages[n].key() != key for n, key in zip(rows.tolist(), keys, strict=True)], dtype=bool
    )
    bad = strayed | ahead
    if bad.any():
        for row in np.flatnonzero(bad).tolist():
            event = events.slice(row, 1).to_pylist()[0]
            refused.append(_misplaced(int(rows[row]), bool(strayed[row]), values, event, topic))
        good = pa.array(np.flatnonzero(~bad))
        rows, events, times_ms = rows[~bad], events.take(good), times_ms[~bad]
    records = ColumnRecords(topic.origin, partitions[rows], offsets[rows], append_ms[rows], events)
    refused.sort(key=lambda r: r.number)
    first, first_row, found = 0, 0, []
    for end in ends.tolist():
        end_row = int(np.searchsorted(rows, end))
        here = [tick for n, tick in ticks if first <= n < end]
        newest_ms = [int(times_ms[first_row:end_row].max()) if end_row > first_row else 0]
        found.append(
            Reading(
                records.slice(first_row, end_row),
                here,
                [replace(r, number=r.number - first) for r in refused if first <= r.number < end],
                max(newest_ms + [t.event[TICK.event_time] for t in here]),
            )
        )
        first, first_row = end, end_row
    return found


def _misplaced(number: int, strayed: bool, values: list[Any], event: Event, topic: Topic) -> Refusal:
    schema_id = schema_id_of(values[number])
    if strayed:
        return Refusal(
            number,
            "invalid",
            f"the record's key is not the event's {topic.key}, so its order is not kept;"
            f" produce it with key {event[topic.key]!r}",
            topic.key,
            schema_id,
            event,
        )
    return Refusal(
        number,
        "invalid",
        "the event time lies more than 5 minutes after the record's append time; set the producer's clock",
        topic.event_time,
        schema_id,
        event,
    )
