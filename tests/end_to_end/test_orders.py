"""Orders from the gateway to the API, on the real broker, registry and database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient

from api.app import create_app as create_api
from connectors.gateway import create_app as create_gateway
from infra.broker import TopicSpec, ensure_topics, producer
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.orders import ORDER_EVENTS, PIPELINE
from sinks.orders import ROWS
from sinks.runtime import Sink
from streams.orders import PROCESSORS
from streams.runtime import Worker
from tests.signed_in import signed_in


@contextmanager
def thread(run: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Run something until the block ends, and let its error be the test's."""
    errors: list[BaseException] = []

    def main() -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    running = threading.Thread(target=main, daemon=True)
    running.start()
    try:
        yield
    finally:
        end()
        running.join(30)
        assert not running.is_alive()
        assert errors == []


@contextmanager
def worker(settings: Settings) -> Iterator[None]:
    ready = threading.Event()
    handle: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def work() -> None:
        handle.append((asyncio.get_running_loop(), asyncio.Event()))
        made = Worker(settings, PIPELINE, PROCESSORS, Health())
        ready.set()
        await made.run(handle[0][1])

    def end() -> None:
        loop, ending = handle[0]
        loop.call_soon_threadsafe(ending.set)

    with thread(lambda: asyncio.run(work()), end):
        assert ready.wait(10)
        yield


@pytest.fixture(scope="module")
def orders(database: Settings, codec: Codec) -> Iterator[Settings]:
    """The pipeline's topics and schemas, its processors and its sink."""
    topics = [x for t in PIPELINE.topics for x in (t, t.dlq)]
    ensure_topics(database.kafka, [TopicSpec.of(t) for t in topics])
    for topic in topics:
        codec.register(topic)
    sink = Sink(database, PIPELINE, ROWS, Health())
    with worker(database), thread(sink.run, sink.ending.set):
        yield database


@pytest.fixture(scope="module")
def gateway(orders: Settings) -> Iterator[TestClient]:
    with TestClient(create_gateway(orders), headers=signed_in(orders)) as client:
        yield client


@pytest.fixture(scope="module")
def api(orders: Settings) -> Iterator[TestClient]:
    with TestClient(create_api(orders), headers=signed_in(orders)) as client:
        yield client


