"""An ordinary Faust agent: one event at a time, its window in a table, its codec a `faust.Codec`.

As in the user guide's chapters on agents, tables and codecs. The table is kept in memory (the default store,
and the fastest); Faust writes its changelog, from which a worker that starts again takes it. Optimisations
are in force where Faust has them (uvloop is not one of its requirements and is left out; `producer_acks` is
-1 by default, that is all).
"""

import sys

import faust

from benchmarks.peers.task import JOB, decode, empty, encode
from benchmarks.peers.task import score as scored


class Transactions(faust.Codec):
    def _loads(self, s):
        return decode(s)


class Scores(faust.Codec):
    def _dumps(self, obj):
        return encode(obj)


app = faust.App(
    JOB["tag"],
    broker=f"kafka://{JOB['bootstrap']}",
    store="memory://",
    datadir=JOB["state"],
    topic_partitions=JOB["partitions"],
    topic_replication_factor=1,
    consumer_auto_offset_reset="earliest",
    producer_compression_type="lz4",
    producer_linger=5,
    web_enabled=False,
)
source = app.topic(JOB["source"], key_serializer="raw", value_serializer=Transactions())
target = app.topic(JOB["target"], key_serializer="raw", value_serializer=Scores())
windows = app.Table("windows", default=empty, key_type=str)


@app.agent(source)
async def score(transactions):
    async for transaction in transactions:
        card = transaction["card_id"]
        window = windows[card]
        result = scored(window, transaction)
        windows[card] = window
        await target.send(key=card.encode(), value=result)


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--without-web", "-l", "warn"]
    app.main()
