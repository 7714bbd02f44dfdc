"""Order statuses and stock results as rows: where orders and stock stand, and how they came there."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.orders import (
    ORDER_LINES_TABLE,
    ORDER_STATUS_LOG_TABLE,
    ORDERS_TABLE,
    STOCK_LEDGER_TABLE,
    STOCK_TABLE,
)
from sinks.rows import Event, Row, RowMapping, from_ms


def _orders(status: Event) -> Iterator[Row]:
    # A refused input leaves the order as it was: it stands in order_status_log alone.
    if status["outcome"] == "accepted":
        times = {"placed_at": from_ms(status["placed_at"]), "updated_at": from_ms(status["occurred_at"])}
        row = status | times
        yield tuple(row[column] for column in ORDERS_TABLE.columns)


def _order_lines(status: Event) -> Iterator[Row]:
    for line in status["lines"]:
        row = status | line
        yield tuple(row[column] for column in ORDER_LINES_TABLE.columns)


def _order_status_log(status: Event) -> Iterator[Row]:
    row = status | {"occurred_at": from_ms(status["occurred_at"])}
    yield tuple(row[column] for column in ORDER_STATUS_LOG_TABLE.columns)


def _stock(result: Event) -> Iterator[Row]:
    row = result | {"updated_at": from_ms(result["occurred_at"])}
    yield tuple(row[column] for column in STOCK_TABLE.columns)


def _stock_ledger(result: Event) -> Iterator[Row]:
    row = result | {"occurred_at": from_ms(result["occurred_at"])}
    if result["kind"] == "receive":
        row["order_id"] = None  # in the topic it is a key, and names no order
    yield tuple(row[column] for column in STOCK_LEDGER_TABLE.columns)


ROWS: tuple[RowMapping, ...] = (
    RowMapping(ORDERS_TABLE, _orders),
    RowMapping(ORDER_LINES_TABLE, _order_lines),
    RowMapping(ORDER_STATUS_LOG_TABLE, _order_status_log),
    RowMapping(STOCK_TABLE, _stock),
    RowMapping(STOCK_LEDGER_TABLE, _stock_ledger),
)
