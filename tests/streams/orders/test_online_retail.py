"""A year of a real shop's orders through the topology in memory, with stock for half of what was asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from connectors.orders.files import FILES
from connectors.orders.opening_stock import opening_stock, receipts
from schemas.declare import Topic
from schemas.orders import ORDER_EVENTS, ORDER_STATUS, STOCK_COMMANDS, STOCK_RECEIPTS, STOCK_RESULTS
from streams.decide import Event
from streams.orders.intake import order_event_fault
from tests.streams.orders.oracle import check, latest, one_after_another
from tests.streams.orders.topology import Topology

NAME = "shared/data/orders/online-retail.parquet"
FILE = next((at / NAME for at in Path(__file__).parents if (at / NAME).exists()), Path(NAME))
RETAIL = next(source for source in FILES if source.name == "online-retail")

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{NAME} is not beside the project")


def events() -> Iterator[tuple[Topic, Event]]:
    """The file's events, as the ingest makes them of one large batch."""
    table = pq.read_table(FILE).combine_chunks()
    for batch in table.to_batches():
        yield from RETAIL.events(batch, 0)


@pytest.fixture(scope="module")
def opening() -> dict[str, int]:
    """Half of each SKU's demand."""
    with pq.ParquetFile(FILE) as file:
        return opening_stock(file.iter_batches(columns=["sku", "quantity"]), Fraction(1, 2))


def stocked(opening: dict[str, int], partitions: int) -> Topology:
    topology = Topology(partitions)
    for event in receipts(opening):
        topology.produce(STOCK_RECEIPTS, event)
    topology.drain()
    return topology


def test_opening_stock_is_half_of_the_demand(opening: dict[str, int]) -> None:
    """Each SKU's opening stock is half of its positive quantities, rounded down, counted by pandas."""
    demand = pq.read_table(FILE, columns=["sku", "quantity"]).to_pandas()
    half = demand[demand.quantity > 0].groupby("sku").quantity.sum() // 2
    assert opening == {str(sku): int(units) for sku, units in half.items() if units}


@pytest.mark.real_input
def test_each_order_before_the_next_equals_a_loop_over_the_file(opening: dict[str, int]) -> None:
    """Submitted one after another, the file's orders end as in a plain loop over its rows."""
    topology = stocked(opening, partitions=1)
    plain: list[tuple[str, str, list[tuple[str, int]]]] = []
    for topic, event in events():
        topology.produce(topic, event)
        topology.drain()
        if order_event_fault(event) is None:
            plain.append(
                (event["order_id"], event["kind"], [(x["sku"], x["quantity"]) for x in event["lines"]])
            )
    available, statuses = one_after_another(opening, plain)
    orders = latest(topology.events(ORDER_STATUS))
    assert {order_id: order["status"] for order_id, order in orders.items()} == statuses
    last: dict[str, Event] = {}
    for result in topology.events(STOCK_RESULTS):
        last[result["sku"]] = result  # one partition: in the order of the versions
    # A SKU of which nothing was in stock, and nothing ever came back, is known to one of the two only.
    assert {s: r["available"] for s, r in last.items() if r["available"]} == {
        s: units for s, units in available.items() if units
    }


@pytest.mark.real_input
def test_all_orders_at_once_equal_the_oracle_over_the_recorded_log(opening: dict[str, int]) -> None:
    """In a random interleaving of 12 partitions: every answer is the oracle's, and nothing is lost."""
    topology = stocked(opening, partitions=12)
    started = time.perf_counter()
    inputs = list(events())
    for topic, event in inputs:
        topology.produce(topic, event)
    topology.drain(Random(7))
    decided = time.perf_counter()
    counts = check(
        list(topology.events(STOCK_COMMANDS)),
        list(topology.events(STOCK_RESULTS)),
        list(topology.events(ORDER_STATUS)),
    )
    answered = {status["input_id"] for status in topology.events(ORDER_STATUS)}
    dead = {event_id for event_id, _, _ in topology.dead}
    assert answered | dead == {event["event_id"] for _, event in inputs}
    assert not answered & dead
    assert dead == {e["event_id"] for e in topology.events(ORDER_EVENTS) if order_event_fault(e)}
    refused = [s for s in topology.events(ORDER_STATUS) if s["outcome"] == "refused"]
    # Invoice 542806 goes on after the rows of another one: its second part is refused.
    assert [s["order_id"] for s in refused] == ["542806"]
    assert sum(counts.values()) == len(inputs) - len(dead) - len(refused)
    print(  # noqa: T201 - the figures are what one runs this test for
        f"\n{len(inputs)} events, {sum(1 for _ in topology.events(STOCK_COMMANDS))} commands decided in"
        f" {decided - started:.1f} s, checked in {time.perf_counter() - decided:.1f} s:"
        f" {counts}, dead letters {sorted(dead)}"
    )
