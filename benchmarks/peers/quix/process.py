"""Quix Streams: a stateful apply between a topic of bytes and a topic of bytes.

Fastest of what its documentation offers: bytes in and out with fastavro in between (its AvroDeserializer
asks Confluent's, which is slower), one value of state per card as bytes of pickle (the default is JSON),
at-least-once (the default), and no changelog topics, at the price of state that a lost disk takes along.
For the benchmark of recovery with them (the default), and a checkpoint every second.
"""

import pickle
import sys

from quixstreams import Application
from quixstreams.state.rocksdb.options import RocksDBOptions

from benchmarks.peers.task import (
    JOB,
    PRODUCER,
    RECOVERING,
    RECOVERY_SECONDS,
    decode,
    empty,
    encode,
)
from benchmarks.peers.task import score as scored


def score(value, state):
    event = decode(value)
    stored = state.get_bytes("window", default=None)
    window = pickle.loads(stored) if stored is not None else empty()
    result = scored(window, event)
    state.set_bytes("window", pickle.dumps(window))
    return encode(result)


app = Application(
    broker_address=JOB["bootstrap"],
    consumer_group=JOB["tag"],
    auto_offset_reset="earliest",
    state_dir=JOB["state"],
    use_changelog_topics=RECOVERING,
    commit_interval=RECOVERY_SECONDS if RECOVERING else 5.0,
    rocksdb_options=RocksDBOptions(dumps=pickle.dumps, loads=pickle.loads),
    producer_extra_config=PRODUCER,
    auto_create_topics=RECOVERING,  # the changelog's
    loglevel="WARNING",
)
source = app.topic(JOB["source"], key_deserializer="bytes", value_deserializer="bytes")
target = app.topic(JOB["target"], key_serializer="bytes", value_serializer="bytes")
stream = app.dataframe(source)
stream = stream.apply(score, stateful=True)
stream = stream.to_topic(target)

if __name__ == "__main__":
    sys.exit(app.run())
