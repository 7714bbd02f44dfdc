"""Real files through the whole platform, and what must come of them to the last row (`make test-real-input`).

Every test prints how long its input took from the first command until the last row stood in the sink.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from infra.broker import admin
from infra.codec import Codec
from infra.settings import Settings
from infra.topic_log import ends, partitions, read, starts
from infra.watch import Watch
from schemas.declare import Pipeline, Topic
from schemas.orders import ORDER_STATUS, STOCK_COMMANDS, STOCK_RESULTS
from schemas.pipelines import PIPELINES
from tests.instance import millrace, running
from tests.streams.fleet.test_traces import rows, scanned
from tests.streams.orders.oracle import check, replay_commands

pytestmark = [pytest.mark.real_input, pytest.mark.timeout(3_600)]

DATA = next(
    (at / "shared/data" for at in Path(__file__).parents if (at / "shared/data").exists()),
    Path("shared/data"),
)
HANDBOOK = DATA / "fraud/handbook-2018-04-01-to-09-04.parquet"
HANDBOOK_ROWS = 1_504_628
RETAIL = DATA / "orders/online-retail.parquet"
BUS = DATA / "fleet/limerick-bus-304.parquet"
STOPS = DATA / "fleet/limerick-bus-304-stops.parquet"
STOP_RADIUS_M, STOP_BUFFER_M = 30.0, 10.0
STEP_SECONDS = 3_000.0


@pytest.fixture(scope="module")
def platform() -> Iterator[Settings]:
    assert DATA.exists(), "the folder shared/data is not beside the project; lay it there, or leave this out"
    with running("real-input", offset=700) as settings:
        yield settings


def do(settings: Settings, *arguments: str) -> None:
    done = millrace(settings, *arguments, seconds=STEP_SECONDS)
    assert done.returncode == 0, done.stderr


def drain(settings: Settings, pipeline: Pipeline) -> None:
    """Until the pipeline's processors and sink have read everything; prints how far they are."""
    watch = Watch(settings, PIPELINES)
    end = time.monotonic() + STEP_SECONDS
    told = 0.0
    while True:
        figures = watch.look()[pipeline.name]
        if not watch.lags(pipeline):
            return
        assert time.monotonic() < end, figures
        if time.monotonic() > told + 20:
            told = time.monotonic()
            print(f"  {figures.decided} decided, {figures.in_sink} in the sink, lag {figures.lag_records}")  # noqa: T201
        time.sleep(0.5)


def pipeline_of(name: str) -> Pipeline:
    return next(p for p in PIPELINES if p.name == name)


def ask(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(settings.database_url) as connection:
        return connection.execute(query.encode()).fetchall()


def events(settings: Settings, topic: Topic) -> list[dict[str, Any]]:
    """Every event of a topic, each partition in its order."""
    client, wanted = admin(settings.kafka), partitions([topic])
    logs: dict[int, list[dict[str, Any]]] = {at.partition: [] for at in wanted}
    with closing(Codec(settings.schema_registry_url)) as codec:
        for messages in read(settings.kafka, starts(client, wanted), ends(client, wanted)):
            for message in messages:
                logs[int(message.partition() or 0)].append(codec.decode(topic, message.value()).event)
    return [event for log in logs.values() for event in log]


def told(what: str, began: float, records: int) -> None:
    seconds = time.monotonic() - began
    print(f"{what}: {seconds:.1f} s, {records / seconds:.0f} records/s")  # noqa: T201 - the figures are the point


def test_the_bus_calls_at_its_stops(platform: Settings) -> None:
    """The Limerick bus's alerts are the stop visits that a scan of its whole trace finds."""
    began = time.monotonic()
    do(platform, "fleet", "fences", "load", str(STOPS), "--radius-m", str(STOP_RADIUS_M))
    do(platform, "ingest", "fleet", str(BUS))
    drain(platform, pipeline_of("fleet"))
    bus = [
        {
            "latitude": r["latitude"],
            "longitude": r["longitude"],
            "occurred_at": int(r["occurred_at"].timestamp() * 1000),
        }
        for r in rows(BUS.name)
    ]
    told(f"the bus's {len(bus)} fixes", began, len(bus))
    truth = sorted(
        visit for stop in rows(STOPS.name) for visit in scanned(bus, stop, STOP_RADIUS_M, STOP_BUFFER_M)
    )
    found = ask(
        platform,
        "SELECT i.fence_id, (extract(epoch FROM i.occurred_at) * 1000)::bigint,"
        " (extract(epoch FROM o.occurred_at) * 1000)::bigint FROM truck_alerts i"
        " LEFT JOIN truck_alerts o ON o.started_by = i.event_id AND o.kind = 'geofence_exit'"
        " WHERE i.kind IN ('geofence_enter', 'geofence_inside')",
    )
    assert len(truth) > 20
    assert sorted(found) == truth
    assert ask(platform, "SELECT count(*) FROM truck_positions") == [(len(bus),)]


def test_every_transaction_of_the_handbook_is_in_the_ledger(platform: Settings) -> None:
    """All 1,504,628 rows of the handbook's file are in card_ledger once, with their sums, none refused."""
    began = time.monotonic()
    do(platform, "ingest", "fraud", str(HANDBOOK))
    drain(platform, pipeline_of("fraud"))
    told("the handbook", began, HANDBOOK_ROWS)
    table = pq.read_table(HANDBOOK, columns=["amount"]).to_pandas()
    minor = int((table["amount"] * 100).round().sum())
    assert len(table) == HANDBOOK_ROWS
    assert ask(platform, "SELECT count(*), sum(amount_minor) FROM card_ledger") == [(HANDBOOK_ROWS, minor)]
    assert ask(platform, "SELECT count(*) FROM dead_letters WHERE pipeline = 'fraud'") == [(0,)]


def test_the_shop_sells_no_unit_twice(platform: Settings) -> None:
    """With stock for half the demand, all answers are those of a plain loop over the recorded commands."""
    began = time.monotonic()
    do(platform, "orders", "opening-stock", str(RETAIL), "--share", "0.5")
    do(platform, "ingest", "orders", str(RETAIL))
    drain(platform, pipeline_of("orders"))
    commands = events(platform, STOCK_COMMANDS)
    told("the shop", began, len(commands))
    results = {e["event_id"]: e for e in events(platform, STOCK_RESULTS)}
    statuses = {e["event_id"]: e for e in events(platform, ORDER_STATUS)}
    print(check(commands, list(results.values()), list(statuses.values())))  # noqa: T201 - likewise

    stock, outcomes = replay_commands(commands)
    assert dict(ask(platform, "SELECT event_id, ROW(outcome, quantity)::text FROM stock_ledger")) == {
        event_id: f"({outcome},{units})" for event_id, (outcome, units) in outcomes.items()
    }
    held = ask(platform, "SELECT sku, on_hand, reserved FROM stock")
    assert {sku: (on_hand, reserved) for sku, on_hand, reserved in held} == {
        sku: (s["on_hand"], s["reserved"]) for sku, s in stock.items()
    }
    assert ask(platform, "SELECT count(*) FROM order_stock_mismatches") == [(0,)]
    ended = "status IN ('CONFIRMED', 'REJECTED', 'CANCELLED', 'RETURNED')"
    assert ask(platform, f"SELECT count(*) FROM orders WHERE NOT ({ended})") == [(0,)]
    print(Counter(outcome for outcome, _ in outcomes.values()))  # noqa: T201 - likewise
