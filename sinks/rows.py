"""What a domain writes for its sink: how an event becomes rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from schemas.declare import Table

Event = dict[str, Any]
Row = tuple[Any, ...]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class RowMapping:
    """Rows of one table from one event of its topic; values in the order of `table.columns`. Pure.

    A value is a Python type that psycopg adapts to the column: str, int, float, bool, datetime (`from_ms`),
    bytes, list, `psycopg.types.json.Jsonb`, or None.
    """

    table: Table
    rows: Callable[[Event], Iterable[Row]]
    columns: Callable[[pa.RecordBatch], Mapping[str, Any]] | None = None
    """The same for a batch of events at once, where each makes exactly one row: `table.columns` by name, as
    Arrow arrays. For tables that must be fast; see `sinks.blocks`."""


def from_ms(epoch_ms: int) -> datetime:
    """Milliseconds since 1970 UTC as an aware datetime."""
    return _EPOCH + timedelta(milliseconds=epoch_ms)
