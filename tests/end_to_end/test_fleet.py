"""Trucks from the gateway to the API, with processor and sink as processes on the real services."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from api.app import create_app as create_api
from connectors.gateway import create_app as create_gateway
from infra.broker import TopicSpec, ensure_topics, producer
from infra.cli import build
from infra.codec import Codec
from infra.dead_letters import REASON_HEADER
from infra.postgres import connect
from infra.settings import Settings
from schemas.fleet import PIPELINE, TRUCK_TELEMETRY
from tests.signed_in import signed_in

START_MS = 1_735_722_000_000  # 2025-01-01 09:00 UTC
TRUCK = "truck-e2e"
YARD = {
    "type": "Polygon",
    "coordinates": [[[5.0, 52.0], [5.01, 52.0], [5.01, 52.01], [5.0, 52.01], [5.0, 52.0]]],
}
OUT, IN = 4.99, 5.005


def fix(n: int, longitude: float = OUT, **values: Any) -> dict[str, Any]:
    """The n-th fix of the truck, ten seconds after the one before."""
    return {
        "event_id": f"{TRUCK}-{n}",
        "truck_id": TRUCK,
        "occurred_at": START_MS + 10_000 * n,
        "sequence": n,
        "latitude": 52.005,
        "longitude": longitude,
        "accuracy_m": 5.0,
        **values,
    }


VISIT = [fix(n, x) for n, x in enumerate([OUT, IN, IN, IN, OUT, OUT])]
HOT = [fix(n, OUT, engine_temperature_c=104.5) for n in range(6, 37)]
LATE = fix(100, IN, occurred_at=START_MS + 5_000)
INVALID = fix(200, latitude=95.0)


def cli(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), list(arguments))
    return result.exit_code, result.output


@contextmanager
def running(*arguments: str) -> Iterator[None]:
    """A process of ours, until the block ends."""
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    try:
        yield
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@pytest.fixture(scope="module")
def fleet(database: Settings, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The pipeline with one fence of ours, all its records sent, and what came of them in the tables."""
    topics = [x for t in PIPELINE.topics for x in (t, t.dlq)]
    ensure_topics(database.kafka, [TopicSpec.of(t) for t in topics])
    for topic in topics:
        codec.register(topic)
    path = tmp_path_factory.mktemp("fences") / "yard.geojson"
    feature = {"type": "Feature", "id": "yard", "properties": {"name": "Yard"}, "geometry": YARD}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    code, output = cli("fleet", "fences", "load", str(path))
    assert code == 0 and ": 1 fences" in output, output
    with running("streams", "fleet"), running("sinks", "fleet"):
        with TestClient(create_gateway(database), headers=signed_in(database)) as gateway:
            for body in (VISIT, HOT, fix(37, engine_temperature_c=90), LATE, VISIT[1]):
                answer = gateway.post("/v1/telemetry", json=body)
                assert answer.status_code == 202, answer.text
                events, receipts = (
                    (body, answer.json()) if isinstance(body, list) else ([body], [answer.json()])
                )
                assert [r["event_id"] for r in receipts] == [e["event_id"] for e in events]
        poison = producer(database.kafka)
        empty = dict.fromkeys(TRUCK_TELEMETRY.fields)
        value = codec.encode(TRUCK_TELEMETRY, {**empty, "tenant": "default", **INVALID})
        poison.produce(TRUCK_TELEMETRY.name, value, TRUCK)
        reason = "latitude: Input should be a valid number; correct the device's message"
        poison.produce(TRUCK_TELEMETRY.name, b"{}", TRUCK, headers=[(REASON_HEADER, reason.encode())])
        assert poison.flush(20) == 0
        with connect(database.database_url) as connection:
            until(
                lambda: [
                    connection.execute(f"SELECT count(*) FROM {table} WHERE {column}").fetchone()
                    for table, column in (
                        ("truck_positions", f"truck_id = '{TRUCK}'"),
                        ("dead_letters", "pipeline = 'fleet'"),
                        ("truck_alerts", f"truck_id = '{TRUCK}'"),
                    )
                ],
                lambda counts: counts == [(39,), (2,), (5,)],
            )
        yield database


