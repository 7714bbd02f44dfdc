"""The whole orders topology under random interleaving, repeated records and crashes."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.declare import Topic
from schemas.orders import (
    ORDER_EVENTS,
    ORDER_LOG,
    ORDER_STATUS,
    STOCK_COMMANDS,
    STOCK_RECEIPTS,
    STOCK_RESULTS,
)
from streams.decide import Event
from tests.streams.orders.oracle import check, latest, one_after_another
from tests.streams.orders.topology import Topology, order_event, receipt, with_stock

SKUS = ("apple", "pear", "plum")
OPENING = {"apple": 5, "pear": 3, "plum": 8}
REPEATABLE = (ORDER_EVENTS, STOCK_RECEIPTS, ORDER_LOG, STOCK_COMMANDS, STOCK_RESULTS)

lines = st.lists(st.tuples(st.sampled_from(SKUS), st.integers(1, 4)), min_size=1, max_size=4)
order_ids = st.sampled_from([f"o{n}" for n in range(6)])


def check_all(topology: Topology) -> dict[str, int]:
    """The oracle's checks over a drained topology, and that every order event was answered."""
    answered = {(s["order_id"], s["input_id"]) for s in topology.events(ORDER_STATUS)}
    asked = {(e["order_id"], e["event_id"]) for e in topology.events(ORDER_EVENTS)}
    assert answered == asked
    return check(
        list(topology.events(STOCK_COMMANDS)),
        list(topology.events(STOCK_RESULTS)),
        list(topology.events(ORDER_STATUS)),
    )


class Disturbed(RuleBasedStateMachine):
    """Orders, cancels, returns and deliveries, while tasks run, crash and records come again."""

    def __init__(self) -> None:
        super().__init__()
        self.topology = with_stock(OPENING)
        self.inputs = 0

    def _id(self) -> str:
        self.inputs += 1
        return f"e{self.inputs}"

    @rule(order_id=order_ids, lines=lines, kind=st.sampled_from(("placed", "placed", "placed", "returned")))
    def send(self, order_id: str, lines: list[tuple[str, int]], kind: str) -> None:
        self.topology.produce(ORDER_EVENTS, order_event(order_id, kind, lines, self._id()))

    @rule(order_id=order_ids)
    def cancel(self, order_id: str) -> None:
        self.topology.produce(ORDER_EVENTS, order_event(order_id, "cancelled", (), self._id()))

    @rule(sku=st.sampled_from(SKUS), quantity=st.integers(1, 5))
    def deliver(self, sku: str, quantity: int) -> None:
        self.topology.produce(STOCK_RECEIPTS, receipt(sku, quantity, self._id()))

    @precondition(lambda self: self.topology.waiting())
    @rule(data=st.data(), most=st.sampled_from((1, 2, 7)), times=st.integers(1, 8))
    def advance(self, data: Any, most: int, times: int) -> None:
        for _ in range(times):
            if waiting := self.topology.waiting():
                self.topology.advance(waiting[data.draw(st.integers(0, len(waiting) - 1))], most)

    @rule(data=st.data())
    def checkpoint(self, data: Any) -> None:
        task = data.draw(st.sampled_from(range(len(self.topology.tasks))))
        self.topology.tasks[task].save()

    @rule(data=st.data())
    def snapshot(self, data: Any) -> None:
        task = data.draw(st.sampled_from(range(len(self.topology.tasks))))
        self.topology.tasks[task].compact()

    @rule(data=st.data())
    def crash(self, data: Any) -> None:
        task = data.draw(st.sampled_from(range(len(self.topology.tasks))))
        self.topology.tasks[task].crash()

    @rule(data=st.data(), topic=st.sampled_from(REPEATABLE))
    def repeat(self, data: Any, topic: Topic) -> None:
        """A producer resends any record it has sent before."""
        if events := list(self.topology.events(topic)):
            self.topology.produce(topic, events[data.draw(st.integers(0, len(events) - 1))])

    @invariant()
    def never_below_zero(self) -> None:
        for result in self.topology.events(STOCK_RESULTS):
            assert 0 <= result["reserved"] <= result["on_hand"]

    def teardown(self) -> None:
        self.topology.drain()
        check_all(self.topology)
        assert not self.topology.dead


Disturbed.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestDisturbed(Disturbed.TestCase):  # type: ignore[misc, valid-type]
    """No oversell, no lost stock, every event answered, whatever crashes or comes again."""


