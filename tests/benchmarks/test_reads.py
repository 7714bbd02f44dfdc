"""What the benchmark of reads takes for a bound that is kept, and for one that is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.arrivals import Waits
from benchmarks.http_load import BROKEN, UNSENT
from benchmarks.read_routes import Asked, Mix
from benchmarks.reads import IDLE, Found

GOOD = Found(
    name="alone",
    rate=1_000,
    waits=Waits(3.0, 199.0, 400.0, 900.0),
    client=Waits(1.0, 1.0, 1.0, 1.0),
    requests=1_000,
    statuses={200: 1_000},
    wrong=0,
    without_again=0,
    by_route={},
    cores={"api 0": 0.5, "api 1": 0.4, "database": 0.3, "client": 0.2},
    seconds=10.0,
    api_seconds=9.0,
    answered=1_000,
)
SHED = replace(GOOD, name="overload", statuses={200: 500, 429: 300, 503: 100, UNSENT: 100})


def faults(found: Found, is_overload: bool = False) -> set[str]:
    return {name for name, count in found.faults(is_overload).items() if count}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, set()),
        ({"waits": Waits(3.0, 200.1, 400.0, 900.0)}, {"p95_beyond"}),
        ({"wrong": 1}, {"wrong"}),
        ({"statuses": {200: 999, 503: 1}}, {"errors"}),
        ({"statuses": {200: 999, BROKEN: 1}}, {"errors"}),
    ],
)
def test_a_rate_is_kept_without_error_and_in_time(changed: dict[str, Any], fault: set[str]) -> None:
    """A p95 beyond 200 ms, one wrong answer, or one that is none, fails the stretch."""
    assert faults(replace(GOOD, **changed)) == fault


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, set()),
        ({"waits": Waits(900.0, 5_000.0, 6_000.0, 7_000.0)}, set()),
        ({"statuses": {200: 900, 503: 99, 500: 1}}, {"other_than_shed"}),
        ({"statuses": {200: 900, 429: 99, BROKEN: 1}}, {"other_than_shed"}),
        ({"without_again": 1}, {"refused_without_when"}),
        ({"statuses": {200: 1_000}}, {"nothing_shed"}),
        ({"wrong": 1}, {"wrong"}),
    ],
)
def test_an_overload_is_shed_in_order(changed: dict[str, Any], fault: set[str]) -> None:
    """Only 200, 429 and 503 come, refusals say when to come again, and what is answered is right."""
    assert faults(replace(SHED, **changed), is_overload=True) == fault


def test_connections_that_wait_are_all_there_and_hear_everything() -> None:
    """One that was lost or never opened, one that missed a record or had one twice, fails the stretch."""
    heard = {"websocket": {"4": 500}, "events": {"4": 250}, "http": {"11": 200, "12": 50}}
    kinds = {n: {"opened": IDLE[n], "lost": 0, "wrong": 0, "heard": heard[n]} for n in IDLE}
    assert faults(replace(GOOD, idle=kinds, appended=4)) == set()
    for name, changed in (
        ("websocket_wrong", {"heard": {"4": 498, "3": 1, "5": 1}}),
        ("websocket_lost", {"lost": 1}),
        ("websocket_lost", {"opened": 499}),
    ):
        worse = kinds | {"websocket": kinds["websocket"] | changed}
        assert faults(replace(GOOD, idle=worse, appended=4)) == {name}


def test_processor_time_is_that_of_the_api_for_each_answer() -> None:
    """Of all that it answered meanwhile, late answers to earlier requests among them."""
    assert GOOD.api_us == 9_000.0
    assert replace(SHED, answered=500).api_us == 18_000.0


def test_a_page_is_compared_by_its_items_and_its_end() -> None:
    """The cursor's text is the API's own; that there is one is not."""
    asked = Asked("/v1/x", [1, 2], more=True)
    assert asked.is_answered_by({"items": [1, 2], "next_cursor": "abc"})
    assert not asked.is_answered_by({"items": [1, 2], "next_cursor": None})
    assert not asked.is_answered_by({"items": [2, 1], "next_cursor": "abc"})
    assert not Asked("/v1/x", {"a": 1}).is_answered_by({"a": 2})


def test_a_mix_is_drawn_by_its_shares() -> None:
    """The same requests each time, each route about as often as its share says."""
    mix = Mix({"a": [Asked("/a", 1)], "b": [Asked("/b", 1), Asked("/c", 1)]}, {"a": 0.2, "b": 0.6})
    drawn = mix.draw(4_000)
    assert drawn == mix.draw(4_000)
    assert sum(name == "a" for name, _ in drawn) == pytest.approx(1_000, rel=0.1)
    assert {asked.path for _, asked in drawn} == {"/a", "/b", "/c"}
