"""The auction's stream: what is generated is Nexmark, the same each time, and where a key goes is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.nexmark.declared import BIDS
from benchmarks.nexmark.stream import (
    DISORDER_MS,
    FIRST_ID,
    START_MS,
    Stream,
    partition_of,
    rows_of,
)

STREAM = Stream(20_000)


def test_events_come_in_the_standard_proportions() -> None:
    """Of fifty events one is a person, three are auctions and 46 are bids."""
    assert len(STREAM.persons) * 50 == 20_000
    assert len(STREAM.auctions) * 50 == 3 * 20_000
    assert len(STREAM.bids) * 50 == 46 * 20_000


def test_the_same_stream_comes_again() -> None:
    """Two runs measure over the same events, whatever was asked of the stream first."""
    again = Stream(20_000)
    for one, other in ((STREAM.bids, again.bids), (STREAM.persons, again.persons)):
        rows = np.arange(len(one))
        assert one.batch(rows).equals(other.batch(rows))


def test_disorder_is_bounded() -> None:
    """No event is sent so late that a subject which allows for a second would take it for late."""
    at_ms = STREAM.bids.numbers["occurred_at"]
    behind = np.maximum.accumulate(at_ms) - at_ms
    assert 0 < behind.max() < DISORDER_MS


def test_hot_auctions_draw_half_of_the_bids() -> None:
    """A bid goes to an auction put up before; about half of them go to the latest of each hundred."""
    auction = STREAM.bids.numbers["auction_id"] - FIRST_ID
    newest = (STREAM.bids.numbers["occurred_at"] - START_MS) // 50 * 3 + 2
    assert (auction <= newest).all()
    assert abs((auction == newest // 100 * 100).mean() - 0.5) < 0.02


def test_ids_say_the_row() -> None:
    """The checker finds a result by the id of its bid; what is no such id is none."""
    known = STREAM.bids.batch(np.array([7, 11, 13])).column("event_id").to_pylist()
    strange = ["", "bids-7", "bids-00000000000x", "auctions-000000000007"]
    assert rows_of(BIDS, pa.array([*known, *strange])).tolist() == [7, 11, 13, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"kafka", 0xD067CF64),
        (b"giberish123456789", 0x8F552B0C),
        (b"1234", 0x9FC97B14),
        (b"234", 0xE7C009CA),
    ],
)
def test_a_key_goes_where_kafka_puts_it(key: bytes, hashed: int) -> None:
    """The partition is that of murmur2 as Kafka's Java client hashes (the vectors that librdkafka tests)."""
    assert partition_of(key, 1 << 31) == hashed & 0x7FFFFFFF
