"""One order at a time: every event is answered, and what cannot be kept is given back."""

from __future__ import annotations

from schemas.orders import ORDER_EVENTS, ORDER_LOG, ORDER_STATUS, STOCK_COMMANDS, STOCK_RESULTS
from schemas.orders.limits import MAX_EVENTS_PER_ORDER
from streams.decide import Event
from tests.streams.orders.topology import Topology, order_event, with_stock


def statuses(topology: Topology, order_id: str = "o1") -> list[tuple[str, str, str]]:
    """Kind of input, outcome and status of each status record of an order."""
    return [
        (s["input_kind"], s["outcome"], s["status"])
        for s in topology.events(ORDER_STATUS)
        if s["order_id"] == order_id
    ]


def commands(topology: Topology) -> list[tuple[str, str]]:
    """SKU and kind of the commands for orders, in the order of their issue."""
    return [
        (c["sku"], c["kind"])
        for log in topology.logs[STOCK_COMMANDS.name]
        for _, c in log
        if c["kind"] != "receive"
    ]


def available(topology: Topology) -> dict[str, int]:
    last: dict[str, Event] = {}
    for result in topology.events(STOCK_RESULTS):
        if result["version"] > last.get(result["sku"], {"version": 0})["version"]:
            last[result["sku"]] = result
    return {sku: result["available"] for sku, result in last.items()}


def send(topology: Topology, *events: Event) -> None:
    for event in events:
        topology.produce(ORDER_EVENTS, event)
    topology.drain()


def test_an_order_is_confirmed_when_all_lines_are_held() -> None:
    """PENDING answers the event, CONFIRMED the last reservation; both name the event."""
    topology = with_stock({"apple": 5, "pear": 3})
    send(topology, order_event("o1", "placed", [("pear", 3), ("apple", 2)]))
    assert statuses(topology) == [("placed", "accepted", "PENDING"), ("placed", "accepted", "CONFIRMED")]
    pending, confirmed = topology.events(ORDER_STATUS)
    assert pending["input_id"] == confirmed["input_id"] == "o1-placed"
    assert [line["state"] for line in pending["lines"]] == ["asked", "waiting"]
    assert [line["state"] for line in confirmed["lines"]] == ["held", "held"]
    assert (confirmed["total_minor"], confirmed["currency"]) == (500, "EUR")
    assert available(topology) == {"apple": 3, "pear": 0}


def test_a_rejected_line_releases_its_siblings() -> None:
    """An order that cannot have everything has nothing, and says which SKU was short."""
    topology = with_stock({"apple": 5, "pear": 1}, partitions=1)
    send(topology, order_event("o1", "placed", [("apple", 2), ("pear", 3), ("plum", 1)]))
    assert [s for *_, s in statuses(topology)] == ["PENDING", "REJECTING", "REJECTED"]
    assert commands(topology) == [("apple", "reserve"), ("pear", "reserve"), ("apple", "release")]
    last = list(topology.events(ORDER_STATUS))[-1]
    assert last["reason"] == "pear: 3 asked, 1 available"
    assert [line["state"] for line in last["lines"]] == ["released", "rejected", "waiting"]
    assert available(topology) == {"apple": 5, "pear": 1}


def test_an_order_whose_first_line_is_rejected_waits_for_nothing() -> None:
    """Without a sibling to release, REJECTED follows at once."""
    topology = with_stock({"apple": 1})
    send(topology, order_event("o1", "placed", [("apple", 2)]))
    assert [s for *_, s in statuses(topology)] == ["PENDING", "REJECTED"]


def test_a_confirmed_order_can_be_cancelled() -> None:
    """All its lines go back; CANCELLED comes once they have."""
    topology = with_stock({"apple": 5, "pear": 3})
    send(topology, order_event("o1", "placed", [("apple", 2), ("pear", 3)]))
    send(topology, order_event("o1", "cancelled"))
    assert statuses(topology)[2:] == [
        ("cancelled", "accepted", "CANCELLING"),
        ("cancelled", "accepted", "CANCELLED"),
    ]
    assert available(topology) == {"apple": 5, "pear": 3}


