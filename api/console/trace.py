"""From a record on to what became of it, from a row back to what decided it: `millrace trace` as pages."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import site, words
from api.console.actions import needs
from api.console.parts import Part
from infra.dlq.edits import to_json
from infra.trace import Followed, Origin, Traced, Tracer
from infra.verification import Place
from schemas.declare import Table

router: APIRouter = site.router()


@router.get("/trace", dependencies=[needs("ops:read", "trace.show")])
async def trace(
    request: Request,
    record: Annotated[str, Query(max_length=300)] = "",
    row: Annotated[str, Query(max_length=1000)] = "",
    table: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Where to begin; with `record` (TOPIC/PARTITION/OFFSET) or `row` (TABLE:KEY), what was found."""
    console = site.console(request)
    followed: Followed | None = None
    traced: list[Traced] = []
    if record.strip() or row.strip():
        console.require(Part.BROKER, Part.REGISTRY)
        if record.strip():
            followed = await console.apart(_record, console, record.strip())
        else:
            traced = await console.apart(_row, console, row.strip())
        request.state.object = record.strip() or row.strip()
        request.state.rows = len(traced) if followed is None else len(followed.rows)
    tables = {t.name: t for p in console.pipelines for t in p.tables}
    return site.page(
        request,
        "trace.html",
        active="trace",
        record=record,
        row=row,
        table=table,
        followed=followed,
        traced=traced,
        tables=list(tables.values()),
        fields=_fields,
        record_link=record_link,
        row_link=lambda table, values: row_link(tables[table], values),
        letters_link=letters_link,
    )


def _record(console: site.Console, name: str) -> Followed:
    with console.database() as connection:
        return _tracer(console, connection).record(name)


def _row(console: site.Console, name: str) -> list[Traced]:
    with console.database() as connection:
        return _tracer(console, connection).row(name)


def _tracer(console: site.Console, connection: Any) -> Tracer:
    return Tracer(connection, console.codec, console.settings.kafka, console.pipelines)


def record_link(place: Place) -> str:
    """The page of a record."""
    return f"/console/trace{site.query(record=f'{place.topic}/{place.partition}/{place.offset}')}"


def row_link(table: Table, values: dict[str, Any]) -> str:
    """The page of a row, by the columns of its key."""
    key = ",".join(f"{c}={words.plain(values[c])}" for c in table.key if values.get(c) is not None)
    return f"/console/trace{site.query(row=f'{table.name}:{key}')}"


def letters_link(origin: Origin) -> str:
    """The dead letter of a record, by its place."""
    place = origin.place
    return f"/console/dead-letters/{place.topic}/{place.partition}/{place.offset}"


def _fields(values: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values of a row or event, each value in one line of text where it is short."""
    found = []
    for name, value in (values or {}).items():
        told = words.plain(value)
        found.append((name, told if isinstance(told, str) else " ".join(to_json(told).split())))
    return found
