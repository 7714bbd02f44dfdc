"""Records as the runtime hands them to a logic that decides by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from streams.decide import ColumnRecords, Record


def columns_of(records: Sequence[Record], schema: pa.Schema | None = None) -> ColumnRecords:
    """The same records by column; of this schema, or of what their values are."""
    names = ("partition", "offset", "append_ms")
    places = (np.array([getattr(r, name) for r in records], np.int64) for name in names)
    return ColumnRecords("t", *places, pa.RecordBatch.from_pylist([r.event for r in records], schema=schema))
