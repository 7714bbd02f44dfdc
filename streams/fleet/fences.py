"""Fences: a version's GeoJSON read, validated, and searched.

A fence is a geometry and a reach in metres: a Polygon or MultiPolygon reaches 0, a circle is a Point
that reaches `radius_m`, a corridor is a LineString that reaches `half_width_m`. Edges are straight in
longitude and latitude, as RFC 7946 says, and take the shorter way round the globe; so a fence across
±180° is read whether or not it has been split there.

Inside or not is decided in degrees relative to the fence's own middle longitude: nothing is projected,
the boundary counts as inside, and a shift of everything in longitude changes nothing. Distances are
geodesics to the nearest point of the geometry. That point is searched in a plane scaled at the fence's
middle latitude; where the scale is off by a share e (0.02 a degree of latitude away at 52° north) the
distance found is too long by about e²/2 at most (0.02 %), and never too short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from shapely import LineString, MultiPolygon, Point, Polygon
from shapely.affinity import scale, translate
from shapely.geometry.base import BaseGeometry

from schemas.fleet.limits import NAME, NAME_RULE
from streams.fleet.geodesy import degrees_around, distance_m, metres_per_degree, wrapped

DEFAULT_BUFFER_M = 10.0
MOST_BUFFER_M = 10_000.0
MOST_REACH_M = 1_000_000.0
MOST_LATITUDE = 89.0
MOST_WIDTH_DEGREES = 180.0

_REACH_OF = {"Point": "radius_m", "LineString": "half_width_m"}


class FenceError(ValueError):
    """A version of the fences that cannot be used: names the fence, the field, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Fence:
    """One fence.

    `drawn` is its geometry, longitudes running on beyond ±180° where it crosses; `shape` the same with x
    relative to `middle`; `plane` is `shape` in metres, scaled by `scale_x` and `scale_y`.
    """

    id: str
    name: str
    buffer_m: float
    reach_m: float
    since_version: int
    drawn: BaseGeometry
    middle: float
    shape: BaseGeometry
    plane: BaseGeometry
    scale_x: float
    scale_y: float

    def covers(self, longitude: float, latitude: float) -> bool:
        """Whether the point lies in the fence; the boundary counts."""
        if self.reach_m:
            return self._distance_m(longitude, latitude) <= self.reach_m
        return bool(shapely.intersects_xy(self.shape, wrapped(longitude - self.middle), latitude))

    def metres_beyond(self, longitude: float, latitude: float) -> float:
        """How far the point lies beyond the fence's edge; 0 inside."""
        return max(0.0, self._distance_m(longitude, latitude) - self.reach_m)

    def _distance_m(self, longitude: float, latitude: float) -> float:
        x = wrapped(longitude - self.middle)
        if isinstance(self.shape, Point):
            return distance_m(x, latitude, self.shape.x, self.shape.y)
        nearest = shapely.shortest_line(self.plane, Point(x * self.scale_x, latitude * self.scale_y))
        plane_x, plane_y = nearest.coords[0]
        return distance_m(x, latitude, plane_x / self.scale_x, plane_y / self.scale_y)

    def boxes(self) -> Iterator[tuple[float, float, float, float]]:
        """West, south, east, north of boxes within ±180° that together hold the fence."""
        left, south, right, north = self.shape.bounds
        dlon, dlat = degrees_around(max(abs(south), abs(north)), self.reach_m)
        # A tenth of a millimetre more: `middle` rounds, and the boundary counts as inside.
        dlon, dlat = dlon + 1e-9, dlat + 1e-9
        south, north = south - dlat, north + dlat
        if right - left + 2 * dlon >= 360.0:
            yield -180.0, south, 180.0, north
            return
        west = wrapped(self.middle + left - dlon)
        east = west + (right - left + 2 * dlon)
        yield west, south, min(east, 180.0), north
        if east >= 180.0:
            yield -180.0, south, east - 360.0, north


class Fences:
    """One version of the fences, indexed. `fences` are sorted by id."""

    def __init__(self, version: int, fences: Sequence[Fence]) -> None:
        self.version = version
        self.fences = tuple(sorted(fences, key=lambda f: f.id))
        self.by_id: Mapping[str, Fence] = {f.id: f for f in self.fences}
        boxes = [(i, shapely.box(*box)) for i, fence in enumerate(self.fences) for box in fence.boxes()]
        self._fence_of_box = np.array([i for i, _ in boxes], dtype=np.intp)
        self._tree = shapely.STRtree([b for _, b in boxes])

    def locate(self, longitudes: Sequence[float], latitudes: Sequence[float]) -> list[list[str]]:
        """For each point the ids of the fences that cover it, sorted.

        Points are looked up together for speed; a point's answer does not depend on its neighbours.
        """
        found: list[list[str]] = [[] for _ in longitudes]
        if not self.fences or not found:
            return found
        lons, lats = np.asarray(longitudes, dtype=np.float64), np.asarray(latitudes, dtype=np.float64)
        points, boxes = self._tree.query(shapely.points(lons, lats))
        pairs = np.unique(np.stack([self._fence_of_box[boxes], points]), axis=1)
        edges = [*np.flatnonzero(np.diff(pairs[0], prepend=-1)), pairs.shape[1]]
        for start, end in pairwise(edges):
            fence, candidates = self.fences[pairs[0, start]], pairs[1, start:end]
            if fence.reach_m:
                inside = [i for i in candidates.tolist() if fence.covers(longitudes[i], latitudes[i])]
            else:
                x = lons[candidates] - fence.middle
                x = np.where(x >= 180.0, x - 360.0, np.where(x < -180.0, x + 360.0, x))
                inside = candidates[shapely.intersects_xy(fence.shape, x, lats[candidates])].tolist()
            for i in inside:
                found[i].append(fence.id)
        return found


