"""Nexmark's oracle and its check: a figure counts only if these can say no."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks.nexmark.declared import RESULTS, SCHEMAS, Declared
from benchmarks.nexmark.oracle import Expected, expected, left_out
from benchmarks.nexmark.stream import Stream
from infra.codec import Codec
from infra.columns import Columns

STREAM = Stream(30_000)
LONG = Stream(200_000)
"""Long enough for two windows of q7 in one partition."""
BIDS = STREAM.bids.batch(np.arange(len(STREAM.bids))).to_pylist()


def all_of(wanted: Expected) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = wanted.batch(np.arange(len(wanted))).to_pylist()
    return events


def test_hot_items_are_those_of_the_definition() -> None:
    """q5: counted bid by bid over each ten seconds, the auctions with the most."""
    found: dict[int, dict[int, int]] = {}
    for result in all_of(expected("q5", STREAM)):
        found.setdefault(result["occurred_at"], {})[result["auction_id"]] = result["bids"]
    for end in [*range(STREAM.end_ms - 28_000, STREAM.end_ms, 2_000), STREAM.end_ms + 8_000]:
        counts = Counter(b["auction_id"] for b in BIDS if end - 10_000 <= b["occurred_at"] < end)
        most = max(counts.values())
        assert found[end] == {auction: n for auction, n in counts.items() if n == most}


def test_highest_bids_are_those_of_the_definition() -> None:
    """q7: of each ten seconds all bids with the highest price."""
    results = all_of(expected("q7", STREAM))
    for end in range(STREAM.end_ms - 20_000, STREAM.end_ms + 1, 10_000):
        window = [b for b in BIDS if end - 10_000 <= b["occurred_at"] < end]
        price = max(b["price_minor"] for b in window)
        best = {(b["occurred_at"], b["auction_id"], price) for b in window if b["price_minor"] == price}
        found = [r for r in results if r["occurred_at"] == end]
        assert {(r["bid_at"], r["auction_id"], r["price_minor"]) for r in found} == best


def test_new_sellers_are_those_of_the_definition() -> None:
    """q8: who registered and put something up in the same ten seconds, once."""
    persons, auctions = (r.batch(np.arange(len(r))).to_pylist() for r in (STREAM.persons, STREAM.auctions))
    sold = {(a["seller_id"], a["occurred_at"] // 10_000) for a in auctions}
    wanted = {
        (p["person_id"], p["name"], p["occurred_at"] // 10_000 * 10_000 + 10_000)
        for p in persons
        if (p["person_id"], p["occurred_at"] // 10_000) in sold
    }
    found = [(r["person_id"], r["name"], r["occurred_at"]) for r in all_of(expected("q8", STREAM))]
    assert set(found) == wanted
    assert len(found) == len(wanted) > 10


def test_left_out_is_what_a_later_one_of_its_group_has_passed() -> None:
    """A result is left out only where one that must come after it, by both ranks, is there."""
    group = np.array([0, 0, 0, 1, 1])
    rank = np.array([1, 2, 3, 1, 2])
    there = np.array([True, False, True, False, False])
    assert left_out(there, group, (rank, rank)) == 1
    assert left_out(there, group, (rank, np.array([1, 9, 3, 1, 2]))) == 0
    assert left_out(np.array([True, True, False, True, False]), group, (rank, rank)) == 0
    assert left_out(np.array([False, False, True, False, True]), group, (rank, rank)) == 3


@pytest.fixture(params=list(RESULTS))
def left(request: pytest.FixtureRequest, codec: Codec) -> tuple[Expected, Columns, list[bytes]]:
    """A query's oracle, the codec of its results, and all of them as records."""
    declared = Declared(request.param, "checked")
    codec.register(declared.results)
    columns = Columns(codec, declared.results)
    wanted = expected(request.param, LONG)
    return wanted, columns, columns.encode(wanted.batch(np.arange(len(wanted))))


def test_results_up_to_a_point_pass_and_faults_do_not(left: tuple[Expected, Columns, list[bytes]]) -> None:
    """What a slice leaves when it ends is right as far as it goes; a fault in it is found as such."""
    wanted, columns, records = left
    reached = len(records) * 2 // 3
    check = wanted.check([records[:reached][::-1]], columns)
    assert check.passed
    assert check.counts["distinct"] == reached
    assert check.hash == check.expected_hash

    other = bytearray(records[0])
    other[-1] ^= 2
    # The first one that another one has behind it.
    gap = next(
        n for n in range(reached) if left_out(np.arange(len(records)) != n, wanted.group, wanted.ranks)
    )
    for finding, faulty in {
        "wrong": [bytes(other), *records[1:reached]],
        "duplicates": [*records[:reached], records[0]],
        "left_out": [*records[:gap], *records[gap + 1 :]],
    }.items():
        found = wanted.check([faulty], columns)
        assert not found.passed
        assert found.counts[finding] == 1
    strange = wanted.check([[*records[:reached], b"", b"\0\0\0\0\1 no event"]], columns)
    assert strange.counts["wrong"] == 2
    assert not wanted.check([], columns).passed


def test_every_schema_is_of_a_topic() -> None:
    """Nothing orphaned: each schema of the auction is one that a query reads or writes."""
    declared = [Declared(query, "checked") for query in RESULTS]
    topics = {
        t.schema_name for d in declared for t in (*d.inputs, *d.own_topics) if not t.name.endswith("dlq")
    }
    assert {path.stem for path in SCHEMAS.glob("*.avsc")} == topics
