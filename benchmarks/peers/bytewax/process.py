"""Bytewax: Kafka in, `stateful_map` per card, Kafka out, with one worker, run as its documentation says.

Its chapter on performance: a larger `batch_size` of the source for throughput (5000 there; the default is
1000), batches decoded and encoded with `flat_map_batch`, one worker a process (more contend for the GIL).
No recovery configuration, which is faster and loses all state with the process.
"""

import sys

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from benchmarks.peers.task import JOB, PRODUCER, decode, empty, encode
from benchmarks.peers.task import score as scored


def read(messages):
    events = [decode(message.value) for message in messages]
    return [(event["card_id"], event) for event in events]


def score(window, event):
    if window is None:
        window = empty()
    return window, scored(window, event)


def write(keyed):
    return [KafkaSinkMessage(card.encode(), encode(result)) for card, result in keyed]


flow = Dataflow("scoring")
messages = op.input("read", flow, KafkaSource([JOB["bootstrap"]], [JOB["source"]], batch_size=5000))
events = op.flat_map_batch("decode", messages, read)
scores = op.stateful_map("score", events, score)
records = op.flat_map_batch("encode", scores, write)
op.output("write", records, KafkaSink([JOB["bootstrap"]], JOB["target"], add_config=PRODUCER))

if __name__ == "__main__":
    sys.exit(cluster_main(flow, [], 0))
