"""One SKU's stock: what each command does, how often, and how long it is remembered."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.declare import DAY_MS
from schemas.orders import COMMAND_HORIZON_MS, RECEIPT_HORIZON_MS, STOCK_COMMANDS
from streams.decide import Event, Outcomes, Record
from streams.orders.stock import Stock, StockState
from tests.streams.orders.topology import START_MS


def command(
    kind: str, quantity: int, of: str = "o1", issued_at: int = START_MS, occurred_at: int = START_MS
) -> Event:
    """A command for SKU apple; `of` is the order, or the receipt's id."""
    receive = kind == "receive"
    return {
        "event_id": f"default/apple/{of}/receive" if receive else f"default/{of}/apple/{kind}",
        "tenant": "default",
        "occurred_at": occurred_at,
        "sku": "apple",
        "kind": kind,
        "order_id": None if receive else of,
        "quantity": quantity,
        "input_id": of,
        "issued_at": issued_at,
        "code_version": 1,
    }


def decide(state: StockState, commands: Sequence[Event], append_ms: int = START_MS) -> Outcomes:
    out = Outcomes()
    records = [Record(STOCK_COMMANDS.name, 0, n, append_ms, c) for n, c in enumerate(commands)]
    Stock().decide(state, records, {}, out)
    return out


def outcomes(out: Outcomes) -> list[tuple[str, int, int, int, int]]:
    """Outcome, units moved, on hand, reserved, version of each result."""
    return [(e["outcome"], e["quantity"], e["on_hand"], e["reserved"], e["version"]) for _, e in out.emitted]


def restored(state: StockState) -> StockState:
    again = StockState()
    for chunk in state.snapshot():
        again.load(chunk)
    return again


def test_commands_move_stock_and_tell_the_balance() -> None:
    """Receive, reserve, reject, release and restock, each with the balance after it."""
    out = decide(
        StockState(),
        [
            command("receive", 5, "r1"),
            command("reserve", 4, "o1"),
            command("reserve", 2, "o2"),
            command("release", 4, "o1"),
            command("reserve", 2, "o3"),
            command("restock", 3, "o4"),
        ],
    )
    assert outcomes(out) == [
        ("received", 5, 5, 0, 1),
        ("reserved", 4, 5, 4, 2),
        ("rejected", 0, 5, 4, 3),
        ("released", 4, 5, 0, 4),
        ("reserved", 2, 5, 2, 5),
        ("restocked", 3, 8, 2, 6),
    ]
    assert out.emitted[2][1]["reason"] == "2 asked, 1 available"


def test_a_repeated_command_gets_the_same_answer_and_moves_nothing() -> None:
    """Whatever came in between, and also after a restart, the stored result is emitted again."""
    state = StockState()
    commands = [command("receive", 5, "r1"), command("reserve", 4, "o1"), command("release", 4, "o1")]
    first = decide(state, commands)
    decide(state, [command("reserve", 1, "o2")])
    for again in (state, restored(state)):
        repeated = decide(again, commands)
        assert repeated.emitted == first.emitted
        assert repeated.duplicates_total == 3
        assert outcomes(decide(again, [command("release", 1, "o2")]))[0][2:4] == (5, 0)
        decide(again, [command("reserve", 1, "o2")])


def test_a_release_frees_only_what_its_order_holds() -> None:
    """An order that holds nothing frees nothing, and cannot reserve after it has given back."""
    state = StockState()
    decide(state, [command("receive", 5, "r1"), command("reserve", 4, "o1")])
    out = decide(state, [command("release", 3, "o2"), command("reserve", 1, "o2")])
    assert outcomes(out) == [("released", 0, 5, 4, 3), ("rejected", 0, 5, 4, 4)]


def test_an_id_with_another_quantity_is_invalid() -> None:
    """The same command or receipt with other units is refused, not applied and not taken for a repeat."""
    state = StockState()
    decide(state, [command("receive", 5, "r1"), command("reserve", 4, "o1")])
    out = decide(state, [command("receive", 6, "r1"), command("reserve", 1, "o1")])
    assert out.emitted == []
    assert [(d[1], d[2]) for d in out.dead] == [("invalid", "quantity")] * 2


def test_a_malformed_command_is_refused() -> None:
    """No units, an unknown kind, a receive for an order: dead letters, and no effect."""
    bad = [
        command("reserve", 0),
        command("receive", -1),
        command("steal", 1),
        command("receive", 1) | {"order_id": "o1"},
        command("reserve", 1) | {"order_id": None},
    ]
    state = StockState()
    out = decide(state, bad)
    assert out.emitted == []
    assert [d[2] for d in out.dead] == ["quantity", "quantity", "kind", "order_id", "order_id"]
    assert state.delta() is None


def test_an_order_that_gave_everything_back_is_forgotten_in_time() -> None:
    """State stays bounded, also after a restart, and what is forgotten cannot come again: it is late."""
    state = StockState()
    give_and_take = [command("reserve", 1, "o1"), command("release", 1, "o1"), command("reserve", 1, "o2")]
    decide(state, [command("receive", 5, "r1"), *give_and_take])
    much_later = START_MS + COMMAND_HORIZON_MS + DAY_MS + 1
    for again in (restored(state), state):
        assert len(again.holdings) == 2
        decide(again, [command("reserve", 1, "o9", issued_at=much_later)], append_ms=much_later)
        assert sorted(key for key, _ in again.holdings.items()) == ["default/apple/o2", "default/apple/o9"]
        out = decide(again, give_and_take[:2], append_ms=much_later)
        assert out.emitted == []
        assert [(d[1], d[2]) for d in out.dead] == [("late", "issued_at")] * 2
    delta = state.delta()
    assert delta is not None
    follower = StockState()
    follower.load(delta)
    assert list(follower.snapshot()) == list(state.snapshot())


def test_an_order_is_held_for_as_long_as_it_takes() -> None:
    """What an order holds is not forgotten, however long ago it was reserved."""
    state = StockState()
    decide(state, [command("receive", 5, "r1"), command("reserve", 4, "o1")])
    much_later = START_MS + 10 * COMMAND_HORIZON_MS
    out = decide(state, [command("release", 4, "o1", issued_at=much_later)], append_ms=much_later)
    assert outcomes(out) == [("released", 4, 5, 0, 3)]


def test_receipts_are_remembered_over_a_span_of_event_time() -> None:
    """Old ids go when newer receipts come; a receipt from before that span is late, never booked twice."""
    state = StockState()
    old, new = (
        command("receive", 5, "r1"),
        command("receive", 1, "r2", occurred_at=START_MS + RECEIPT_HORIZON_MS + 1),
    )
    decide(state, [old, new])
    assert list(state.receipts.get("default/apple") or {}) == ["r2"]
    out = decide(state, [old, new])
    assert [(d[1], d[2]) for d in out.dead] == [("late", "occurred_at")]
    assert outcomes(out) == [("received", 1, 6, 0, 2)]


def test_tenants_have_stock_of_their_own() -> None:
    """The same SKU of two tenants is two stocks."""
    state = StockState()
    decide(state, [command("receive", 5, "r1")])
    out = decide(state, [command("reserve", 1, "o1") | {"tenant": "other"}])
    assert outcomes(out) == [("rejected", 0, 0, 0, 1)]
