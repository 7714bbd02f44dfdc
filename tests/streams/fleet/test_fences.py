"""Fences are read, refused with a reason, split at ±180°, and found."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.fleet.fences import FenceError, read_fences, written_fences
from streams.fleet.geodesy import distance_m, metres_per_degree, wrapped
from tests.streams.fleet.fixes import circle, collection, feature, fences, square

RING = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
HOLE = [[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]]

grid = st.integers(-(2**13), 2**13).map(lambda n: n / 2**10)  # -8 to 8 degrees, exact in binary


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


@pytest.mark.parametrize(
    ("one", "other", "metres"),
    [
        # Flinders Peak to Buninyong, the worked example of Vincenty's formula in the GDA manual (GRS 80).
        ((144.42486789, -37.95103342), (143.92649553, -37.65282114), 54_972.271),
        # A quarter of the equator, and of a meridian, of WGS 84.
        ((-40.0, 0.0), (50.0, 0.0), 10_018_754.171),
        ((10.0, 0.0), (10.0, 89.999999), 10_001_965.618),
        # One ten-thousandth of a degree over ±180°.
        ((179.99995, 0.0), (-179.99995, 0.0), 11.1319),
    ],
)
def test_distance(one: tuple[float, float], other: tuple[float, float], metres: float) -> None:
    """Distances agree with published geodesics to 1 in 100,000."""
    assert distance_m(*one, *other) == pytest.approx(metres, rel=1e-5)
    assert distance_m(*other, *one) == pytest.approx(metres, rel=1e-5)
    assert distance_m(*one, *one) == 0.0


def test_boundary_and_hole() -> None:
    """A fence's edge and corners count as inside, its hole does not, the hole's edge does."""
    (fence,) = fences(feature("f", polygon(RING, HOLE))).fences
    assert all(fence.covers(x, y) for x, y in [(0, 0), (2, 0), (4, 4), (0.5, 2), (1, 2), (3, 3)])
    assert not any(fence.covers(x, y) for x, y in [(2, 2), (1.001, 1.001), (4.0001, 2), (2, -0.0001)])
    assert fence.metres_beyond(1.5, 2) == pytest.approx(0.5 * metres_per_degree(2)[0], rel=1e-3)
    assert fence.metres_beyond(0.5, 2) == 0.0


def test_multipolygon_and_corridor() -> None:
    """All parts of a MultiPolygon belong to the fence; a corridor reaches its half width to both sides."""
    parts = {"type": "MultiPolygon", "coordinates": [[RING], [[[9, 9], [10, 9], [10, 10], [9, 9]]]]}
    (fence,) = fences(feature("f", parts)).fences
    assert fence.covers(2, 2) and fence.covers(9.9, 9.5) and not fence.covers(7, 7)
    line = {"type": "LineString", "coordinates": [[5.0, 52.0], [5.2, 52.0], [5.2, 52.2]]}
    (corridor,) = fences(feature("c", line, half_width_m=200)).fences
    metre = 1 / metres_per_degree(52.0)[1]
    assert corridor.covers(5.1, 52.0 + 199 * metre) and not corridor.covers(5.1, 52.0 + 201 * metre)
    assert corridor.metres_beyond(5.1, 52.0 - 250 * metre) == pytest.approx(50, abs=0.1)


def test_circle_radius_is_geodesic() -> None:
    """A circle's edge lies its radius away in every direction, also at 65° north and over ±180°."""
    for middle in (20.0, 179.99, -180.0):
        (fence,) = fences(circle("c", middle, 65.0, 5_000)).fences
        east, north = metres_per_degree(65.0)
        for share, inside in ((0.999, True), (1.001, False)):
            assert fence.covers(wrapped(middle + share * 5_000 / east), 65.0) is inside
            assert fence.covers(wrapped(middle - share * 5_000 / east), 65.0) is inside
            assert fence.covers(middle, 65.0 + share * 5_000 / north) is inside


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "type is not FeatureCollection"),
        ({"type": "FeatureCollection"}, "features is not a list"),
        (collection({"id": "a"}), "fence 'a': geometry is missing"),
        (collection(feature("a/b", polygon(RING))), "fence 1: id is 'a/b'; use 1 to 64 characters"),
        (collection(feature("a", polygon(RING)), feature("a", polygon(RING))), "id is used twice"),
        (collection(feature("a", polygon(RING[:3]))), "a ring of 3 positions; give at least 4"),
        (collection(feature("a", polygon(RING[:4]))), "not closed; repeat its first position"),
        (
            collection(feature("a", polygon([[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]))),
            "Self-intersection[0.5 0.5]",
        ),
        (collection(feature("a", polygon(RING, [[3, 3], [5, 3], [5, 5], [3, 3]]))), "not a valid polygon"),
        (collection(feature("a", polygon([[0, 0], [200, 0], [200, 1], [0, 0]]))), "longitude 200"),
        (collection(feature("a", polygon([[0, 0], [9, 0], [9, 95], [0, 0]]))), "latitude 95"),
        (collection(feature("a", polygon([[0, 0], ["x", 0], [9, 9], [0, 0]]))), "the position ['x', 0]"),
        (collection(feature("a", polygon([[0, 0], [180, 0], [9, 9], [0, 0]]))), "an edge of 180°"),
        (collection(feature("a", polygon([[0, 80], [120, 80], [-120, 80], [0, 80]]))), "round a pole"),
        (collection(feature("a", polygon([[0, 80], [1, 80], [1, 90], [0, 80]]))), "89° of latitude"),
        (
            collection(
                feature("a", polygon([[-95, 0], [0, 0], [95, 0], [95, 1], [0, 1], [-95, 1], [-95, 0]]))
            ),
            "190° wide",
        ),
        (collection(feature("a", {"type": "Point", "coordinates": [1, 2]})), "radius_m is None; give metres"),
        (collection(circle("a", 1, 2, float("nan"))), "radius_m is nan"),
        (collection(circle("a", 1, 88.9, 100_000)), "89° of latitude"),
        (collection(feature("a", polygon(RING), buffer_m=-1)), "buffer_m is -1"),
        (collection(feature("a", {"type": "GeometryCollection"})), "is a GeometryCollection"),
    ],
)
def test_refusal(body: Any, reason: str) -> None:
    """A fence that cannot be used is refused in one sentence that names it, the reason and the remedy."""
    with pytest.raises(FenceError) as refusal:
        read_fences(1, body)
    assert reason in str(refusal.value)


