"""The stream of an online auction after the published description of Nexmark, always the same one.

Of 50 events one is a person, three are auctions and 46 are bids. A quarter of the sellers, half of the
bids' auctions and a quarter of the bidders are drawn from those of late; the others are the hot ones of the
moment. Event time advances by a millisecond an event, and events are sent up to `DISORDER_MS` out of its
order. Prices are spread evenly over the orders of magnitude.

Rows are numbered in the order of sending, and ids say the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.nexmark.declared import AUCTIONS, BIDS, PERSONS
from infra.columns import arrow_schema
from schemas.declare import Topic

Ints = npt.NDArray[np.int64]

START_MS = 1_704_067_200_000
"""A multiple of all windows' lengths."""
DISORDER_MS = 400
ROUND = 50
PERSONS_A_ROUND, AUCTIONS_A_ROUND = 1, 3
WHOLE = 10_000
"""Streams are multiples of this many events, hence of all windows."""
FIRST_ID = 1_000
ACTIVE_PERSONS = 1_000
AUCTIONS_IN_FLIGHT = 100
HOT_EVERY = 100
"""The hot auction, seller or bidder of the moment is the latest of each hundred."""
ID_DIGITS = 12


@dataclass(frozen=True)
class Rows:
    """All events of one topic, by row: numbers as they are, words as places in a vocabulary."""

    topic: Topic
    numbers: dict[str, Ints]
    words: dict[str, tuple[Sequence[str], npt.NDArray[np.uint8]]]

    def __len__(self) -> int:
        return len(self.numbers["occurred_at"])

    def batch(self, rows: Ints) -> pa.RecordBatch:
        """These events, as the topic's schema has them."""
        columns = {name: pa.array(values[rows]) for name, values in self.numbers.items()}
        for name, (vocabulary, places) in self.words.items():
            columns[name] = pa.array(vocabulary).take(pa.array(places[rows]))
        columns["event_id"] = ids(self.topic, rows)
        columns["tenant"] = pa.array(["default"] * len(rows), pa.string())
        schema = arrow_schema(self.topic)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def ids(topic: Topic, rows: Ints) -> pa.StringArray:
    """The event ids of these rows."""
    digits = pc.utf8_lpad(pc.cast(pa.array(rows), pa.string()), ID_DIGITS, "0")
    return pc.binary_join_element_wise(topic.name, digits, "-")


def rows_of(topic: Topic, event_ids: pa.StringArray) -> Ints:
    """The rows that these event ids say; -1 for one that is none."""
    known = pc.match_substring_regex(event_ids, f"^{topic.name}-[0-9]{{{ID_DIGITS}}}$")
    digits = pc.utf8_slice_codeunits(event_ids, len(topic.name) + 1)
    rows: Ints = pc.cast(pc.if_else(known, digits, "-1"), pa.int64()).to_numpy(zero_copy_only=False)
    return rows