NO_FENCES = Fences(0, ())


def read_fences(version: int, body: Any) -> Fences:
    """The fences of a GeoJSON FeatureCollection; raises `FenceError` with the first reason against it."""
    if not isinstance(body, Mapping) or body.get("type") != "FeatureCollection":
        raise FenceError("type is not FeatureCollection; give a GeoJSON FeatureCollection of fences")
    features = body.get("features")
    if not isinstance(features, list):
        raise FenceError("features is not a list; give a GeoJSON FeatureCollection of fences")
    fences = [_fence(number, feature, version) for number, feature in enumerate(features, start=1)]
    ids = [f.id for f in fences]
    twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise FenceError(f"fence {twice[0]!r}: id is used twice; give each fence an id of its own")
    return Fences(version, fences)


def written_fences(version: int, body: Any, before: Any | None = None) -> dict[str, Any]:
    """The body as it is stored for `version`: validated, split at ±180°, defaults written out.

    A fence that `before` (the body of the version before) holds too keeps its `since_version`; so a truck
    that stands in a fence which is new gets an `inside`, not an enter that never happened.
    """
    since = {
        str(f["id"]): int(f["properties"]["since_version"]) for f in (before["features"] if before else ())
    }
    fences = read_fences(version, body)
    return {
        "type": "FeatureCollection",
        "features": [_feature(fence, since.get(fence.id, version)) for fence in fences.fences],
    }


def _feature(fence: Fence, since_version: int) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "name": fence.name,
        "buffer_m": fence.buffer_m,
        "since_version": since_version,
    }
    reach = _REACH_OF.get(fence.drawn.geom_type)
    if reach:
        properties[reach] = fence.reach_m
        # A line may pass ±180° unsplit: its edges take the shorter way when it is read again.
        geometry = shapely.transform(fence.drawn, _wrap_all)
    else:
        geometry = _split(fence.drawn)
    return {
        "type": "Feature",
        "id": fence.id,
        "properties": properties,
        "geometry": json.loads(json.dumps(shapely.geometry.mapping(geometry))),
    }


