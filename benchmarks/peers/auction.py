"""What every Python peer is given for Nexmark: plain arithmetic on events, and the records of results.

Windows, grouping, joining and what to wait for are the framework's, in the form that its documentation shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.peers.task import JOB, decode, decoder, encode

QUERY: str = JOB["query"]
SOURCES: list[str] = JOB["sources"]
decode_second = decoder(JOB["second_schema"])
"""The event in a record of the second source (q8: an auction)."""

Event = dict[str, Any]
Keyed = tuple[bytes, bytes]
"""Key and value of a record of the target."""

HOT_MS, HOP_MS, WINDOW_MS = 10_000, 2_000, 10_000
LATENESS_MS = 1_000
"""How far behind the newest event of its partition an event may be."""
EVENLY = {"fetch.message.max.bytes": "131072", "queued.min.messages": "2000"}
"""For whoever waits for all partitions at once with a grace: with librdkafka's defaults (1 MB, 100,000
records) the partition that is fetched first runs ahead of any."""


def answer(bid: Event) -> Event | None:
    """q0, q1, q2: what becomes of a bid."""
    if QUERY == "q1":
        return {**bid, "price_minor": bid["price_minor"] * 908 // 1000, "currency": "EUR"}
    if QUERY == "q2" and bid["auction_id"] % 123:
        return None
    return bid


def answered(value: bytes) -> bytes | None:
    """q0, q1, q2: the same from record to record."""
    event = answer(decode(value))
    return None if event is None else encode(event)


def window_end(event: Event) -> int:
    """q7, q8: the end of the window in which an event lies."""
    at_ms: int = event["occurred_at"]
    return at_ms - at_ms % WINDOW_MS + WINDOW_MS


def hot_items(end: int, bids: int, auctions: Iterable[int]) -> Iterator[Keyed]:
    """q5: the records of a window."""
    for auction in sorted(auctions):
        event = {"event_id": f"{end}/{auction}", "occurred_at": end, "auction_id": auction, "bids": bids}
        yield b"%d" % end, encode({**event, "tenant": "default"})


Highest = tuple[int, list[list[int]]]
"""A price, and auction, bidder and time of the bids that have it."""


def highest(bid: Event) -> Highest:
    """q7: a bid alone."""
    return bid["price_minor"], [[bid["auction_id"], bid["bidder_id"], bid["occurred_at"]]]


def higher(one: Highest, other: Highest) -> Highest:
    """q7: the higher of two, or both."""
    if one[0] == other[0]:
        return one[0], [*one[1], *other[1]]
    return one if one[0] > other[0] else other


def highest_bids(end: int, found: Highest) -> Iterator[Keyed]:
    """q7: the records of a window."""
    price, bids = found
    for auction, bidder, at_ms in sorted(bids):
        event = {
            "event_id": f"{end}/{auction}/{bidder}/{at_ms}",
            "tenant": "default",
            "occurred_at": end,
            "auction_id": auction,
            "bidder_id": bidder,
            "bid_at": at_ms,
            "price_minor": price,
        }
        yield b"%d" % end, encode(event)


def new_seller(end: int, person: int, name: str) -> Keyed:
    """q8: the record of a person."""
    event = {"event_id": f"{end}/{person}", "occurred_at": end, "person_id": person, "name": name}
    return b"%d" % person, encode({**event, "tenant": "default"})