class Stream:
    """`events` events, rounded up to whole windows: `persons`, `auctions` and `bids`."""

    def __init__(self, events: int) -> None:
        count = -(-events // WHOLE) * WHOLE
        self.end_ms = START_MS + count
        n = np.arange(count, dtype=np.int64)
        self._sent = n[
            np.argsort(n + np.random.default_rng(11).integers(0, DISORDER_MS, count), kind="stable")
        ]

    def _drawn(self, first: int, last: int) -> tuple[np.random.Generator, Ints, Ints, Ints]:
        """Of the events at these places of a round: a generator of random numbers, round, place, number."""
        rounds, place = np.divmod(self._sent, ROUND)
        chosen = (place >= first) & (place < last)
        return np.random.default_rng(first), rounds[chosen], place[chosen] - first, self._sent[chosen]

    @cached_property
    def persons(self) -> Rows:
        return _persons(*self._drawn(0, PERSONS_A_ROUND))

    @cached_property
    def auctions(self) -> Rows:
        return _auctions(*self._drawn(PERSONS_A_ROUND, PERSONS_A_ROUND + AUCTIONS_A_ROUND))

    @cached_property
    def bids(self) -> Rows:
        return _bids(*self._drawn(PERSONS_A_ROUND + AUCTIONS_A_ROUND, ROUND))


def _hot_or_late(random: np.random.Generator, last: Ints, hot: float, late: int) -> Ints:
    """One of the numbers up to `last`: the hot one in this share of the cases, else any of the latest."""
    hottest = last // HOT_EVERY * HOT_EVERY
    late_one = last - (random.random(len(last)) * np.minimum(last + 1, late)).astype(np.int64)
    chosen: Ints = np.where(random.random(len(last)) < hot, hottest, late_one)
    return chosen


def _codes(vocabulary: Sequence[str], values: Ints) -> tuple[Sequence[str], npt.NDArray[np.uint8]]:
    return vocabulary, (values % len(vocabulary)).astype(np.uint8)


def _persons(random: np.random.Generator, rounds: Ints, place: Ints, n: Ints) -> Rows:
    names = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    return Rows(
        PERSONS,
        {"occurred_at": START_MS + n, "person_id": FIRST_ID + rounds},
        {
            "name": _codes(names, rounds * 7),
            "email": _codes([f"{name.replace(' ', '.').lower()}@example.org" for name in names], rounds * 7),
            "city": _codes(_CITIES, rounds * 5),
            "state": _codes(_STATES, rounds * 5),
        },
    )


def _auctions(random: np.random.Generator, rounds: Ints, place: Ints, n: Ints) -> Rows:
    first_bid = _prices(random, len(n))
    return Rows(
        AUCTIONS,
        {
            "occurred_at": START_MS + n,
            "auction_id": FIRST_ID + rounds * AUCTIONS_A_ROUND + place,
            "seller_id": FIRST_ID + _hot_or_late(random, rounds, 0.75, ACTIVE_PERSONS),
            "category": 10 + random.integers(0, 5, len(n)),
            "initial_bid_minor": first_bid,
            "reserve_minor": first_bid + _prices(random, len(n)),
            "expires_at": START_MS + n + random.integers(1_000, 20_000, len(n)),
        },
        {
            "item_name": _codes([f"item of lot {lot:03}" for lot in range(200)], rounds * 11 + place),
            "currency": _codes(["USD"], n),
        },
    )


def _bids(random: np.random.Generator, rounds: Ints, place: Ints, n: Ints) -> Rows:
    last_auction = rounds * AUCTIONS_A_ROUND + AUCTIONS_A_ROUND - 1
    auction = FIRST_ID + _hot_or_late(random, last_auction, 0.5, AUCTIONS_IN_FLIGHT)
    return Rows(
        BIDS,
        {
            "occurred_at": START_MS + n,
            "auction_id": auction,
            "bidder_id": FIRST_ID + _hot_or_late(random, rounds, 0.75, ACTIVE_PERSONS),
            "price_minor": _prices(random, len(n)),
        },
        {
            "currency": _codes(["USD"], n),
            "channel": _codes(_CHANNELS, random.integers(0, 100, len(n))),
            "extra": _codes([f"{word:064b}"[-28:] for word in range(199, 9_999, 61)], auction * 3),
        },
    )


def _prices(random: np.random.Generator, count: int) -> Ints:
    prices: Ints = np.round(100 * 10 ** (6 * random.random(count))).astype(np.int64)
    return prices


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own clients put a record of this key: murmur2 of its bytes, without the sign."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    hashed = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(key[at : at + 4], "little") * factor & mask
        hashed = (hashed * factor & mask) ^ ((word ^ word >> 24) * factor & mask)
    if rest := key[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % partitions


_FIRST_NAMES = ("Ada", "Bram", "Cleo", "Daan", "Edith", "Femke", "Gijs", "Hanna", "Ilse", "Joost", "Kees")
_LAST_NAMES = ("Bakker", "Claes", "Dijkstra", "Evers", "Faber", "Groen", "Hendriks", "Jansen", "Koster")
_CITIES = ("Phoenix", "Redmond", "Portland", "Boise", "Cheyenne", "Seattle", "Bend", "Kent")
_STATES = ("AZ", "WA", "OR", "ID", "WY", "WA", "OR", "WA")
_CHANNELS = ("web", "mobile", "partner", "phone")
