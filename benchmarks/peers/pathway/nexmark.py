"""Pathway: Kafka's raw format in and out, its windows and joins in between, on one thread; commits as in
process.py.

Its windows close by the newest event time of the whole table (`exactly_once_behavior`), not of a partition:
the shift waits for the others, and what comes later still is lost. q8 is `window_join`, made one a person
by a `groupby`. Rows of one commit come in no order: `sort_by` writes them in that of their windows or ids.
"""

import os
import signal

import pathway as pw

from benchmarks.peers import auction
from benchmarks.peers.auction import EVENLY, HOP_MS, HOT_MS, QUERY, SOURCES, WINDOW_MS
from benchmarks.peers.task import JOB, PRODUCER, decode

ONCE = pw.temporal.exactly_once_behavior(shift=600_000)
"""Hot auctions pull partitions apart, the further the more is read; with 200 s some windows lacked bids."""


def read(source):
    return pw.io.kafka.read(
        {
            "bootstrap.servers": JOB["bootstrap"],
            "group.id": JOB["tag"],
            "auto.offset.reset": "earliest",
            **(EVENLY if QUERY in ("q5", "q7") else {}),
        },
        topic=source,
        format="raw",
        autocommit_duration_ms=500,
        max_backlog_size=50_000,
    )


@pw.udf(deterministic=True)
def answer(value: bytes) -> bytes | None:
    return auction.answered(value)


@pw.udf(deterministic=True)
def bid_of(value: bytes) -> tuple[int, int, int, int]:
    bid = decode(value)
    return bid["occurred_at"], bid["auction_id"], bid["bidder_id"], bid["price_minor"]


@pw.udf(deterministic=True)
def person_of(value: bytes) -> tuple[int, int, str]:
    person = decode(value)
    return person["occurred_at"], person["person_id"], person["name"]


@pw.udf(deterministic=True)
def sale_of(value: bytes) -> tuple[int, int]:
    sold = auction.decode_second(value)
    return sold["occurred_at"], sold["seller_id"]


@pw.udf(deterministic=True)
def hot_items(end: int, counts: tuple[tuple[int, int], ...]) -> list[tuple[bytes, bytes]]:
    bids = max(n for n, _ in counts)
    return list(auction.hot_items(end, bids, [auction_id for n, auction_id in counts if n == bids]))


class Highest(pw.BaseCustomAccumulator):
    """The bids with the highest price."""

    def __init__(self, best):
        self.best = best

    @classmethod
    def from_row(cls, row):
        price, auction_id, bidder, at = row
        return cls((price, [[auction_id, bidder, at]]))

    def update(self, other):
        self.best = auction.higher(self.best, other.best)

    def compute_result(self) -> tuple[int, list[list[int]]]:
        return self.best


highest = pw.reducers.udf_reducer(Highest)


@pw.udf(deterministic=True)
def highest_bids(end: int, best: tuple[int, list[list[int]]]) -> list[tuple[bytes, bytes]]:
    return list(auction.highest_bids(end, best))


@pw.udf(deterministic=True)
def new_seller(end: int, person: int, name: str) -> tuple[bytes, bytes]:
    return auction.new_seller(end, person, name)


def bids():
    found = read(SOURCES[0]).select(bid=bid_of(pw.this.data))
    return found.select(
        at=pw.this.bid[0], auction=pw.this.bid[1], bidder=pw.this.bid[2], price=pw.this.bid[3]
    )


if QUERY == "q5":
    sliding = pw.temporal.sliding(hop=HOP_MS, duration=HOT_MS, origin=JOB["begins_ms"] - HOT_MS)
    found = bids()
    counts = found.windowby(found.at, window=sliding, behavior=ONCE, instance=found.auction).reduce(
        end=pw.this._pw_window_end, count=pw.make_tuple(pw.reducers.count(), pw.this._pw_instance)
    )
    windows = counts.groupby(pw.this.end).reduce(pw.this.end, counts=pw.reducers.tuple(pw.this.count))
    records = windows.select(record=hot_items(pw.this.end, pw.this.counts))
    records = records.flatten(pw.this.record)
elif QUERY == "q7":
    tumbling = pw.temporal.tumbling(WINDOW_MS, origin=JOB["begins_ms"])
    found = bids()
    windows = found.windowby(found.at, window=tumbling, behavior=ONCE).reduce(
        end=pw.this._pw_window_end,
        best=highest(pw.this.price, pw.this.auction, pw.this.bidder, pw.this.at),
    )
    records = windows.select(record=highest_bids(pw.this.end, pw.this.best))
    records = records.flatten(pw.this.record)
elif QUERY == "q8":
    people = read(SOURCES[0]).select(person=person_of(pw.this.data))
    people = people.select(at=pw.this.person[0], person=pw.this.person[1], name=pw.this.person[2])
    sales = read(SOURCES[1]).select(sale=sale_of(pw.this.data))
    sales = sales.select(at=pw.this.sale[0], seller=pw.this.sale[1])
    joined = people.window_join(
        sales, people.at, sales.at, pw.temporal.tumbling(WINDOW_MS), people.person == sales.seller
    ).select(people.person, people.name, end=pw.this._pw_window_end)
    once = joined.groupby(pw.this.end, pw.this.person, pw.this.name).reduce(
        pw.this.end, pw.this.person, pw.this.name
    )
    records = once.select(record=new_seller(pw.this.end, pw.this.person, pw.this.name))
else:
    found = read(SOURCES[0]).select(pw.this.key, value=answer(pw.this.data))
    found = found.filter(pw.this.value.is_not_none())
    records = found.select(record=pw.make_tuple(pw.this.key, pw.unwrap(pw.this.value)))
records = records.select(key=pw.this.record[0], value=pw.this.record[1])
pw.io.kafka.write(
    records,
    {"bootstrap.servers": JOB["bootstrap"], **PRODUCER},
    JOB["target"],
    format="raw",
    key=records.key,
    value=records.value,
    sort_by=[records.key, records.value] if QUERY in ("q5", "q7", "q8") else [records.value],
)

if __name__ == "__main__":
    # Its own handler ends the stream, and then windows that are still open are written as if they were over.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
