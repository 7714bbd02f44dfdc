"""Trucks: where they are, where they were, and what happened to them."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, Path, Query
from pydantic import AwareDatetime, BaseModel, Field

from api.database import Rows, rows
from api.paging import Cursor, Limit, Page, decode_cursor, encode_cursor
from infra.identity.secured import SecuredRouter
from infra.problems import Problem
from schemas.fleet import ALERTS_TABLE, LATEST_POSITION_TABLE, POSITIONS_TABLE
from schemas.fleet.limits import NAME

router = SecuredRouter(prefix="/v1", tags=["fleet"])

Database = Annotated[Rows, Depends(rows)]
_PATTERN = f"^{NAME.pattern}$"
TruckId = Annotated[str, Path(pattern=_PATTERN, examples=["truck-7"])]
From = Annotated[AwareDatetime | None, Query(alias="from", description="From this event time on.")]
To = Annotated[AwareDatetime | None, Query(alias="to", description="Before this event time.")]
Kind = Literal[
    "geofence_inside",
    "geofence_outside",
    "geofence_enter",
    "geofence_exit",
    "engine_overheat_raised",
    "engine_overheat_cleared",
]

_LATEST = ", ".join(LATEST_POSITION_TABLE.columns)
_POSITION = ", ".join(POSITIONS_TABLE.columns)
_ALERT = ", ".join(ALERTS_TABLE.columns)

_OWN = "tenant = $1 AND ($2::text[] IS NULL OR fleet_id = ANY($2))"
_ALL = f"""
SELECT {_LATEST}, NULL::double precision AS distance_m FROM latest_position
WHERE {_OWN} AND ($3::text IS NULL OR truck_id > $3) ORDER BY truck_id LIMIT $4
"""  # noqa: S608 -- declared names
_NEAR = f"""
WITH near AS (
    SELECT {_LATEST}, ST_Distance(position, here) AS distance_m
    FROM latest_position, (SELECT ST_SetSRID(ST_MakePoint($3, $4), 4326)::geography AS here) AS h
    WHERE {_OWN} AND ST_DWithin(position, here, $5))
SELECT * FROM near WHERE $6::double precision IS NULL OR (distance_m, truck_id) > ($6, $7)
ORDER BY distance_m, truck_id LIMIT $8
"""  # noqa: S608 -- declared names
_ONE = f"SELECT {_LATEST}, NULL AS distance_m FROM latest_position WHERE {_OWN} AND truck_id = $3"  # noqa: S608 -- declared names
_PATH = f"""
SELECT {_POSITION} FROM truck_positions
WHERE {_OWN} AND truck_id = $3 AND duplicate_of IS NULL
  AND ($4::timestamptz IS NULL OR occurred_at >= $4) AND ($5::timestamptz IS NULL OR occurred_at < $5)
  AND ($6::timestamptz IS NULL OR (occurred_at, event_id) > ($6, $7))
ORDER BY occurred_at, event_id LIMIT $8
"""  # noqa: S608 -- declared names
_ALERTS = f"""
SELECT {_ALERT} FROM truck_alerts
WHERE {_OWN} AND ($3::text IS NULL OR truck_id = $3) AND ($4::text IS NULL OR fence_id = $4)
  AND ($5::text[] IS NULL OR kind = ANY($5))
  AND ($6::timestamptz IS NULL OR occurred_at >= $6) AND ($7::timestamptz IS NULL OR occurred_at < $7)
  AND ($8::timestamptz IS NULL OR (occurred_at, event_id) < ($8, $9))
ORDER BY occurred_at DESC, event_id DESC LIMIT $10
"""  # noqa: S608 -- declared names


class Fix(BaseModel):
    """A fix of a truck's receiver with the engine's readings."""

    event_id: str = Field(description="The device's id of the message.")
    tenant: str
    occurred_at: datetime = Field(description="When the fix was taken.")
    truck_id: str
    fleet_id: str | None = Field(description="The fleet that the truck drives for; null where none was told.")
    sequence: int = Field(description="Counter of the device.")
    latitude: float
    longitude: float
    speed_kmh: float | None
    heading_deg: float | None
    accuracy_m: float | None
    engine_temperature_c: float | None
    odometer_m: float | None
    fuel_pct: float | None
    load_kg: float | None
    fences: list[str] = Field(description="Ids of the fences that the fix lies in.")
    code_version: int
    fences_version: int


class Truck(Fix):
    """A truck at its newest fix."""

    distance_m: float | None = Field(description="Metres from `near`; null where that was not given.")


class Position(Fix):
    """A fix on a truck's path."""

    is_late: bool = Field(description="Whether a newer fix had come before it.")


class LineString(BaseModel):
    """A GeoJSON line; positions are longitude, latitude."""

    type: Literal["LineString", "Point"]
    coordinates: list[Any]


class PathProperties(BaseModel):
    """What belongs to the positions of a path, in their order."""

    truck_id: str
    times: list[datetime]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last.")


class PathFeature(BaseModel):
    """A page of a path as a GeoJSON Feature. Its geometry is null where it has no positions."""

    type: Literal["Feature"] = "Feature"
    geometry: LineString | None
    properties: PathProperties


