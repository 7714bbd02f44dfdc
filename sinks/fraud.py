"""Decisions as rows of the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from schemas.fraud import CARD_LEDGER
from sinks.blocks import ms
from sinks.outbox import Told
from sinks.rows import Event, Row, RowMapping, from_ms

_TIME = CARD_LEDGER.columns.index("occurred_at")


def _ledger(decision: Event) -> Iterator[Row]:
    row = [decision[column] for column in CARD_LEDGER.columns]
    row[_TIME] = from_ms(decision["occurred_at"])
    yield tuple(row)


def _ledger_columns(decisions: pa.RecordBatch) -> dict[str, pa.Array]:
    columns = {column: decisions.column(column) for column in CARD_LEDGER.columns}
    return columns | {"occurred_at": ms(columns["occurred_at"])}


ROWS: tuple[RowMapping, ...] = (RowMapping(CARD_LEDGER, _ledger, _ledger_columns),)

TOLD = Told(CARD_LEDGER)
