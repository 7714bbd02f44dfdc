"""Rows of files as events: what a domain declares (`FileSource`) for `millrace ingest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from schemas.declare import Topic

Event = dict[str, Any]
"""A decoded value: timestamps are integers in the schema's unit (UTC), never datetimes."""

Events = Callable[[pa.RecordBatch, int], Iterator[tuple[Topic, Event]]]
"""Events of a batch of rows, in row order; the integer is the file's row number of the first row.

Pure and deterministic: the same file gives the same events with the same ids in the same order, or a
second ingest could not know what the first has sent.
"""


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A kind of file that a domain can ingest, recognised by its columns.

    `topic` is the topic that most rows go to. `whole` names a column whose consecutive equal values
    belong together (the lines of an invoice): batches are never cut between such rows.
    """

    name: str
    topic: Topic
    columns: frozenset[str]
    events: Events
    whole: str | None = None