class Alert(BaseModel):
    """Something that happened to a truck."""

    event_id: str = Field(description="Made of truck, fence, kind and time: the same happening, the same id.")
    tenant: str
    occurred_at: datetime = Field(description="When it happened: the first fix or sample that showed it.")
    truck_id: str
    fleet_id: str | None = Field(description="The fleet that the truck drives for; null where none was told.")
    kind: Kind
    cause: str
    fence_id: str | None
    fence_name: str | None
    confirmed_at: datetime = Field(description="When it was settled.")
    started_by: str | None = Field(description="Id of the alert whose stay or episode this one ends.")
    started_at: datetime | None
    latitude: float
    longitude: float
    engine_temperature_c: float | None
    input_id: str = Field(description="Id of the telemetry that settled it.")
    is_late: bool
    code_version: int
    fences_version: int


def _own(database: Rows) -> tuple[str, list[str] | None]:
    """The first two values of each query: whose rows."""
    return database.tenant, database.sees("fleet")


@router.get("/trucks", scope="fleet:read")
async def trucks(
    database: Database,
    near: Annotated[
        str | None, Query(description="Latitude,longitude to search round.", examples=["51.885,4.44"])
    ] = None,
    radius_m: Annotated[
        float | None, Query(gt=0, le=1e6, description="Most metres from `near`; 1,000 if left out.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Truck]:
    """Trucks at their newest positions: all by id, or those within a radius, the nearest first."""
    if near is None:
        if radius_m is not None:
            raise Problem(422, "Invalid request", "Give near=latitude,longitude with it.", field="radius_m")
        (after,) = decode_cursor(cursor, str) if cursor else (None,)
        found = await database.fetch(_ALL, *_own(database), after, limit + 1)
    else:
        latitude, longitude = _place(near)
        nearer = decode_cursor(cursor, float, str) if cursor else (None, None)
        around = (longitude, latitude, radius_m or 1_000.0)
        found = await database.fetch(_NEAR, *_own(database), *around, *nearer, limit + 1)
    items = [Truck(**dict(row)) for row in found[:limit]]
    if len(found) <= limit:
        return Page(items=items)
    last = items[-1]
    place = (last.truck_id,) if near is None else (last.distance_m, last.truck_id)
    return Page(items=items, next_cursor=encode_cursor(*place))


@router.get("/trucks/{truck_id}", scope="fleet:read", tagged=True)
async def truck(truck_id: TruckId, database: Database) -> Truck:
    """One truck at its newest position."""
    row = await database.fetchrow(_ONE, *_own(database), truck_id)
    if row is None:
        raise Problem(404, "No such truck", f"No position of truck {truck_id!r} has been stored.")
    return Truck(**dict(row))


@router.get("/trucks/{truck_id}/path", scope="fleet:read", response_model=Page[Position] | PathFeature)
async def path(
    truck_id: TruckId,
    database: Database,
    since: From = None,
    until: To = None,
    form: Annotated[
        Literal["list", "geojson"], Query(alias="as", description="A list of fixes, or a GeoJSON Feature.")
    ] = "list",
    limit: Limit = 1000,
    cursor: Cursor = None,
) -> Page[Position] | PathFeature:
    """Where a truck was between two times, in the order of event time; late fixes stand in their place."""
    after = decode_cursor(cursor, datetime, str) if cursor else (None, None)
    found = await database.fetch(_PATH, *_own(database), truck_id, since, until, *after, limit + 1)
    items = [Position(**dict(row)) for row in found[:limit]]
    more = encode_cursor(items[-1].occurred_at, items[-1].event_id) if len(found) > limit else None
    if form == "list":
        return Page(items=items, next_cursor=more)
    places = [[p.longitude, p.latitude] for p in items]
    line = None
    if places:
        line = (
            LineString(type="LineString", coordinates=places)
            if len(places) > 1
            else LineString(type="Point", coordinates=places[0])
        )
    return PathFeature(
        geometry=line,
        properties=PathProperties(truck_id=truck_id, times=[p.occurred_at for p in items], next_cursor=more),
    )


@router.get("/alerts", scope="fleet:read")
async def alerts(
    database: Database,
    truck_id: Annotated[str | None, Query(pattern=_PATTERN, description="Only of this truck.")] = None,
    fence_id: Annotated[str | None, Query(pattern=_PATTERN, description="Only of this fence.")] = None,
    kind: Annotated[list[Kind] | None, Query(description="Only of these kinds.")] = None,
    since: From = None,
    until: To = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Alert]:
    """What happened to trucks, the newest first."""
    before = decode_cursor(cursor, datetime, str) if cursor else (None, None)
    narrowed = (truck_id, fence_id, kind, since, until)
    found = await database.fetch(_ALERTS, *_own(database), *narrowed, *before, limit + 1)
    items = [Alert(**dict(row)) for row in found[:limit]]
    more = len(found) > limit
    return Page(
        items=items,
        next_cursor=encode_cursor(items[-1].occurred_at, items[-1].event_id) if more else None,
    )


def _place(text: str) -> tuple[float, float]:
    """Latitude and longitude of `near`. Raises `Problem` 422."""
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        latitude = longitude = math.nan
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise Problem(
            422,
            "Invalid request",
            f"{text!r} is no place; give latitude,longitude in degrees, as 51.885,4.44.",
            field="near",
        )
    return latitude, longitude
