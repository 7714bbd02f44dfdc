"""What holds for every pipeline: its declaration, where its consumers stand, and its dead letters."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Path, Query
from pydantic import AwareDatetime, BaseModel, Field

from api.database import Rows, rows
from api.paging import Cursor, Limit, Page, decode_cursor, encode_cursor
from infra.identity.secured import SecuredRouter
from infra.problems import Problem
from schemas.declare import Pipeline
from schemas.pipelines import PIPELINES
from schemas.roles import HOME_TENANT

router = SecuredRouter(prefix="/v1", tags=["platform"])

Database = Annotated[Rows, Depends(rows)]


class TopicView(BaseModel):
    """A declared topic."""

    name: str = Field(examples=["card-transactions"])
    about: str
    owner: str
    key: str = Field(description="Field of the event that is the record's key.")
    event_id: str = Field(description="Field with the event's id.")
    event_time: str = Field(description="Field with the event time.")
    partitions: int
    retention_ms: int = Field(description="How long records are kept; -1 for ever.")
    input: bool = Field(description="Whether connectors write it.")


class ProcessorView(BaseModel):
    """A declared processor."""

    name: str
    sources: list[str]
    outputs: list[str]
    code_version: int


class TableView(BaseModel):
    """A declared sink table."""

    name: str = Field(examples=["card_ledger"])
    topic: str
    key: list[str]
    columns: list[str]
    merge: str = Field(description="What happens to a row whose key is there already.")


class PipelineView(BaseModel):
    """A declared pipeline."""

    name: str = Field(examples=["fraud"])
    about: str
    topics: list[TopicView]
    processors: list[ProcessorView]
    tables: list[TableView]


class ConsumerPosition(BaseModel):
    """Where a consumer stands in a partition: every offset below `next_offset` has taken its effect."""

    consumer: str = Field(examples=["fraud-sink"])
    topic: str
    partition: int
    next_offset: int
    epoch: int = Field(description="Rises with each process that takes the partition.")
    updated_at: datetime


class DeadLetter(BaseModel):
    """A record that could not be decoded, decided or stored, and the reason."""

    id: int = Field(description="For `millrace dlq show ID`.")
    status: str = Field(
        description="open; sending (a redrive is under way, or was killed); redriven; discarded."
    )
    pipeline: str
    consumer: str = Field(description="The processor or sink that refused it.")
    topic: str
    partition: int
    offset: int
    tenant: str
    schema_id: int | None
    input_id: str | None = Field(description="The event's own id, where it could be decoded.")
    error_class: str = Field(examples=["undecodable"])
    field: str | None = Field(description="The field at fault.")
    error: str = Field(description="The reason and the remedy.")
    value_bytes: int | None = Field(description="Size of the record's value.")
    append_time: datetime = Field(description="When the broker appended the record.")
    created_at: datetime


class DeadLetterBytes(DeadLetter):
    """A dead letter with the bytes of its record."""

    key: str | None = Field(description="The record's key, base64.")
    value: str | None = Field(description="The record's value, base64.")


@router.get("/pipelines", scope="ops:read", summary="The declared pipelines")
async def pipelines() -> list[PipelineView]:
    return [_view(p) for p in PIPELINES]


@router.get(
    "/pipelines/{name}/positions", scope="ops:read", summary="Where each consumer of a pipeline stands"
)
async def positions(name: str, database: Database) -> list[ConsumerPosition]:
    if name not in PIPELINES.by_name:
        raise Problem(
            404,
            "No such pipeline",
            f"There is no pipeline {name!r}; there are: {', '.join(PIPELINES.by_name)}.",
        )
    pipeline = PIPELINES[name]
    consumers = [*(p.name for p in pipeline.processors), pipeline.sink_name]
    found = await database.fetch(
        "SELECT consumer, topic, partition, next_offset, epoch, updated_at FROM checkpoints"
        " WHERE consumer = ANY($1) ORDER BY consumer, topic, partition",
        consumers,
    )
    return [ConsumerPosition(**row) for row in found]


_LETTER = (
    'id, status, pipeline, consumer, topic, partition, "offset", tenant, schema_id, input_id, error_class,'
    " field, error, octet_length(value) AS value_bytes, append_time, created_at"
)

# A record that no tenant could be read of is for those who run the instance. No letter is any object's: they
# are for those who see all.
_OWN = "(tenant = $1 OR tenant = '' AND $2) AND $3"


def _own(database: Rows) -> tuple[str, bool, bool]:
    """The first three values of each query of dead letters: whose."""
    return database.tenant, database.tenant == HOME_TENANT, not database.principal.objects


@router.get("/dead-letters", scope="ops:read", summary="Dead letters, newest first")
async def dead_letters(
    database: Database,
    pipeline: Annotated[str | None, Query(description="Only of this pipeline.")] = None,
    consumer: Annotated[
        str | None, Query(description="Only those that this processor or sink refused.")
    ] = None,
    topic: Annotated[str | None, Query(description="Only of this topic.")] = None,
    error_class: Annotated[str | None, Query(description="Only of this class, as `undecodable`.")] = None,
    input_id: Annotated[str | None, Query(description="Only of the event with this id.")] = None,
    status: Annotated[str | None, Query(description="Only of this standing, as `open`.")] = None,
    since: Annotated[AwareDatetime | None, Query(description="Only stored at or after this time.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Only stored before this time.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[DeadLetter]:
    after = decode_cursor(cursor, datetime, str, int, int, str) if cursor else (None,) * 5
    found = await database.fetch(
        f"SELECT {_LETTER} FROM dead_letters WHERE {_OWN}"  # noqa: S608 - constants
        " AND ($4::text IS NULL OR pipeline = $4) AND ($5::text IS NULL OR consumer = $5)"
        " AND ($6::text IS NULL OR topic = $6) AND ($7::text IS NULL OR error_class = $7)"
        " AND ($8::text IS NULL OR input_id = $8)"
        " AND ($9::timestamptz IS NULL OR created_at >= $9)"
        " AND ($10::timestamptz IS NULL OR created_at < $10)"
        ' AND ($11::timestamptz IS NULL OR (created_at, topic, partition, "offset", consumer)'
        " < ($11, $12::text, $13::bigint, $14::bigint, $15::text))"
        " AND ($17::text IS NULL OR status = $17)"
        ' ORDER BY created_at DESC, topic DESC, partition DESC, "offset" DESC, consumer DESC LIMIT $16',
        *_own(database),
        pipeline,
        consumer,
        topic,
        error_class,
        input_id,
        since,
        until,
        *after,
        limit + 1,
        status,
    )
    items = [DeadLetter(**row) for row in found[:limit]]
    if len(found) <= limit:
        return Page(items=items)
    last = items[-1]
    return Page(
        items=items,
        next_cursor=encode_cursor(last.created_at, last.topic, last.partition, last.offset, last.consumer),
    )


@router.get(
    "/dead-letters/{topic}/{partition}/{offset}",
    scope="ops:read",
    tagged=True,
    summary="The dead letters of one record, with its bytes",
)
async def dead_letters_of_record(
    topic: str,
    partition: Annotated[int, Path(ge=0, lt=2**31)],
    offset: Annotated[int, Path(ge=0, lt=2**63)],
    database: Database,
) -> list[DeadLetterBytes]:
    found = await database.fetch(
        f"SELECT {_LETTER}, key, value FROM dead_letters WHERE {_OWN}"  # noqa: S608 - constants
        ' AND topic = $4 AND partition = $5 AND "offset" = $6 ORDER BY consumer',
        *_own(database),
        topic,
        partition,
        offset,
    )
    if not found:
        raise Problem(
            404, "No dead letter", f"The record {topic}/{partition}/{offset} stands in no dead letter."
        )
    return [
        DeadLetterBytes(**{**row, "key": _base64(row["key"]), "value": _base64(row["value"])})
        for row in found
    ]


def _base64(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode()


def _view(pipeline: Pipeline) -> PipelineView:
    inputs = {t.name for t in pipeline.inputs}
    return PipelineView(
        name=pipeline.name,
        about=pipeline.about,
        topics=[
            TopicView(
                name=t.name,
                about=t.about,
                owner=t.owner,
                key=t.key,
                event_id=t.event_id,
                event_time=t.event_time,
                partitions=t.partitions,
                retention_ms=t.retention_ms,
                input=t.name in inputs,
            )
            for t in pipeline.topics
        ],
        processors=[
            ProcessorView(
                name=p.name,
                sources=[t.name for t in p.sources],
                outputs=[t.name for t in p.outputs],
                code_version=p.code_version,
            )
            for p in pipeline.processors
        ],
        tables=[
            TableView(
                name=t.name,
                topic=t.topic.name,
                key=list(t.key),
                columns=list(t.columns),
                merge=t.merge.value,
            )
            for t in pipeline.tables
        ],
    )
