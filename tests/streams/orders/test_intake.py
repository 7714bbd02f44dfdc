"""What the intake accepts, sums and refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.orders import ORDER_EVENTS, ORDER_LOG, STOCK_COMMANDS, STOCK_RECEIPTS
from schemas.orders.limits import MAX_LINES, MAX_QUANTITY, MAX_UNIT_PRICE_MINOR
from streams.decide import Outcomes, Record
from streams.orders.intake import Intake, Receipts, one_line_per_sku, order_event_fault, receipt_fault
from tests.streams.orders.topology import START_MS, order_event, receipt

LINE = {"sku": "a", "quantity": 1, "unit_price_minor": 0}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "refunded"}, "kind"),
        ({"event_id": ""}, "event_id"),
        ({"event_id": "nul\0"}, "event_id"),
        ({"occurred_at": -1}, "occurred_at"),
        ({"tenant": ""}, "tenant"),
        ({"order_id": "a/b"}, "order_id"),
        ({"order_id": " a"}, "order_id"),
        ({"order_id": "x" * 65}, "order_id"),
        ({"customer_id": ""}, "customer_id"),
        ({"currency": None}, "currency"),
        ({"currency": "euro"}, "currency"),
        ({"lines": []}, "lines"),
        ({"lines": [LINE] * (MAX_LINES + 1)}, "lines"),
        ({"lines": [LINE, LINE | {"sku": ""}]}, "lines[1].sku"),
        ({"lines": [LINE | {"quantity": 0}]}, "lines[0].quantity"),
        ({"lines": [LINE | {"quantity": -3}]}, "lines[0].quantity"),
        ({"lines": [LINE | {"quantity": MAX_QUANTITY + 1}]}, "lines[0].quantity"),
        ({"lines": [LINE | {"unit_price_minor": -1}]}, "lines[0].unit_price_minor"),
        ({"lines": [LINE | {"unit_price_minor": MAX_UNIT_PRICE_MINOR + 1}]}, "lines[0].unit_price_minor"),
        ({"kind": "cancelled"}, "lines"),
    ],
)
def test_an_invalid_order_event_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    """Each rule names the field at fault and gives a reason; the order log sees nothing of it."""
    good = order_event("o1", "placed", [("apple", 2)])
    assert order_event_fault(good) is None
    out = Outcomes()
    record = Record(ORDER_EVENTS.name, 0, 0, START_MS, good | change)
    Intake().decide(Intake().new_state(), [record], {}, out)
    assert out.emitted == []
    [(refused, error_class, at, reason)] = out.dead
    assert (refused, error_class, at) == (record, "invalid", field)
    assert "; " in reason or " must " in reason


@pytest.mark.parametrize(
    ("change", "field"),
    [({"sku": ""}, "sku"), ({"quantity": 0}, "quantity"), ({"quantity": MAX_QUANTITY + 1}, "quantity")],
)
def test_an_invalid_receipt_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    """A receipt of nothing, or of too much, becomes no command."""
    out = Outcomes()
    record = Record(STOCK_RECEIPTS.name, 0, 0, START_MS, receipt("apple", 2) | change)
    Receipts().decide(Receipts().new_state(), [record], {}, out)
    assert out.emitted == []
    assert [d[2] for d in out.dead] == [field]
    assert receipt_fault(receipt("apple", 2)) is None


def test_a_receipt_becomes_a_command_that_names_it() -> None:
    """The command carries the receipt's id, for the evidence, and the append time, for its age."""
    out = Outcomes()
    record = Record(STOCK_RECEIPTS.name, 0, 0, START_MS + 7, receipt("apple", 2, "r1"))
    Receipts().decide(Receipts().new_state(), [record], {}, out)
    [(topic, command)] = out.emitted
    assert topic is STOCK_COMMANDS
    assert command["event_id"] == "default/apple/r1/receive"
    assert (command["input_id"], command["issued_at"], command["order_id"]) == ("r1", START_MS + 7, None)


@given(
    st.lists(
        st.tuples(st.sampled_from("dcba"), st.integers(1, MAX_QUANTITY), st.integers(0, MAX_UNIT_PRICE_MINOR))
    )
)
def test_lines_of_one_sku_are_summed(rows: list[tuple[str, int, int]]) -> None:
    """Units and amounts are kept whole, each SKU comes once, in SKU order."""
    lines = [{"sku": s, "quantity": q, "unit_price_minor": p} for s, q, p in rows]
    summed = one_line_per_sku(lines)
    skus = [line["sku"] for line in summed]
    assert skus == sorted({s for s, _, _ in rows})
    for line in summed:
        assert line["quantity"] == sum(q for s, q, _ in rows if s == line["sku"])
        assert line["amount_minor"] == sum(q * p for s, q, p in rows if s == line["sku"])


def test_a_good_event_enters_the_order_log_under_its_own_id() -> None:
    """The order log's entry has the event's id and time, and one line per SKU."""
    out = Outcomes()
    event = order_event("o1", "placed", [("pear", 1), ("apple", 2), ("pear", 3)])
    record = Record(ORDER_EVENTS.name, 0, 0, START_MS, event)
    Intake().decide(Intake().new_state(), [record], {}, out)
    [(topic, entry)] = out.emitted
    assert topic is ORDER_LOG
    assert entry["event_id"] == event["event_id"]
    assert entry["stock_result"] is None
    assert [(x["sku"], x["quantity"]) for x in entry["order_event"]["lines"]] == [("apple", 2), ("pear", 4)]