def until(ask: Callable[[], Any], wanted: Callable[[Any], bool], seconds: float = 40.0) -> Any:
    """Ask until the answer is wanted; fails with the last answer."""
    end = time.monotonic() + seconds
    while not wanted(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(0.1)
    return answer


def place(gateway: TestClient, order_id: str, *lines: tuple[str, int], **more: Any) -> dict[str, Any]:
    body = {
        "order_id": order_id,
        "customer_id": "ada",
        "currency": "EUR",
        "lines": [{"sku": sku, "quantity": quantity, "unit_price_minor": 250} for sku, quantity in lines],
    }
    answer = gateway.post("/v1/orders", json=body | more)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def settled(api: TestClient, order_id: str, status: str) -> dict[str, Any]:
    found: dict[str, Any] = until(
        lambda: api.get(f"/v1/orders/{order_id}").json(), lambda order: order.get("status") == status
    )
    return found


def stock(api: TestClient, sku: str) -> dict[str, int]:
    found = api.get(f"/v1/stock/{sku}").json()
    return {name: found[name] for name in ("on_hand", "reserved", "available", "version")}


def receive(gateway: TestClient, api: TestClient, sku: str, quantity: int) -> None:
    answer = gateway.post(f"/v1/stock/{sku}/receipts", json={"quantity": quantity, "event_id": f"r-{sku}"})
    assert answer.status_code == 202, answer.text
    until(lambda: api.get(f"/v1/stock/{sku}").status_code, lambda status: status == 200)


def test_an_order_is_reserved_confirmed_and_cancelled(gateway: TestClient, api: TestClient) -> None:
    """From the gateway through saga, stock and sink to the API, and back again by a cancellation."""
    receive(gateway, api, "mug", 5)
    receive(gateway, api, "jug", 2)
    accepted = place(gateway, "e-1", ("mug", 2), ("jug", 2), ("mug", 1))
    assert accepted["topic"] == ORDER_EVENTS.name
    order = settled(api, "e-1", "CONFIRMED")
    assert [(x["sku"], x["quantity"], x["amount_minor"], x["state"]) for x in order["lines"]] == [
        ("jug", 2, 500, "held"),
        ("mug", 3, 750, "held"),
    ]
    assert (order["total_minor"], order["customer_id"]) == (1250, "ada")
    assert stock(api, "mug") == {"on_hand": 5, "reserved": 3, "available": 2, "version": 2}

    place(gateway, "e-2", ("jug", 1), ("mug", 1))
    assert settled(api, "e-2", "REJECTED")["reason"] == "jug: 1 asked, 0 available"

    cancelled = gateway.post("/v1/orders/e-1/cancel")
    assert (cancelled.status_code, cancelled.json()["order_id"]) == (202, "e-1")
    settled(api, "e-1", "CANCELLED")
    until(lambda: stock(api, "mug")["available"], lambda units: units == 5)

    history = api.get("/v1/orders/e-1/history", params={"limit": 3}).json()
    rest = api.get("/v1/orders/e-1/history", params={"cursor": history["next_cursor"]}).json()
    assert [change["status"] for change in history["items"] + rest["items"]] == [
        "PENDING",
        "CONFIRMED",
        "CANCELLING",
        "CANCELLED",
    ]
    assert rest["next_cursor"] is None


def test_a_resent_request_takes_effect_once(gateway: TestClient, api: TestClient, orders: Settings) -> None:
    """The same event id twice is one order, one receipt; a second order of the same id is refused."""
    receive(gateway, api, "cup", 9)
    gateway.post("/v1/stock/cup/receipts", json={"quantity": 9, "event_id": "r-cup"})
    for _ in range(3):
        place(gateway, "e-3", ("cup", 2), event_id="evt-3")
    place(gateway, "e-3", ("cup", 1), event_id="evt-3b")
    refused = until(lambda: api.get("/v1/orders/e-3/history").json()["items"], lambda items: len(items) == 3)
    assert sorted(i["outcome"] for i in refused) == ["accepted", "accepted", "refused"]
    settled(api, "e-3", "CONFIRMED")
    assert stock(api, "cup") == {"on_hand": 9, "reserved": 2, "available": 7, "version": 2}
    with connect(orders.database_url) as connection:
        evidence = connection.execute(
            "SELECT DISTINCT input_id FROM order_status_log WHERE order_id = 'e-3' ORDER BY 1"
        ).fetchall()
        receipts = connection.execute("SELECT count(*) FROM stock_ledger WHERE input_id = 'r-cup'").fetchone()
    assert evidence == [("evt-3",), ("evt-3b",)]
    assert receipts == (1,)


def test_poison_stands_in_the_dead_letters(
    gateway: TestClient, api: TestClient, orders: Settings, codec: Codec
) -> None:
    """Random bytes and an impossible quantity are refused with their reason; the order between lands."""
    receive(gateway, api, "pan", 1)
    event = {
        "event_id": "evt-bad",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000,
        "order_id": "e-4",
        "kind": "placed",
        "customer_id": None,
        "currency": "EUR",
        "lines": [{"sku": "pan", "quantity": -1, "unit_price_minor": 1}],
    }
    sender = producer(orders.kafka)
    sender.produce(ORDER_EVENTS.name, b"\0 no Avro at all", b"e-4")
    sender.produce(ORDER_EVENTS.name, codec.encode(ORDER_EVENTS, event), b"e-4")
    assert sender.flush(20) == 0
    place(gateway, "e-4", ("pan", 1))
    settled(api, "e-4", "CONFIRMED")

    def letters() -> list[tuple[Any, ...]]:
        with connect(orders.database_url) as connection:
            return connection.execute(
                "SELECT error_class, field, input_id FROM dead_letters WHERE key = 'e-4' ORDER BY \"offset\""
            ).fetchall()

    found = until(letters, lambda rows: len(rows) == 2)
    assert found[0][0] == "undecodable"
    assert found[1] == ("invalid", "lines[0].quantity", "evt-bad")


def test_customers_and_stock_are_paged(gateway: TestClient, api: TestClient) -> None:
    """Pages follow each other without gap or overlap, newest order first, stock by SKU."""
    for n in range(3):
        place(
            gateway,
            f"e-5{n}",
            ("nothing", 1),
            customer_id="bob",
            occurred_at=f"2025-01-0{n + 1}T00:00:00Z",
        )
    for n in range(3):
        settled(api, f"e-5{n}", "REJECTED")
    first = api.get("/v1/customers/bob/orders", params={"limit": 2}).json()
    second = api.get("/v1/customers/bob/orders", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [o["order_id"] for o in first["items"] + second["items"]] == ["e-52", "e-51", "e-50"]
    assert api.get("/v1/customers/bob/orders", params={"status": "CONFIRMED"}).json()["items"] == []

    skus: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.get("/v1/stock", params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        skus += [s["sku"] for s in page["items"]]
        cursor = page["next_cursor"]
    everything = api.get("/v1/stock", params={"limit": 1000}).json()["items"]
    assert skus == [s["sku"] for s in everything]
    assert "nothing" in [s["sku"] for s in api.get("/v1/stock", params={"low": True}).json()["items"]]


def test_invalid_requests_name_the_field(gateway: TestClient, api: TestClient) -> None:
    """422 with field and reason, before anything is sent; 404 says what may have happened."""
    line = {"sku": "mug", "quantity": 1, "unit_price_minor": 1}
    for body, field in (
        ({"currency": "EUR", "lines": []}, "lines"),
        ({"currency": "euro", "lines": [line]}, "currency"),
        ({"currency": "EUR", "lines": [line | {"quantity": 0}]}, "lines.0.quantity"),
        ({"currency": "EUR", "lines": [line], "order_id": "a/b"}, "order_id"),
        ({"currency": "EUR", "lines": [line], "occurred_at": "2025-01-01T00:00:00"}, "occurred_at"),
    ):
        answer = gateway.post("/v1/orders", json=body)
        assert answer.status_code == 422, answer.text
        assert field in answer.text, answer.text
    assert gateway.post("/v1/stock/mug/receipts", json={"quantity": 0}).status_code == 422
    for path in ("/v1/orders/none", "/v1/stock/none"):
        assert api.get(path).status_code == 404
    assert api.get("/v1/orders/%00").status_code == 422
    assert api.get("/v1/customers/bob/orders", params={"cursor": "nonsense"}).status_code == 422


def test_views_agree_and_everything_is_described(api: TestClient, orders: Settings) -> None:
    """Confirmed orders hold exactly what is reserved; every table, view and column says what it is."""
    api.get("/v1/stock")
    names = [t.name for t in PIPELINE.tables]
    views = ["order_totals", "orders_by_day", "stock_low", "order_stock_mismatches"]
    with connect(orders.database_url) as connection:
        assert (
            until(
                lambda: connection.execute("SELECT * FROM order_stock_mismatches").fetchall(), lambda r: not r
            )
            == []
        )
        for view in views:
            connection.execute(f"SELECT * FROM {view}")
        nameless = connection.execute(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relname = ANY(%s) AND attnum > 0 AND col_description(c.oid, attnum) IS NULL",
            (names,),
        ).fetchall()
        assert nameless == []
        silent = connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE relname = ANY(%s) AND obj_description(oid, 'pg_class') IS NULL",
            ([*names, *views],),
        ).fetchall()
        assert silent == []


def test_the_database_refuses_oversold_stock(orders: Settings) -> None:
    """The CHECK is a witness of its own: a row that reserves more than there is cannot be stored."""
    with connect(orders.database_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("INSERT INTO stock VALUES ('default', 'witness', 1, 2, 1, now(), 'x', 0, 0)")
