"""Records as the runtime hands them to a logic that decides by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from streams.decide import ColumnRecords, Record


def columns_of(records: Sequence[Record], schema: pa.Schema | None = None) -> ColumnRecords:
    """The same records by column; of this schema, or of what their values are."""
    offsets, append_ms = ([getattr(r, name) for r in records] for name in ("offset", "append_ms"))
    batch = pa.RecordBatch.from_pylist([r.event for r in records], schema=schema)
    return ColumnRecords("t", 0, np.array(offsets, np.int64), np.array(append_ms, np.int64), batch)
