"""Bytewax: Kafka in, operators and windows of its library, Kafka out; options as in process.py.

Its watermark belongs to a key. So q5 and q7 fold windows with the partition as key, whose bids come in the
order of the log, and put the partitions' windows together in a `stateful_flat_map` that waits for all of
them. Between events the watermark goes on with the system's clock: the wait is longer than any pause
between two batches of a partition, at no loss, as event time runs much faster here. q8 is `join_window`,
keyed by person, answering as soon as both sides are there; the sides may lie far apart. Nothing here asks
for events in the order of their time (`ordered`).
"""

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators.windowing import EventClock, SlidingWindower, TumblingWindower
from bytewax.testing import cluster_main

from benchmarks.peers import auction
from benchmarks.peers.auction import HOP_MS, HOT_MS, QUERY, SOURCES, WINDOW_MS
from benchmarks.peers.task import JOB, PRODUCER, decode

BEGINS = datetime.fromtimestamp(JOB["begins_ms"] / 1000, UTC)


def clock(wait):
    """Without waking at windows' ends: they lie in the past, and every key would be woken all the time."""
    return EventClock(
        lambda event: datetime.fromtimestamp(event["occurred_at"] / 1000, UTC),
        wait_for_system_duration=wait,
        to_system_utc=lambda _: None,
    )


CLOCK = clock(timedelta(seconds=60))
SLIDING = SlidingWindower(
    length=timedelta(milliseconds=HOT_MS), offset=timedelta(milliseconds=HOP_MS), align_to=BEGINS
)
TUMBLING = TumblingWindower(length=timedelta(milliseconds=WINDOW_MS), align_to=BEGINS)


def read(name, source):
    # q8 reads two topics: batches of 5000 of all their partitions would be answered every five seconds.
    size = 1000 if QUERY == "q8" else 5000
    return op.input(name, flow, KafkaSource([JOB["bootstrap"]], [source], batch_size=size))


def answers(messages):
    found = ((message.key, auction.answered(message.value)) for message in messages)
    return [(key, value) for key, value in found if value is not None]


def by_partition(messages):
    return [(str(message.partition), decode(message.value)) for message in messages]


def count(counts, bid):
    counts[bid["auction_id"]] += 1
    return counts


def most(counts):
    bids = max(counts.values())
    return bids, [auction_id for auction_id, n in counts.items() if n == bids]


def take_higher(best, bid):
    return auction.higher(best, auction.highest(bid))


def by_window(step, best_of):
    def keyed(item):
        _partition, (window, folded) = item
        return str(window), best_of(folded)

    return op.map(f"{step}-by-window", folded_windows(step), keyed)


def folded_windows(step):
    bids = op.flat_map_batch("decode", read("read", SOURCES[0]), by_partition)
    if step == "q5":
        return win.fold_window(
            step, bids, CLOCK, SLIDING, Counter, count, Counter.__add__, ordered=False
        ).down
    return win.fold_window(
        step, bids, CLOCK, TUMBLING, lambda: (-1, []), take_higher, auction.higher, ordered=False
    ).down


def together(state, part):
    """All partitions have a bid in each window of this stream."""
    parts, best = state or (0, (-1, []))
    parts, best = parts + 1, auction.higher(best, part)
    return (None, [best]) if parts == JOB["partitions"] else ((parts, best), [])


def hot_items(item):
    window, (bids, auctions) = item
    end = JOB["begins_ms"] + int(window) * HOP_MS + HOT_MS
    return auction.hot_items(end, bids, auctions)


def highest_bids(item):
    window, best = item
    return auction.highest_bids(JOB["begins_ms"] + (int(window) + 1) * WINDOW_MS, best)


def persons(messages):
    return [(message.key.decode(), decode(message.value)) for message in messages]


def auctions(messages):
    return [(message.key.decode(), auction.decode_second(message.value)) for message in messages]


def new_seller(item):
    _key, (_window, (person, _sold)) = item
    return auction.new_seller(auction.window_end(person), person["person_id"], person["name"])


flow = Dataflow("nexmark")
if QUERY == "q5":
    windows = op.stateful_flat_map("together", by_window("q5", most), together)
    records = op.flat_map("records", windows, hot_items)
elif QUERY == "q7":
    windows = op.stateful_flat_map("together", by_window("q7", lambda best: best), together)
    records = op.flat_map("records", windows, highest_bids)
elif QUERY == "q8":
    apart = clock(timedelta(hours=1))
    joined = win.join_window(
        "join",
        apart,
        TUMBLING,
        op.flat_map_batch("persons", read("read-persons", SOURCES[0]), persons),
        op.flat_map_batch("auctions", read("read-auctions", SOURCES[1]), auctions),
        insert_mode="first",
        emit_mode="complete",
        ordered=False,
    )
    records = op.map("records", joined.down, new_seller)
else:
    records = op.flat_map_batch("answer", read("read", SOURCES[0]), answers)
written = op.map("write", records, lambda record: KafkaSinkMessage(*record))
op.output("out", written, KafkaSink([JOB["bootstrap"]], JOB["target"], add_config=PRODUCER))

if __name__ == "__main__":
    # q8's two inputs meet at the end of an epoch; with the default of 10 s its answers come as seldom.
    epoch = timedelta(seconds=1 if QUERY == "q8" else 10)
    sys.exit(cluster_main(flow, [], 0, epoch_interval=epoch))
