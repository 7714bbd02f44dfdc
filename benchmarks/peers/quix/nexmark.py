"""Quix Streams: its windows, `group_by` and `concat` between topics, options as in process.py.

q5 and q7 have windows by auction, which a partition's own event time closes (`final("partition")`), then
all results by one key (`group_by`, through a topic that Quix makes) and a window of those. That one sees
partitions at different places, and only a grace in event time can wait for them; what comes later still is
lost. q8 is a stateful `apply` over both topics (`concat`), as its joins are by intervals and latest values,
not by windows.
"""

import pickle
import sys

from quixstreams import Application
from quixstreams.models.serializers import Deserializer, Serializer
from quixstreams.state.rocksdb.options import RocksDBOptions

from benchmarks.peers import auction
from benchmarks.peers.auction import (
    EVENLY,
    HOP_MS,
    HOT_MS,
    LATENESS_MS,
    QUERY,
    SOURCES,
    WINDOW_MS,
)
from benchmarks.peers.task import JOB, PRODUCER, decode

GRACE_MS = 300_000
"""Hot auctions pull partitions apart, the further the more is read."""


class Avro(Deserializer):
    """A topic's events."""

    def __init__(self, read):
        super().__init__()
        self._read = read

    def __call__(self, value, ctx):
        return self._read(value)


class Second(Serializer):
    """Of a key and a value the latter."""

    def __call__(self, value, ctx):
        return value[1]


app = Application(
    broker_address=JOB["bootstrap"],
    consumer_group=JOB["tag"],
    auto_offset_reset="earliest",
    state_dir=JOB["state"],
    use_changelog_topics=False,
    rocksdb_options=RocksDBOptions(dumps=pickle.dumps, loads=pickle.loads),
    producer_extra_config=PRODUCER,
    consumer_extra_config=EVENLY if QUERY in ("q5", "q7") else None,
    loglevel="ERROR",
)
target = app.topic(
    JOB["target"],
    key_serializer="bytes",
    value_serializer=Second() if QUERY in ("q5", "q7", "q8") else "bytes",
)


def read(source, decoded):
    topic = app.topic(
        source,
        key_deserializer="bytes",
        value_deserializer=Avro(decoded),
        timestamp_extractor=lambda event, *_: event["occurred_at"],
    )
    return app.dataframe(topic)


def in_one(windows, name):
    """All results by one key, each at its window's start."""
    return windows.group_by(lambda _: "all", name=name)


def counted(window, key, _timestamp, _headers):
    return window["value"], [int(key)]


def higher(one, other):
    """JSON between the topics has made lists of tuples."""
    return auction.higher(tuple(one), tuple(other))


def more(one, other):
    if one[0] == other[0]:
        return [one[0], [*one[1], *other[1]]]
    return one if one[0] > other[0] else other


def hot_items(window):
    bids, auctions = window["value"]
    return list(auction.hot_items(window["start"] + HOT_MS, bids, auctions))


def highest_bids(window):
    return list(auction.highest_bids(window["end"], window["value"]))


def join(event, state):
    """One answer a person, as soon as both are there."""
    name, registered, answered, sold = state.get("seller", default=(None, 0, False, ()))
    end = auction.window_end(event)
    if "person_id" in event:
        name, registered, both, sold = event["name"], end, end in sold, ()
    elif name is None:
        both, sold = False, (*sold, end)
    else:
        both = end == registered
    found = [auction.new_seller(end, event.get("person_id", event.get("seller_id")), name)]
    found = found if both and not answered else []
    state.set("seller", (name, registered, answered or both, sold))
    return found


if QUERY == "q5":
    bids = read(SOURCES[0], decode)
    counts = bids.hopping_window(HOT_MS, HOP_MS, grace_ms=LATENESS_MS).count().final("partition")
    counts = in_one(counts.apply(counted, metadata=True), "counts")
    windows = counts.tumbling_window(HOP_MS, grace_ms=GRACE_MS).reduce(more, lambda one: one).final()
    records = windows.apply(hot_items, expand=True)
elif QUERY == "q7":
    bids = read(SOURCES[0], decode)
    best = bids.apply(auction.highest).tumbling_window(WINDOW_MS, grace_ms=LATENESS_MS)
    best = best.reduce(auction.higher, lambda one: one).final("partition")
    best = in_one(best.apply(lambda window: window["value"]), "highest")
    windows = best.tumbling_window(WINDOW_MS, grace_ms=GRACE_MS).reduce(higher, lambda one: one).final()
    records = windows.apply(highest_bids, expand=True)
elif QUERY == "q8":
    both = read(SOURCES[0], decode).concat(read(SOURCES[1], auction.decode_second))
    records = both.apply(join, stateful=True, expand=True)
else:
    source = app.topic(SOURCES[0], key_deserializer="bytes", value_deserializer="bytes")
    stream = app.dataframe(source).apply(auction.answered).filter(lambda value: value is not None)
    stream = stream.to_topic(target)
    records = None
if records is not None:
    records = records.to_topic(target, key=lambda record: record[0])

if __name__ == "__main__":
    sys.exit(app.run())