@pytest.fixture(scope="module")
def api(fleet: Settings) -> Iterator[TestClient]:
    with TestClient(create_api(fleet), headers=signed_in(fleet)) as client:
        yield client


def until(ask: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 90.0) -> Any:
    end = time.monotonic() + seconds
    while not wanted(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(0.1)
    return answer


def pages(api: TestClient, path: str, **query: Any) -> list[list[dict[str, Any]]]:
    """The items on each page until there is no next one."""
    found, cursor = [], None
    while True:
        answer = api.get(path, params={**query, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["items"])
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found


def test_every_event_is_found_again(fleet: Settings) -> None:
    """Each event sent is a position or a dead letter that names field, reason and remedy; none is both."""
    with connect(fleet.database_url) as connection:
        stored = [i for (i,) in connection.execute("SELECT event_id FROM truck_positions").fetchall()]
        dead = connection.execute(
            "SELECT input_id, error_class, field, error FROM dead_letters WHERE pipeline = 'fleet'"
            ' ORDER BY "offset"'
        ).fetchall()
    assert sorted(str(i) for i in stored) == sorted(e["event_id"] for e in [*VISIT, *HOT, fix(37), LATE])
    assert dead == [
        (f"{TRUCK}-200", "invalid", "latitude", "latitude is 95; send a value from -90 to 90"),
        (None, "undecodable", None, "latitude: Input should be a valid number; correct the device's message"),
    ]


def test_analysts_see_visit_and_episode(fleet: Settings) -> None:
    """The views show the stay with its times, the overheated engine, and the fences of each version."""
    with connect(fleet.database_url) as connection:
        visits = connection.execute(
            "SELECT fence_name, extract(epoch FROM entered_at) * 1000 - %s,"
            " extract(epoch FROM left_at) * 1000 - %s, extract(epoch FROM stayed), began_before"
            " FROM fence_visits WHERE truck_id = %s",
            (START_MS, START_MS, TRUCK),
        ).fetchall()
        episodes = connection.execute(
            "SELECT extract(epoch FROM raised_at - hot_since), cleared_at IS NOT NULL FROM overheat_episodes"
            " WHERE truck_id = %s",
            (TRUCK,),
        ).fetchall()
        fences = connection.execute(
            "SELECT fence_id, since_version, ST_Area(geometry::geography) BETWEEN 7e5 AND 8e5"
            " FROM fence_versions WHERE version = 2"
        ).fetchall()
        partition = connection.execute("SELECT to_regclass('truck_positions_20250101t0000')").fetchone()
    assert visits == [("Yard", 10_000, 40_000, 30, False)]
    assert episodes == [(300, True)]
    assert fences == [("yard", 2, True)]
    assert partition == ("truck_positions_20250101t0000",)


def test_newest_position(api: TestClient) -> None:
    """The newest position is the newest by event time, though history came after it; others are 404."""
    truck = api.get(f"/v1/trucks/{TRUCK}").json()
    assert (truck["event_id"], truck["engine_temperature_c"], truck["fences"]) == (f"{TRUCK}-37", 90, [])
    missing = api.get("/v1/trucks/none")
    assert missing.status_code == 404 and "none" in missing.json()["detail"]
    assert api.get("/v1/trucks/a%00b").status_code == 422


def test_trucks_near_a_place(api: TestClient) -> None:
    """Trucks within the radius are found with their distance; a place that is none is refused."""
    (near,) = api.get("/v1/trucks", params={"near": f"52.005,{OUT + 0.001}", "radius_m": 100}).json()["items"]
    assert near["truck_id"] == TRUCK
    assert near["distance_m"] == pytest.approx(68.66, abs=0.5)
    assert api.get("/v1/trucks", params={"near": "52.005,4.0", "radius_m": 100}).json()["items"] == []
    assert [[t["truck_id"] for t in page] for page in pages(api, "/v1/trucks")] == [[TRUCK]]
    refused = api.get("/v1/trucks", params={"near": "north"})
    assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "near"


def test_path(api: TestClient) -> None:
    """The path is all fixes in the order of event time, the late one in its place, page by page."""
    found = pages(api, f"/v1/trucks/{TRUCK}/path", limit=10)
    assert [len(page) for page in found] == [10, 10, 10, 9]
    path = [p for page in found for p in page]
    assert [p["occurred_at"] for p in path] == sorted(p["occurred_at"] for p in path)
    assert [p["event_id"] for p in path[:3]] == [f"{TRUCK}-0", f"{TRUCK}-100", f"{TRUCK}-1"]
    assert [p["is_late"] for p in path[:3]] == [False, True, False]
    span = {"from": "2025-01-01T09:00:10Z", "to": "2025-01-01T09:00:30Z"}
    feature = api.get(f"/v1/trucks/{TRUCK}/path", params=span | {"as": "geojson"}).json()
    assert feature["geometry"] == {"type": "LineString", "coordinates": [[IN, 52.005], [IN, 52.005]]}
    assert feature["properties"]["times"] == ["2025-01-01T09:00:10Z", "2025-01-01T09:00:20Z"]


def test_alerts(api: TestClient) -> None:
    """Alerts are found by truck, fence, kind and time, the newest first."""
    found = [a["kind"] for page in pages(api, "/v1/alerts", truck_id=TRUCK, limit=2) for a in page]
    assert found == [
        "engine_overheat_cleared",
        "engine_overheat_raised",
        "geofence_exit",
        "geofence_enter",
        "geofence_outside",
    ]
    enter, exit_ = "geofence_enter", "geofence_exit"
    in_yard = api.get("/v1/alerts", params={"fence_id": "yard", "kind": [enter, exit_]}).json()["items"]
    assert [a["kind"] for a in in_yard] == [exit_, enter]
    assert in_yard[0]["started_by"] == in_yard[1]["event_id"]
    assert api.get("/v1/alerts", params={"to": "2025-01-01T09:00:00Z"}).json()["items"] == []
    assert api.get("/v1/alerts", params={"kind": "theft"}).status_code == 422


def test_gateway_names_field_and_reason(fleet: Settings) -> None:
    """Unusable telemetry is refused with 422, field, reason and remedy; none of its list is sent."""
    with TestClient(create_gateway(fleet), headers=signed_in(fleet)) as gateway:
        for body, field, reason in (
            (fix(1) | {"latitude": 95}, "fix.latitude", "latitude is 95; send a value from -90 to 90"),
            ([fix(300), fix(301) | {"speed_kmh": "fast"}], "fixes.1.speed_kmh", "valid number"),
            ([], "fixes", "at least 1 item"),
        ):
            answer = gateway.post("/v1/telemetry", json=body)
            assert answer.status_code == 422
            (error,) = answer.json()["errors"]
            assert error["field"] == field and reason in error["reason"]
    with connect(fleet.database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM truck_positions WHERE event_id LIKE '%-300'"
        ).fetchone()
    assert row == (0,)


def test_load_stops_and_refuse_bad_fences(fleet: Settings, tmp_path: Path) -> None:
    """Stops become circles of the next version; a fence that cannot be used leaves the version in force."""
    bad = tmp_path / "bad.geojson"
    ring = [[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]
    bowtie = {"type": "Feature", "id": "x", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    bad.write_text(json.dumps({"type": "FeatureCollection", "features": [bowtie]}))
    code, output = cli("fleet", "fences", "load", str(bad))
    assert code == 1 and "fence 'x': geometry is not a valid polygon (Self-intersection[0.5 0.5])" in output
    stops = tmp_path / "stops.csv"
    stops.write_text("stop_id,stop_name,latitude,longitude\n17,Market,52.1,4.1\n18,Station,52.2,4.2\n")
    code, output = cli("fleet", "fences", "load", str(stops), "--radius-m", "25")
    assert (code, output) == (0, "version 3: 2 fences\n")
    code, output = cli("fleet", "fences", "show")
    features = json.loads(output)["features"]
    assert [(f["id"], f["properties"]["name"], f["properties"]["radius_m"]) for f in features] == [
        ("17", "Market", 25.0),
        ("18", "Station", 25.0),
    ]