def _wrap_all(coordinates: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.stack([[wrapped(x) for x in coordinates[:, 0].tolist()], coordinates[:, 1]], axis=1)


def _split(drawn: BaseGeometry) -> BaseGeometry:
    left, _, right, _ = drawn.bounds
    if left >= -180.0 and right <= 180.0:
        return drawn
    window = shapely.box(-180.0, -90.0, 180.0, 90.0)
    pieces = [shapely.intersection(translate(drawn, xoff=turn), window) for turn in (-360.0, 0.0, 360.0)]
    parts = [part for piece in pieces for part in shapely.get_parts(piece) if isinstance(part, Polygon)]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _fence(number: int, feature: Any, version: int) -> Fence:
    def refuse(field: str, reason: str) -> FenceError:
        return FenceError(f"{owner}: {field} {reason}")

    owner = f"fence {number}"
    if not isinstance(feature, Mapping):
        raise refuse("feature", "is not an object; give a GeoJSON Feature")
    properties = feature.get("properties") or {}
    identity = feature.get("id", properties.get("id") if isinstance(properties, Mapping) else None)
    if isinstance(identity, int):
        identity = str(identity)
    if not isinstance(identity, str) or not NAME.fullmatch(identity):
        raise refuse("id", f"is {identity!r}; {NAME_RULE}")
    owner = f"fence {identity!r}"
    if not isinstance(properties, Mapping):
        raise refuse("properties", "is not an object; give name, buffer_m and radius_m or half_width_m there")
    geometry = feature.get("geometry")
    if not isinstance(geometry, Mapping):
        raise refuse("geometry", "is missing; give a Polygon, MultiPolygon, Point or LineString")

    def number_of(field: str, default: float | None, lowest: float, highest: float) -> float:
        value = properties.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise refuse(field, f"is {value!r}; give metres from {lowest:g} to {highest:g}")
        return float(value)

    name = properties.get("name", identity)
    if not isinstance(name, str) or not name.strip():
        raise refuse("name", f"is {name!r}; give a text")
    since = properties.get("since_version", version)
    if not isinstance(since, int) or not 0 < since <= max(version, 1):
        raise refuse("since_version", f"is {since!r}; leave it out, loading writes it")
    kind = str(geometry.get("type"))
    try:
        shape = _unwrapped(kind, geometry.get("coordinates"))
    except FenceError as error:
        raise refuse("geometry", str(error)) from None
    reach_m = number_of(_REACH_OF[kind], None, 1.0, MOST_REACH_M) if kind in _REACH_OF else 0.0
    left, south, right, north = shape.bounds
    if right - left > MOST_WIDTH_DEGREES:
        raise refuse("geometry", f"is {right - left:g}° wide; split it into fences of at most 180°")
    if max(abs(south), abs(north)) + degrees_around(0.0, reach_m)[1] > MOST_LATITUDE:
        raise refuse(
            "geometry", f"reaches beyond {MOST_LATITUDE:g}° of latitude; keep fences away from the poles"
        )
    middle = (left + right) / 2
    local = translate(shape, xoff=-middle)
    scale_x, scale_y = metres_per_degree((south + north) / 2)
    plane = scale(local, xfact=scale_x, yfact=scale_y, origin=(0.0, 0.0))
    shapely.prepare(local)
    shapely.prepare(plane)
    return Fence(
        id=identity,
        name=name,
        buffer_m=number_of("buffer_m", DEFAULT_BUFFER_M, 0.0, MOST_BUFFER_M),
        reach_m=reach_m,
        since_version=since,
        drawn=shape,
        middle=wrapped(middle),
        shape=local,
        plane=plane,
        scale_x=scale_x,
        scale_y=scale_y,
    )


def _unwrapped(kind: str, coordinates: Any) -> BaseGeometry:
    """The geometry with longitudes that run on beyond ±180° where an edge crosses it."""
    match kind:
        case "Point":
            return Point(_position(coordinates))
        case "LineString":
            line = _path(coordinates)
            if len(set(line)) < 2:
                raise FenceError("is a line of one position; give at least two different ones")
            return LineString(line)
        case "Polygon":
            return _polygon(coordinates)
        case "MultiPolygon":
            if not isinstance(coordinates, list | tuple) or not coordinates:
                raise FenceError("has no polygons; give at least one")
            first, *others = [_polygon(c) for c in coordinates]
            # A union, for the halves of a fence that was split at ±180° share an edge.
            return shapely.union_all([first, *(_near(first, p) for p in others)])
    raise FenceError(f"is a {kind}; give a Polygon, MultiPolygon, Point or LineString")


def _polygon(coordinates: Any) -> Polygon:
    if not isinstance(coordinates, list | tuple) or not coordinates:
        raise FenceError("has no rings; give the outer ring first, then its holes")
    shell, *holes = [_ring(c) for c in coordinates]
    polygon = Polygon(shell.exterior.coords, [_near(shell, hole).exterior.coords for hole in holes])
    if not polygon.is_valid:
        reason = shapely.is_valid_reason(polygon)
        raise FenceError(f"is not a valid polygon ({reason}); make its rings simple, its holes within it")
    if polygon.area == 0.0:
        raise FenceError("has no area; give a ring round the fence")
    return polygon


def _near(first: Polygon, other: Polygon) -> Polygon:
    middle = (first.bounds[0] + first.bounds[2]) / 2
    own = (other.bounds[0] + other.bounds[2]) / 2
    moved: Polygon = translate(other, xoff=middle + wrapped(own - middle) - own)
    return moved


def _ring(coordinates: Any) -> Polygon:
    path = _path(coordinates)
    if len(path) < 4:
        raise FenceError(f"has a ring of {len(path)} positions; give at least 4, the last equal to the first")
    if wrapped(path[0][0] - path[-1][0]) != 0.0 or path[0][1] != path[-1][1]:
        raise FenceError("has a ring that is not closed; repeat its first position at its end")
    if path[0][0] != path[-1][0]:
        raise FenceError("has a ring round a pole; keep fences away from the poles")
    return Polygon(path)


def _path(coordinates: Any) -> list[tuple[float, float]]:
    if not isinstance(coordinates, list | tuple) or not coordinates:
        raise FenceError("has no positions; give [longitude, latitude] pairs")
    path = [_position(coordinates[0])]
    last, turns = path[0][0], 0
    for position in coordinates[1:]:
        longitude, latitude = _position(position)
        step = longitude - last
        if abs(step) == 180.0:
            raise FenceError(
                f"has an edge of 180° of longitude at {list(position)}; add a position on its way"
            )
        # Whole turns are added to the longitude as given: adding up steps would round a ring open.
        turns += (step < -180.0) - (step > 180.0)
        path.append((longitude + 360.0 * turns, latitude))
        last = longitude
    return path


def _position(value: Any) -> tuple[float, float]:
    if (
        not isinstance(value, list | tuple)
        or len(value) < 2
        or any(
            isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in value[:2]
        )
    ):
        raise FenceError(f"has the position {value!r}; give [longitude, latitude] in degrees")
    longitude, latitude = float(value[0]), float(value[1])
    if not -180.0 <= longitude <= 180.0:
        raise FenceError(f"has longitude {longitude:g}; give -180 to 180, longitude before latitude")
    if not -90.0 <= latitude <= 90.0:
        raise FenceError(f"has latitude {latitude:g}; give -90 to 90, longitude before latitude")
    return longitude, latitude
