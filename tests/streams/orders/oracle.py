"""Plain loops over recorded logs that say what stock and orders must be. Shares no code with the fold.

Events are deduplicated here by id with a set that forgets nothing, and every SKU is a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]


def replay_commands(
    commands: Iterable[Event],
) -> tuple[dict[str, dict[str, int]], dict[str, tuple[str, int]]]:
    """Stock per SKU, and outcome and units per command id, of a log of stock commands (per SKU in order)."""
    stock: dict[str, dict[str, int]] = {}
    outcomes: dict[str, tuple[str, int]] = {}
    held: dict[tuple[str, str], int] = {}
    for c in commands:
        if c["event_id"] in outcomes:
            continue
        s = stock.setdefault(c["sku"], {"on_hand": 0, "reserved": 0, "received": 0, "restocked": 0})
        owner = (c["sku"], c["order_id"] or "")
        if c["kind"] == "receive":
            s["on_hand"] += c["quantity"]
            s["received"] += c["quantity"]
            outcomes[c["event_id"]] = ("received", c["quantity"])
        elif c["kind"] == "restock":
            s["on_hand"] += c["quantity"]
            s["restocked"] += c["quantity"]
            outcomes[c["event_id"]] = ("restocked", c["quantity"])
        elif c["kind"] == "reserve":
            if s["reserved"] + c["quantity"] <= s["on_hand"]:
                s["reserved"] += c["quantity"]
                held[owner] = c["quantity"]
                outcomes[c["event_id"]] = ("reserved", c["quantity"])
            else:
                outcomes[c["event_id"]] = ("rejected", 0)
        else:
            units = held.pop(owner, 0)
            s["reserved"] -= units
            outcomes[c["event_id"]] = ("released", units)
        if not 0 <= s["reserved"] <= s["on_hand"]:
            raise AssertionError(f"{c['sku']}: {s} after {c}")
    return stock, outcomes


def latest(statuses: Iterable[Event]) -> dict[str, Event]:
    """The accepted status record of the highest version per order: its lines are the whole order."""
    last: dict[str, Event] = {}
    for s in statuses:
        if s["outcome"] == "accepted" and (
            s["order_id"] not in last or s["version"] > last[s["order_id"]]["version"]
        ):
            last[s["order_id"]] = s
    return last


def check(commands: list[Event], results: list[Event], statuses: list[Event]) -> dict[str, int]:
    """Raise AssertionError unless a drained topology's logs agree with each other; counts by status.

    The results are those of the oracle; each SKU's versions have no gap; a confirmed order holds all
    its lines and no other order holds anything; what is held is what is reserved; nothing is lost.
    """
    stock, outcomes = replay_commands(commands)
    for r in results:
        wanted = outcomes[r["event_id"]]
        assert (r["outcome"], r["quantity"]) == wanted, (r, wanted)
        assert 0 <= r["reserved"] <= r["on_hand"], r
        assert r["available"] == r["on_hand"] - r["reserved"], r
    assert {r["event_id"] for r in results} == set(outcomes)

    rows: dict[str, dict[int, Event]] = {}
    for r in results:
        first = rows.setdefault(r["sku"], {}).setdefault(r["version"], r)
        assert first == r, "a repeated command got another answer"
    for sku, versions in rows.items():
        assert sorted(versions) == list(range(1, len(versions) + 1)), sku
        last = versions[len(versions)]
        assert (last["on_hand"], last["reserved"]) == (stock[sku]["on_hand"], stock[sku]["reserved"]), sku

    held: dict[tuple[str, str], int] = {}
    for c in commands:
        if c["kind"] == "reserve" and outcomes[c["event_id"]][0] == "reserved":
            held[c["order_id"], c["sku"]] = c["quantity"]
    for c in commands:
        if c["kind"] == "release":
            held.pop((c["order_id"], c["sku"]), None)

    orders = latest(statuses)
    wanted_held: dict[tuple[str, str], int] = {}
    wanted_restocked: dict[str, int] = {}
    counts: dict[str, int] = {}
    for order_id, order in orders.items():
        counts[order["status"]] = counts.get(order["status"], 0) + 1
        assert order["status"] in ("CONFIRMED", "REJECTED", "CANCELLED", "RETURNED"), order
        for line in order["lines"]:
            if order["status"] == "CONFIRMED":
                assert line["state"] == "held", order
                wanted_held[order_id, line["sku"]] = line["quantity"]
            elif order["status"] == "RETURNED":
                wanted_restocked[line["sku"]] = wanted_restocked.get(line["sku"], 0) + line["quantity"]
        if order["status"] == "REJECTED":
            assert [line["state"] for line in order["lines"]].count("rejected") == 1, order
    assert held == wanted_held
    held_units: dict[str, int] = {}
    for (_, sku), units in held.items():
        held_units[sku] = held_units.get(sku, 0) + units
    for sku, s in stock.items():
        assert s["reserved"] == held_units.get(sku, 0), sku
        assert s["restocked"] == wanted_restocked.get(sku, 0), sku
        assert s["on_hand"] == s["received"] + s["restocked"], sku
    return counts


def one_after_another(
    stock: dict[str, int], orders: Iterable[tuple[str, str, list[tuple[str, int]]]]
) -> tuple[dict[str, int], dict[str, str]]:
    """Available stock per SKU and status per order, where each order ends before the next begins.

    An order is (id, placed or returned, lines); an order is confirmed exactly when all of it is there.
    """
    available = dict(stock)
    statuses: dict[str, str] = {}
    for order_id, kind, lines in orders:
        if order_id in statuses:
            continue
        wanted: dict[str, int] = {}
        for sku, quantity in lines:
            wanted[sku] = wanted.get(sku, 0) + quantity
        if kind == "returned":
            for sku, quantity in wanted.items():
                available[sku] = available.get(sku, 0) + quantity
            statuses[order_id] = "RETURNED"
        elif all(available.get(sku, 0) >= quantity for sku, quantity in wanted.items()):
            for sku, quantity in wanted.items():
                available[sku] -= quantity
            statuses[order_id] = "CONFIRMED"
        else:
            statuses[order_id] = "REJECTED"
    return available, statuses
