"""What processors would say to one event, tried on an empty state: nothing is produced, nothing stored.

A correction can be tried so before it is sent. What depends on earlier events (a duplicate, stock that is not
there) a trial cannot know; what is wrong with the event itself it tells, in the processor's own words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from infra import versions
from infra.codec import Codec, Event
from infra.columns import Columns, events_of
from infra.postgres import Connection
from schemas.declare import Pipeline, Processor, Topic
from streams.decide import ColumnRecords, LogicFactory, Outcomes, decide_together


@dataclass(frozen=True)
class Trial:
    """A processor's verdict: `refused` with the field and the reason, or the number of `answers` by topic."""

    processor: str
    field: str | None
    refused: str | None
    answers: Mapping[str, int]


def tried(
    connection: Connection,
    codec: Codec,
    pipeline: Pipeline,
    logics: Mapping[str, LogicFactory],
    topic: Topic,
    value: bytes,
    append_ms: int,
) -> Iterator[Trial]:
    """The verdict of each processor that reads the topic on a record value that can be decoded.

    With the newest published versions. Raises `RegistryUnavailable`, `psycopg.Error`.
    """
    decoded = Columns(codec, topic).decode([value])
    place = np.zeros(len(decoded.rows), dtype=np.int64)
    records = ColumnRecords(topic.name, place, place, np.full_like(place, append_ms), decoded.batch)
    for processor in pipeline.processors:
        if topic in processor.sources:
            yield _tried(connection, codec, pipeline, processor, logics[processor.name], records)


def _tried(
    connection: Connection,
    codec: Codec,
    pipeline: Pipeline,
    processor: Processor,
    factory: LogicFactory,
    records: ColumnRecords,
) -> Trial:
    logic = factory()
    in_force = {
        kind: logic.load_version(kind, n, versions.body(connection, pipeline.name, kind, n))
        for kind, n in versions.latest(connection, pipeline.name, logic.version_kinds).items()
        if n != versions.NONE_PUBLISHED
    }

    def encode(topic: Topic, batch: pa.RecordBatch) -> list[bytes]:
        return Columns(codec, topic).encode(batch)

    def decode(topic: Topic, values: Sequence[bytes]) -> list[Event]:
        return events_of(Columns(codec, topic).decode(values).batch)

    out = Outcomes(encode=encode, decode=decode)
    decide_together(logic, [(logic.new_state(), records)], in_force, out)
    answers = Counter(topic.name for topic, _ in out.emitted)
    for topic, keys, _ in out.encoded:
        answers[topic.name] += len(keys)
    _, _, field, reason = out.dead[0] if out.dead else (None, None, None, None)
    return Trial(processor.name, field, reason, dict(answers))
