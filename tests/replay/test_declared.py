"""Every declared pipeline can be replayed, compared and swapped; analysts' views and the API follow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from api.app import create_app
from infra.broker import TopicSpec, ensure_topics, producer
from infra.cli import build
from infra.codec import Codec
from infra.generations import unfolded
from infra.postgres import connect
from infra.prepare import prepare_database
from infra.settings import Settings
from schemas.fleet import PIPELINE as FLEET
from schemas.fleet import TRUCK_TELEMETRY
from schemas.pipelines import PIPELINES
from tests.replay.live import ask

NAMES = [p.name for p in PIPELINES]


@pytest.fixture(scope="module")
def prepared(database: Settings, codec: Codec) -> Settings:
    """All declared topics and schemas are there, and the database's roles may log in."""
    topics = [x for p in PIPELINES for t in p.topics for x in (t, t.dlq)]
    ensure_topics(database.kafka, [TopicSpec.of(t) for t in topics])
    for topic in topics:
        codec.register(topic)
    prepare_database(database)
    return database


def cli(*arguments: str) -> Any:
    """The JSON that a command prints; it must succeed."""
    result = CliRunner().invoke(build(), list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(build(), list(arguments))
    assert result.exit_code == 1, result.output
    return result.stderr


@contextmanager
def running(*arguments: str) -> Iterator[None]:
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


def views(settings: Settings) -> dict[str, str]:
    return dict(
        ask(
            settings,
            "SELECT viewname, pg_get_viewdef(viewname::regclass) FROM pg_views WHERE schemaname = 'public'"
            " AND viewowner = current_user AND viewname NOT LIKE 'geo%' AND viewname NOT LIKE 'raster%'",
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_pipeline_can_be_swapped_and_migrated_afterwards(prepared: Settings, name: str) -> None:
    """Its views bind to the new generation, keep their columns, and a migration still finds plain tables."""
    before = views(prepared)
    swappable = [t.name for t in PIPELINES[name].tables if not t.append_only]
    run = cli("replay", "run", name, "--json")["run"]
    assert all(t["empty"] for t in cli("replay", "diff", str(run), "--json")["tables"])
    if not swappable:
        assert "append-only" in refused("replay", "swap", str(run), "--stopped")
    else:
        cli("replay", "swap", str(run), "--stopped")
        after = views(prepared)
        assert set(after) - set(before) == set(swappable)
        assert {v: d for v, d in after.items() if v in before} == before
        with connect(prepared.database_url) as connection:
            for view in after:
                connection.execute(f"SELECT * FROM {view} LIMIT 1".encode())
            with connection.transaction(), unfolded(connection):
                for table in swappable:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN note text".encode())
            for table in swappable:
                connection.execute(f"SELECT note FROM {table}".encode())
        assert {v: d for v, d in views(prepared).items() if v in before} == before
    cli("replay", "abort", str(run))
    assert ask(prepared, "SELECT count(*) FROM pg_namespace WHERE nspname ~ '^(replay|retired)_'") == [(0,)]


def test_fleet_is_replayed_from_the_command_line_and_the_api_follows(
    prepared: Settings, codec: Codec
) -> None:
    """plan, run, diff, swap, list and abort over real processes; the API answers throughout."""
    start_ms = int(time.time() * 1000) - 3_600_000
    p = producer(prepared.kafka)
    for n in range(600):
        truck = f"truck-{n % 6}"
        event = {
            "event_id": f"{truck}-{n}",
            "tenant": "default",
            "occurred_at": start_ms + n * 1_000,
            "truck_id": truck,
            "sequence": n,
            "latitude": 52.0 + n / 10_000,
            "longitude": 5.0,
        }
        p.produce(TRUCK_TELEMETRY.name, codec.encode(TRUCK_TELEMETRY, event), truck)
    assert p.flush(20) == 0
    with (
        running("streams", "fleet"),
        running("sinks", "fleet"),
        TestClient(create_app(prepared), headers=prepared.client_headers) as api,
    ):
        end = time.monotonic() + 60
        while ask(prepared, "SELECT count(*) FROM truck_positions") != [(600,)]:
            assert time.monotonic() < end
            time.sleep(0.2)
        trucks = api.get("/v1/trucks").json()["items"]
        assert len(trucks) == 6
        plan = cli("replay", "plan", "fleet", "--json")
        assert plan["topics"][0]["records"] == 600
        assert [t["in_reach"] for t in plan["tables"]][:2] == [600, 6]
        assert "600 records" in cli("replay", "plan", "fleet")
        run = cli("replay", "run", "fleet", "--rate", "5000", "--json")
        assert run["status"] == "ready" and run["records"] == 600
        number = str(run["run"])
        assert "is open" in refused("replay", "run", "fleet")
        assert "nothing differs" in cli("replay", "diff", number, "--exit-code")
        # A row that no code has written is gone in the replay.
        ask(prepared, "UPDATE latest_position SET speed_kmh = 7 WHERE truck_id = 'truck-1'")
        cli("replay", "swap", number)
        found = api.get("/v1/trucks").json()["items"]
        assert found == trucks
        assert "swapped" in cli("replay", "list")
        assert cli("replay", "list", "--json")[0]["status"] == "swapped"
        assert "deleted" in cli("replay", "abort", number)
        event = {**event, "event_id": "afterwards", "sequence": 9_999, "occurred_at": start_ms + 700_000}
        p.produce(TRUCK_TELEMETRY.name, codec.encode(TRUCK_TELEMETRY, event), str(event["truck_id"]))
        assert p.flush(20) == 0
        end = time.monotonic() + 30
        while api.get(f"/v1/trucks/{event['truck_id']}").json()["event_id"] != "afterwards":
            assert time.monotonic() < end
            time.sleep(0.2)
    assert FLEET.sink_name
    assert "there is no replay 4711" in refused("replay", "diff", "4711")
    assert "there are: fraud" in refused("replay", "plan", "nothing")
