"""DICOMweb searches (QIDO-RS, PS3.18 10.6) over the index, and thumbnails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Path, Query, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response

from api.database import Rows, rows
from api.dicom_json import INSTANCE, SERIES, STUDY, Attribute, dataset
from api.dicom_match import Conditions, Unmatchable
from infra import entity_tags
from infra.identity.secured import SecuredRouter
from infra.object_store import FolderStore, ObjectDamaged, ObjectMissing, ObjectStore
from infra.problems import Problem

DICOM_JSON = "application/dicom+json"
_DATASETS = {"type": "array", "items": {"type": "object"}}
_FOUND: dict[int | str, dict[str, Any]] = {200: {"content": {DICOM_JSON: {"schema": _DATASETS}}}}

router = SecuredRouter(tags=["imaging"])


async def object_store(connection: HTTPConnection) -> ObjectStore:
    """The object store that the processor writes thumbnails to."""
    return FolderStore(connection.app.state.settings.object_store)


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the search: what it matches and returns, and the SQL it is made of.

    `page` picks the rows' keys first, so that the views count what belongs to one page only.
    """

    attributes: tuple[Attribute, ...]
    page: str
    keys: tuple[str, ...]
    order: str
    views: str

    @property
    def aliases(self) -> tuple[str, ...]:
        """The tables of `page`, that of the level first; a row of each must be the asker's."""
        every = ("i", "se", "st")
        return every[every.index(self.keys[0].split(".")[0]) :]


STUDY_LEVEL = Level(
    attributes=STUDY,
    page="studies st",
    keys=("st.study_uid",),
    order="st.study_date DESC NULLS LAST, st.study_uid",
    views="study_overview st",
)
SERIES_LEVEL = Level(
    attributes=(*STUDY, *SERIES),
    page="series se JOIN studies st USING (tenant, study_uid)",
    keys=("se.study_uid", "se.series_uid"),
    order="se.study_uid, se.series_number NULLS LAST, se.series_uid",
    views="series_overview se JOIN study_overview st USING (tenant, study_uid)",
)
INSTANCE_LEVEL = Level(
    attributes=(*STUDY, *SERIES, *INSTANCE),
    page="instances i JOIN series se USING (tenant, study_uid, series_uid) "
    "JOIN studies st USING (tenant, study_uid)",
    keys=("i.study_uid", "i.sop_instance_uid"),
    order="i.study_uid, i.series_uid, i.instance_number NULLS LAST, i.sop_instance_uid",
    views="instances i JOIN series_overview se USING (tenant, study_uid, series_uid) "
    "JOIN study_overview st USING (tenant, study_uid)",
)

Database = Annotated[Rows, Depends(rows)]
Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most results in the answer.")]
Offset = Annotated[int, Query(ge=0, le=10_000_000, description="Results to leave out before the first.")]


@router.get("/dicomweb/studies", scope="imaging:read", response_class=Response, responses=_FOUND)
async def search_studies(
    request: Request, database: Database, limit: Limit = 100, offset: Offset = 0
) -> Response:
    """Search for studies by any of their attributes, as `PatientName=By*&StudyDate=20250101-20250131`."""
    return await _search(request, database, STUDY_LEVEL, {}, limit, offset)


@router.get("/dicomweb/series", scope="imaging:read", response_class=Response, responses=_FOUND)
async def search_series(
    request: Request, database: Database, limit: Limit = 100, offset: Offset = 0
) -> Response:
    """Search for series by attributes of study and series."""
    return await _search(request, database, SERIES_LEVEL, {}, limit, offset)


@router.get("/dicomweb/instances", scope="imaging:read", response_class=Response, responses=_FOUND)
async def search_instances(
    request: Request, database: Database, limit: Limit = 100, offset: Offset = 0
) -> Response:
    """Search for instances by attributes of study, series and instance."""
    return await _search(request, database, INSTANCE_LEVEL, {}, limit, offset)


