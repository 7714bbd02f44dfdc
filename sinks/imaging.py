"""Rows of the imaging tables from `dicom-instances`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date, time
from typing import Any

from schemas.declare import Table
from schemas.imaging import INSTANCE_UPLOADS, INSTANCES, SERIES, STUDIES
from sinks.rows import Event, Row, RowMapping, from_ms


def _date(text: str | None) -> date | None:
    return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if text else None


def _time(text: str | None) -> time | None:
    return time(int(text[:2]), int(text[2:4]), int(text[4:6]), int(text[7:13])) if text else None


_CONVERTED: dict[str, Callable[[Event], Any]] = {
    "uploaded_at": lambda e: from_ms(e["occurred_at"]),
    "patient_birth_date": lambda e: _date(e["patient_birth_date"]),
    "study_date": lambda e: _date(e["study_date"]),
    "study_time": lambda e: _time(e["study_time"]),
    "series_date": lambda e: _date(e["series_date"]),
    "series_time": lambda e: _time(e["series_time"]),
}


def _mapping(table: Table) -> RowMapping:
    """A row of the event's fields of the columns' names, some converted."""

    def rows(event: Event) -> Iterable[Row]:
        yield tuple(_CONVERTED[c](event) if c in _CONVERTED else event[c] for c in table.columns)

    return RowMapping(table, rows)


ROWS: tuple[RowMapping, ...] = tuple(_mapping(t) for t in (STUDIES, SERIES, INSTANCES, INSTANCE_UPLOADS))
