"""Bytewax: Kafka in, `stateful_map` per card, Kafka out, with one worker, run as its documentation says.

Its chapter on performance: a larger `batch_size` of the source for throughput (5000 there; the default is
1000), batches decoded and encoded with `flat_map_batch`, one worker a process (more contend for the GIL).
No recovery configuration, which is faster and loses all state with the process; but for the benchmark of
recovery: then one of its recovery partitions, with a snapshot every second (`-r`, `-s`).
"""

import sys
from datetime import timedelta
from pathlib import Path

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import cluster_main

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


def recovery():
    if not RECOVERING:
        return {}
    folder = Path(JOB["state"])
    if not any(folder.iterdir()):
        init_db_dir(folder, 1)
    return {
        "epoch_interval": timedelta(seconds=RECOVERY_SECONDS),
        "recovery_config": RecoveryConfig(str(folder)),
    }


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
    sys.exit(cluster_main(flow, [], 0, **recovery()))