@router.get(
    "/dicomweb/studies/{study_uid}/series", scope="imaging:read", response_class=Response, responses=_FOUND
)
async def search_series_of_study(
    request: Request,
    database: Database,
    study_uid: Uid,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """Search the series of a study."""
    return await _search(request, database, SERIES_LEVEL, {"StudyInstanceUID": study_uid}, limit, offset)


@router.get(
    "/dicomweb/studies/{study_uid}/instances", scope="imaging:read", response_class=Response, responses=_FOUND
)
async def search_instances_of_study(
    request: Request,
    database: Database,
    study_uid: Uid,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """Search the instances of a study."""
    return await _search(request, database, INSTANCE_LEVEL, {"StudyInstanceUID": study_uid}, limit, offset)


@router.get(
    "/dicomweb/studies/{study_uid}/series/{series_uid}/instances",
    scope="imaging:read",
    response_class=Response,
    responses=_FOUND,
)
async def search_instances_of_series(
    request: Request,
    database: Database,
    study_uid: Uid,
    series_uid: Uid,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """Search the instances of a series."""
    within = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
    return await _search(request, database, INSTANCE_LEVEL, within, limit, offset)


async def _search(
    request: Request,
    database: Rows,
    level: Level,
    within: dict[str, str],
    limit: int,
    offset: int,
) -> Response:
    accepted = request.headers.get("accept", "*/*")
    if not any(t in accepted for t in ("*/*", "application/*", DICOM_JSON, "application/json")):
        raise Problem(406, "Not acceptable", f"The answer is {DICOM_JSON}; accept it.", field="accept")
    wanted: list[tuple[str, str]] = []
    warnings: list[str] = []
    for name, value in (*within.items(), *request.query_params.multi_items()):
        if name in ("limit", "offset", "includefield"):
            continue  # all that is indexed is returned
        if name == "fuzzymatching":
            if value.lower() == "true":
                warnings.append("fuzzymatching is not supported; only literal matching has been performed")
            continue
        wanted.append((name, value))
    found, more = await matching(database, level, wanted, limit, offset)
    if more:
        warnings.append("there are more results; ask again with a larger offset")
    headers = {"Warning": ", ".join(f'299 millrace "{w}"' for w in warnings)} if warnings else None
    body = orjson.dumps([dataset(level.attributes, row) for row in found])
    return Response(body, 200, headers, DICOM_JSON)


async def matching(
    database: Rows, level: Level, wanted: Iterable[tuple[str, str]], limit: int, offset: int
) -> tuple[list[dict[str, Any]], bool]:
    """Rows of a level by keyword in lower case, whose attributes match, and whether there are more.

    `wanted` are attributes by keyword or tag, with what they must match. Raises `Problem` 400.
    """
    conditions = Conditions(level.attributes, database.tenant, database.sees("patient"), level.aliases)
    for name, value in wanted:
        try:
            conditions.match(name, value)
        except Unmatchable as error:
            raise Problem(400, "Invalid query", str(error), field=name) from None
    found = await database.fetch(_query(level, conditions, limit, offset), *conditions.values)
    return [dict(row) for row in found[:limit]], len(found) > limit


def _query(level: Level, conditions: Conditions, limit: int, offset: int) -> str:
    keys = ", ".join(f"{k} AS key_{n}" for n, k in enumerate(level.keys))
    of_page = " AND ".join(f"{k} = key_{n}" for n, k in enumerate(level.keys))
    alias = level.keys[0].split(".")[0]
    columns = ", ".join(f"{a.column} AS {a.keyword}" for a in level.attributes)
    # Declared names and placeholders only; whatever a client gave is among the values.
    return f"""
        SELECT {columns}
        FROM {level.views}
        JOIN (SELECT {keys} FROM {level.page} WHERE {conditions.sql()}
              ORDER BY {level.order} LIMIT {limit + 1:d} OFFSET {offset:d}) AS page ON {of_page}
        WHERE {alias}.tenant = $1
        ORDER BY {level.order}
    """  # noqa: S608


_THUMBNAIL = """
    SELECT thumbnail_digest, thumbnail_reason FROM instances
    WHERE tenant = $1 AND ($2::text[] IS NULL OR patient_id = ANY($2))
    AND sop_instance_uid = $3 AND ($4::text IS NULL OR study_uid = $4)
    ORDER BY study_uid LIMIT 1
"""


@router.get(
    "/v1/instances/{sop_uid}/thumbnail",
    scope="imaging:read",
    tagged=True,
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
async def thumbnail(
    request: Request,
    sop_uid: Uid,
    database: Database,
    store: Annotated[ObjectStore, Depends(object_store)],
    study: Annotated[str | None, Query(pattern=r"^[0-9.]{1,64}$", description="Study Instance UID.")] = None,
) -> Response:
    """The instance's picture: a PNG of at most 256 pixels a side. Its ETag is its digest."""
    own = (database.tenant, database.sees("patient"))
    row: Any = await database.fetchrow(_THUMBNAIL, *own, sop_uid, study)
    if row is None:
        raise Problem(
            404,
            "No instance",
            f"There is no instance {sop_uid}: it was not sent, is on its way, or is a dead letter.",
        )
    digest = row["thumbnail_digest"]
    if digest is None:
        raise Problem(404, "No thumbnail", f"Instance {sop_uid} has no thumbnail: {row['thumbnail_reason']}.")
    headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=3600"}
    if entity_tags.known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)  # nothing need be read
    try:
        return Response(store.read(digest), headers=headers, media_type="image/png")
    except (ObjectMissing, ObjectDamaged) as error:
        raise Problem(
            503, "Thumbnail is away", f"{error}; restore the object store from its backup."
        ) from error