def test_a_reservation_under_way_is_released_when_it_arrives() -> None:
    """Cancelled between the command and its answer, an order still gives the units back."""
    topology = with_stock({"apple": 5, "pear": 3}, partitions=1)
    saga = next(t for t in topology.tasks if t.source is ORDER_LOG)
    intake = next(t for t in topology.tasks if t.source is ORDER_EVENTS)
    topology.produce(ORDER_EVENTS, order_event("o1", "placed", [("apple", 2), ("pear", 3)]))
    topology.produce(ORDER_EVENTS, order_event("o1", "cancelled"))
    topology.advance(intake)
    topology.advance(saga)
    assert [s for *_, s in statuses(topology)] == ["PENDING", "CANCELLING"]
    topology.drain()
    assert [s for *_, s in statuses(topology)] == ["PENDING", "CANCELLING", "CANCELLED"]
    assert commands(topology) == [("apple", "reserve"), ("apple", "release")]
    assert available(topology)["apple"] == 5


def test_returned_goods_are_restocked() -> None:
    """A return is an order of its own that puts its units back into stock."""
    topology = with_stock({"apple": 1})
    send(topology, order_event("c1", "returned", [("apple", 2), ("fig", 4)]))
    assert statuses(topology, "c1") == [
        ("returned", "accepted", "RETURNING"),
        ("returned", "accepted", "RETURNED"),
    ]
    assert available(topology) == {"apple": 3, "fig": 4}


def test_what_does_not_fit_is_refused_with_a_reason() -> None:
    """A refused event has a status record of its own, and changes nothing."""
    topology = with_stock({"apple": 1})
    send(topology, order_event("o1", "cancelled", event_id="too early"))
    send(topology, order_event("o1", "placed", [("apple", 2)]))
    send(topology, order_event("o1", "placed", [("apple", 1)], event_id="again"))
    send(topology, order_event("o1", "returned", [("apple", 1)], event_id="return"))
    send(topology, order_event("o1", "cancelled", event_id="too late"))
    assert statuses(topology) == [
        ("cancelled", "refused", "UNKNOWN"),
        ("placed", "accepted", "PENDING"),
        ("placed", "accepted", "REJECTED"),
        ("placed", "refused", "REJECTED"),
        ("returned", "refused", "REJECTED"),
        ("cancelled", "refused", "REJECTED"),
    ]
    records = list(topology.events(ORDER_STATUS))
    assert [s["version"] for s in records] == [1, 2, 3, 4, 5, 6]
    assert all(s["reason"] for s in records if s["outcome"] == "refused")
    assert {s["input_id"] for s in records} == {e["event_id"] for e in topology.events(ORDER_EVENTS)}


def test_a_resent_event_is_a_duplicate_also_with_another_time() -> None:
    """A cancellation that was refused once does not cancel the order when it is sent again later."""
    topology = with_stock({"apple": 5})
    early = order_event("o1", "cancelled", event_id="early")
    send(topology, early, order_event("o1", "placed", [("apple", 2)]), early | {"occurred_at": 1})
    assert [s for *_, s in statuses(topology)] == ["UNKNOWN", "PENDING", "CONFIRMED"]
    assert topology.duplicates_total == 1


def test_an_id_with_other_content_is_invalid() -> None:
    """The same event id for other lines is neither a repeat nor an order."""
    topology = with_stock({"apple": 5})
    send(topology, order_event("o1", "placed", [("apple", 2)]), order_event("o1", "placed", [("apple", 3)]))
    assert topology.dead == [("o1-placed", "invalid", "event_id")]
    assert available(topology) == {"apple": 3}


def test_an_order_takes_only_so_many_events() -> None:
    """Beyond the limit events are dead letters: what is remembered of an order stays small."""
    topology = with_stock({})
    send(topology, *(order_event("o1", "cancelled", (), f"e{n}") for n in range(MAX_EVENTS_PER_ORDER + 2)))
    assert [c for _, c, _ in topology.dead] == ["limit", "limit"]


def test_an_answer_to_nothing_is_refused() -> None:
    """A stock result for an order that the log has never named stands in the dead letters."""
    topology = with_stock({})
    topology.produce(
        ORDER_LOG,
        {
            "event_id": "default/o1/apple/reserve",
            "tenant": "default",
            "occurred_at": 0,
            "order_id": "o1",
            "order_event": None,
            "stock_result": {"sku": "apple", "kind": "reserve", "outcome": "reserved", "reason": None},
            "code_version": 1,
        },
    )
    topology.drain()
    assert topology.dead == [("default/o1/apple/reserve", "invalid", "order_id")]