def test_antimeridian_is_split_on_write() -> None:
    """A fence across ±180° is stored as two halves and covers the same points when it is read again."""
    fiji = square("fiji", 177.0, -19.0, 4.5, name="Fiji")
    written = json.loads(json.dumps(written_fences(1, collection(fiji))))
    geometry = written["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert sorted({x for part in geometry["coordinates"] for x, _ in part[0]}) == [
        -180.0,
        -178.5,
        177.0,
        180.0,
    ]
    again = written_fences(2, written, written)
    assert again["features"][0]["properties"] == {"name": "Fiji", "buffer_m": 10.0, "since_version": 1}
    for body in (collection(fiji), written, again):
        version = read_fences(2, body)
        inside = [(179.0, -18.0), (180.0, -18.0), (-180.0, -18.0), (-179.0, -16.0), (177.0, -19.0)]
        outside = [(-178.4, -18.0), (176.9, -18.0), (0.0, -18.0), (180.0, -19.1)]
        found = version.locate([x for x, _ in inside + outside], [y for _, y in inside + outside])
        assert found == [["fiji"]] * len(inside) + [[]] * len(outside)


def test_written_fences_keep_their_first_version() -> None:
    """A fence that the version before held keeps since_version; a new one gets the version it came in."""
    first = written_fences(3, collection(square("a", 0, 0)))
    second = written_fences(4, collection(square("a", 0, 0, 2.0), square("b", 5, 5)), first)
    assert {f["id"]: f["properties"]["since_version"] for f in second["features"]} == {"a": 3, "b": 4}


@given(
    corner=st.tuples(grid, grid),
    hole=st.booleans(),
    points=st.lists(st.tuples(grid, grid), min_size=1, max_size=20),
    shift=st.integers(-360, 360),
)
def test_longitude_shift(
    corner: tuple[float, float], hole: bool, points: list[tuple[float, float]], shift: int
) -> None:
    """Shifting fences and points together in longitude, over ±180° too, changes no answer and no distance."""

    def shifted(by: int) -> tuple[list[list[str]], list[float]]:
        def at(x: float, y: float) -> list[float]:
            return [wrapped(x + by), y]

        rings = [[at(corner[0] + x, corner[1] + y) for x, y in ring] for ring in (RING, HOLE)[: 1 + hole]]
        version = fences(
            feature("p", polygon(*rings)),
            feature("c", {"type": "Point", "coordinates": at(*corner)}, radius_m=300_000),
            feature(
                "l", {"type": "LineString", "coordinates": [at(*corner), at(0.25, 7.5)]}, half_width_m=40_000
            ),
        )
        moved = [at(x, y) for x, y in points]
        found = version.locate([x for x, _ in moved], [y for _, y in moved])
        return found, [f.metres_beyond(x, y) for f in version.fences for x, y in moved]

    if corner == (0.25, 7.5):
        return
    assert shifted(shift) == shifted(0)


def test_index_finds_what_a_scan_finds() -> None:
    """The index gives the same answer as asking every fence, each point alone or all together."""
    rng = random.Random(5)
    version = fences(
        *(circle(f"c{n}", rng.uniform(-180, 180), rng.uniform(-60, 60), 400_000) for n in range(60)),
        *(square(f"s{n}", rng.uniform(-180, 180), rng.uniform(-60, 60), 5.0) for n in range(60)),
    )
    points = [(rng.choice([rng.uniform(-180, 180), 180.0, -180.0]), rng.uniform(-70, 70)) for _ in range(500)]
    together = version.locate([x for x, _ in points], [y for _, y in points])
    assert together == [[f.id for f in version.fences if f.covers(x, y)] for x, y in points]
    assert together == [version.locate([x], [y])[0] for x, y in points]
    assert sum(map(len, together)) > 50
