"""A plain consumer that writes by hand: `sink.py executemany` or `sink.py copy`.

One transaction for 10,000 records, then their offsets. `executemany` upserts row by row in psycopg's
pipeline; `copy` copies into a temporary table and merges from there, which a repeated key asks for.
"""

import signal
import sys
from datetime import UTC, datetime

import psycopg
from confluent_kafka import Consumer

from benchmarks.peers.task import JOB, decode

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(True))

TABLE, COLUMNS = JOB["table"], f"{JOB['columns']}, source_partition, source_offset"
TYPES = [
    "text",
    "text",
    "timestamptz",
    "text",
    "int8",
    *["text"] * 4,
    "int8",
    "int8",
    "float8",
    "int4",
    "int8",
]
UPSERT = "ON CONFLICT (event_id) DO NOTHING"


def row(message):
    event = decode(message.value())
    event["occurred_at"] = datetime.fromtimestamp(event["occurred_at"] / 1000, UTC)
    return (*event.values(), message.partition(), message.offset())


def executemany(cursor, rows):
    values = ", ".join(["%s"] * len(TYPES))
    cursor.executemany(f"INSERT INTO {TABLE} ({COLUMNS}) VALUES ({values}) {UPSERT}", rows)


def copy(cursor, rows):
    cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS stage (LIKE {TABLE}) ON COMMIT DELETE ROWS")
    with cursor.copy(f"COPY stage ({COLUMNS}) FROM STDIN (FORMAT BINARY)") as out:
        out.set_types(TYPES)
        for one in rows:
            out.write_row(one)
    cursor.execute(f"INSERT INTO {TABLE} ({COLUMNS}) SELECT {COLUMNS} FROM stage {UPSERT}")


write = {"executemany": executemany, "copy": copy}[sys.argv[1]]
consumer = Consumer(
    {
        "bootstrap.servers": JOB["bootstrap"],
        "group.id": JOB["tag"],
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
consumer.subscribe([JOB["source"]])
with psycopg.connect(JOB["database"]) as connection:
    while not ended:
        messages = consumer.consume(10_000, 0.1)
        if any(message.error() for message in messages):
            raise RuntimeError(messages)
        if messages:
            with connection.transaction(), connection.cursor() as cursor:
                write(cursor, [row(message) for message in messages])
            consumer.commit(asynchronous=True)
consumer.close()
