"""Rows of the fleet's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from schemas.declare import Table
from schemas.fleet import ALERTS_TABLE, LATEST_POSITION_TABLE, POSITIONS_TABLE
from sinks.rows import Event, Row, RowMapping, from_ms

_TIMES = frozenset({"occurred_at", "confirmed_at", "started_at"})


def _columns_of(table: Table) -> Callable[[Event], Iterable[Row]]:
    """One row an event: the table's columns bear the names of the event's fields."""
    columns = tuple((name, name in _TIMES) for name in table.columns)

    def rows(event: Event) -> Iterable[Row]:
        yield tuple(
            from_ms(event[name]) if is_time and event[name] is not None else event[name]
            for name, is_time in columns
        )

    return rows


ROWS: tuple[RowMapping, ...] = tuple(
    RowMapping(table, _columns_of(table)) for table in (POSITIONS_TABLE, LATEST_POSITION_TABLE, ALERTS_TABLE)
)