def busy_inputs(rng: Random) -> list[tuple[Topic, Event]]:
    """Some 60 inputs on three scarce SKUs."""
    inputs: list[tuple[Topic, Event]] = []
    for n in range(40):
        chosen = [(rng.choice(SKUS), rng.randint(1, 2)) for _ in range(rng.randint(1, 3))]
        kind = "returned" if rng.random() < 0.1 else "placed"
        inputs.append((ORDER_EVENTS, order_event(f"o{n}", kind, chosen)))
        if rng.random() < 0.3:
            inputs.append((ORDER_EVENTS, order_event(f"o{rng.randint(0, n)}", "cancelled", (), f"x{n}")))
        if rng.random() < 0.2:
            inputs.append((STOCK_RECEIPTS, receipt(rng.choice(SKUS), rng.randint(1, 4), f"d{n}")))
    return inputs


def test_a_crashed_run_ends_as_the_undisturbed_run() -> None:
    """Crashing each task again and again, with the same order of work, changes no record but repeats."""
    for seed in range(15):
        inputs = busy_inputs(Random(seed))
        final: list[dict[str, Any]] = []
        for crashes in (False, True):
            topology, rng = with_stock(OPENING, partitions=2), Random(seed)
            for topic, event in inputs:
                topology.produce(topic, event)
                topology.drain()
                if crashes:
                    # One that has saved some of its work reads the rest again and emits it again.
                    for task in rng.sample(topology.tasks, 4):
                        if rng.random() < 0.3:
                            task.save()
                        task.crash()
                    topology.drain()
            check_all(topology)
            final.append(
                {
                    topic.name: {(e[topic.key], e["event_id"]): e for e in topology.events(topic)}
                    for topic in (ORDER_STATUS, STOCK_RESULTS)
                }
            )
            assert crashes == (topology.duplicates_total > 0)
        assert final[0] == final[1]


def test_batch_size_changes_nothing() -> None:
    """The same log in batches of 1, 2, 7 and 512 gives the same bytes."""
    inputs = busy_inputs(Random(3))
    recorded = with_stock(OPENING, partitions=1)
    for topic, event in inputs:
        recorded.produce(topic, event)
    recorded.drain(Random(4))
    for task in recorded.tasks:
        emitted = []
        for most in (1, 2, 7, 512):
            again = Topology(partitions=1)
            again.logs[task.source.name] = [list(recorded.logs[task.source.name][0])]
            fresh = next(t for t in again.tasks if t.processor is task.processor and t.source is task.source)
            logs = {topic.name: list(again.events(topic)) for topic in task.processor.outputs}
            while fresh.offset < len(again.logs[task.source.name][0]):
                again.advance(fresh, most)
            logs = {topic.name: list(again.events(topic)) for topic in task.processor.outputs}
            emitted.append((logs, list(fresh.state.snapshot())))
        assert all(one == emitted[0] for one in emitted)


def test_orders_one_after_another_equal_a_plain_loop() -> None:
    """Where each order ends before the next begins, first come is first served, all or nothing."""
    for seed in range(20):
        rng = Random(seed)
        topology = with_stock(OPENING)
        plain: list[tuple[str, str, list[tuple[str, int]]]] = []
        for n in range(30):
            chosen = [(rng.choice(SKUS), rng.randint(1, 3)) for _ in range(rng.randint(1, 4))]
            kind = "returned" if rng.random() < 0.3 else "placed"
            plain.append((f"o{n}", kind, chosen))
            topology.produce(ORDER_EVENTS, order_event(f"o{n}", kind, chosen))
            topology.drain(rng)
        check_all(topology)
        available, statuses = one_after_another(OPENING, plain)
        assert {i: o["status"] for i, o in latest(topology.events(ORDER_STATUS)).items()} == statuses
        last: dict[str, Event] = {}
        for result in topology.events(STOCK_RESULTS):
            if result["version"] > last.get(result["sku"], {"version": 0})["version"]:
                last[result["sku"]] = result
        assert {sku: r["available"] for sku, r in last.items()} == available


def test_two_orders_for_the_last_units_cannot_both_fail() -> None:
    """Two orders that each want the last of two SKUs: exactly one gets them, in every interleaving."""
    for seed in range(200):
        topology = with_stock({"apple": 1, "pear": 1})
        topology.produce(ORDER_EVENTS, order_event("a", "placed", [("apple", 1), ("pear", 1)]))
        topology.produce(ORDER_EVENTS, order_event("b", "placed", [("pear", 1), ("apple", 1)]))
        topology.drain(Random(seed))
        assert check_all(topology) == {"CONFIRMED": 1, "REJECTED": 1}
