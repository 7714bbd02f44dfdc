"""Rows by column: each row's bytes are found in what COPY is given, whatever types the table has."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.blocks import ARROW_TYPES, Layout

FRAME = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
EXAMPLES: dict[pa.DataType, st.SearchStrategy[object]] = {
    pa.bool_(): st.booleans(),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): st.text(max_size=9),
    pa.list_(pa.string()): st.lists(st.text(max_size=5), max_size=3),
    pa.list_(pa.int64()): st.lists(st.integers(-9, 9), max_size=3),
    pa.timestamp("us", "UTC"): st.datetimes(),
}


@pytest.mark.parametrize("oid", ARROW_TYPES)
@given(data=st.data())
def test_the_pieces_of_rows_are_what_copy_is_given(oid: int, data: st.DataObject) -> None:
    """Nulls, empty arrays and texts of any length: a row is cut where its values end, and nothing is left."""
    values = st.lists(st.none() | EXAMPLES[ARROW_TYPES[oid]], min_size=1, max_size=8)
    parts = [
        {"first": pa.array([str(n) for n in range(len(part))]), "second": pa.array(part, ARROW_TYPES[oid])}
        for part in data.draw(st.lists(values, min_size=1, max_size=2))
    ]
    layout = Layout(("first", "second"), (25, oid))
    pieces = list(layout.pieces(parts, 1))
    rows = b"".join((2).to_bytes(2, "big") + first + rest for first, rest in pieces)
    assert FRAME + rows + END == layout.copy_data(parts)
    assert [first[4:] for first, _ in pieces] == [
        str(n).encode() for part in parts for n in range(len(part["first"]))
    ]
