"""Quix's PostgreSQLSink, upserting on the primary key, as its documentation shows it.

It writes at each checkpoint: every 10,000 records here, as the default of five seconds gathers 50,000 rows
to no gain. The schema is ours already, so that it need not ask the catalogue about it.
"""

import sys
from datetime import UTC, datetime
from urllib.parse import urlsplit

from quixstreams import Application
from quixstreams.sinks.community.postgresql import PostgreSQLSink

from benchmarks.peers.task import JOB, decode


def row(value):
    event = decode(value)
    event["occurred_at"] = datetime.fromtimestamp(event["occurred_at"] / 1000, UTC)
    return event


app = Application(
    broker_address=JOB["bootstrap"],
    consumer_group=JOB["tag"],
    auto_offset_reset="earliest",
    state_dir=JOB["state"],
    commit_every=10_000,
    auto_create_topics=False,
    loglevel="WARNING",
)
at = urlsplit(JOB["database"])
sink = PostgreSQLSink(
    host=at.hostname,
    port=at.port,
    dbname=at.path.strip("/"),
    user=at.username,
    password=at.password,
    table_name=JOB["table"],
    schema_auto_update=False,
    primary_key_columns="event_id",
    upsert_on_primary_key=True,
)
source = app.topic(JOB["source"], key_deserializer="str", value_deserializer="bytes")
app.dataframe(source).apply(row).sink(sink)

if __name__ == "__main__":
    sys.exit(app.run())
