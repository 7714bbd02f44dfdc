"""Scores from their topic into a keyed table, each once: `python -m benchmarks.sink`.

Each subject decodes Avro (Debezium's connector: JSON with its schema) and upserts on the primary key. The
limit is COPY from a file into the same table with its key. Our own sink meets 0, 1 and 100 % of batches
with a record that was sent twice (`--full`: the peers too). Every row of every slice is compared with a
reference table that was loaded without any subject.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import (
    LIMIT,
    OURS,
    STATE,
    Check,
    Measured,
    Run,
    Sampler,
    Slice,
    alone,
    alternate,
    arguments,
    job,
    job_environ,
    python_of,
    report,
    services,
)
from benchmarks.peers.debezium import connector as debezium
from benchmarks.transactions import SCHEMAS, Declared, Event, Transactions, send, topic
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.settings import Settings
from schemas.declare import Topic

BATCH = 4096
TWICE = {0: None, 1: 100 * BATCH, 100: 1_000}
"""Per cent of batches with a duplicate -> every how manieth record is sent twice."""
COLUMNS = (
    "event_id, tenant, occurred_at, card_id, amount_minor, currency, merchant_id, country, channel,"
    " count_24h, sum_24h_minor, score"
)
DDL = """
    CREATE TABLE {} (
        event_id text PRIMARY KEY, tenant text NOT NULL, occurred_at timestamptz NOT NULL,
        card_id text NOT NULL, amount_minor bigint NOT NULL, currency text NOT NULL,
        merchant_id text NOT NULL, country text NOT NULL, channel text NOT NULL,
        count_24h bigint NOT NULL, sum_24h_minor bigint NOT NULL, score double precision NOT NULL{}
    ) WITH (autovacuum_enabled = off)
"""
SOURCE = ", source_partition integer NOT NULL, source_offset bigint NOT NULL"
QUIX = ', __key text, "timestamp" timestamp NOT NULL'
"""Columns that Quix's sink always adds, where ours has those of the source: the tables are of one size."""

PEERS = {
    "quix": ("quix", "benchmarks/peers/quix/sink.py"),
    "executemany": ("confluent", "benchmarks/peers/confluent/sink.py executemany"),
    "copy": ("confluent", "benchmarks/peers/confluent/sink.py copy"),
}
DEBEZIUM = "debezium"
DEBEZIUM_RECORDS = 400_000
"""Its records are ten times as long, each with the schema in it."""


class Rows:
    """Counts a growing table without reading it again: rows only come behind those that are committed."""

    def __init__(self, connection: Connection, table: str) -> None:
        self._connection, self._table = connection, table
        self._block, self._settled = 0, 0

    def __call__(self) -> int:
        block, more = self._block, 0
        found = self._ask(f"max(ctid), count(*) FROM {self._table} WHERE ctid >= '({block},0)'::tid")
        if found[0] is not None:
            more = int(found[1])
            last = int(str(found[0]).strip("()").split(",")[0])
            before = self._ask(
                f"count(*) FROM {self._table} WHERE ctid >= '({block},0)'::tid AND ctid < '({last},0)'::tid"
            )
            settled, self._block = self._settled, last
            self._settled += int(before[0])
            return settled + more
        return self._settled

    def _ask(self, what: str) -> tuple[Any, ...]:
        row = self._connection.execute(f"SELECT {what}".encode()).fetchone()
        assert row is not None
        return row


def twice(events: Iterator[Event], every: int | None) -> Iterator[Event]:
    """The events, every so manieth a second time soon after the first."""
    repeated: Event | None = None
    for n, event in enumerate(events, 1):
        yield event
        if every and n % every == every - 20:
            repeated = event
        if every and n % every == 0 and repeated is not None:
            yield repeated


class Reference:
    """The rows as they should be, in a table and in a file, loaded without any subject's help."""

    def __init__(self, connection: Connection, data: Transactions) -> None:
        self._connection = connection
        self.rows = data.records
        STATE.mkdir(parents=True, exist_ok=True)
        self.file = STATE / f"scores-{os.getpid()}.copy"
        connection.execute(DDL.format("reference", SOURCE + ", rank bigint").encode())
        at = np.datetime_as_string(data.at_ms.astype("datetime64[ms]"))
        ranked = zip(data.scored(), at.tolist(), data.rank.tolist(), strict=True)
        columns = f"{COLUMNS}, source_partition, source_offset"
        with connection.cursor() as cursor:
            with cursor.copy(f"COPY reference ({columns}, rank) FROM STDIN".encode()) as copy:
                for n, (event, time_of, rank) in enumerate(ranked):
                    values = {**event, "occurred_at": f"{time_of}Z"}.values()
                    copy.write("\t".join(map(str, (*values, n % 12, n // 12, rank))) + "\n")
            with (
                self.file.open("wb") as file,
                cursor.copy(f"COPY reference ({columns}) TO STDOUT (FORMAT BINARY)".encode()) as copy,
            ):
                for block in copy:
                    file.write(block)
        connection.execute("ANALYZE reference")

    def load(self, table: str) -> Run:
        """The limit: COPY from the file into a table of the same key."""
        here = psutil.Process()
        with connect(self._connection.info.dsn + f" password={self._connection.info.password}") as connection:
            backend = psutil.Process(connection.info.backend_pid)
            busy, began = _busy(here), time.monotonic()
            with connection.transaction(), connection.cursor() as cursor, self.file.open("rb") as file:
                columns = f"{COLUMNS}, source_partition, source_offset"
                with cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)".encode()) as copy:
                    while block := file.read(1 << 20):
                        copy.write(block)
            seconds, peak = time.monotonic() - began, backend.memory_info().rss
            measured = Measured(self.rows, seconds, _busy(here) - busy, peak)
        return Run(measured, self.check(table))

    def check(self, table: str, sink: str | None = None) -> Check:
        """Compare a table's rows with the reference: none other, none twice, of no card any left out.

        With our sink's name also its range records: what it has read are these rows and duplicates, no more.
        """
        mine = ", ".join(f"s.{c}" for c in COLUMNS.split(", "))
        theirs = ", ".join(f"r.{c}" for c in COLUMNS.split(", "))
        hashed = "coalesce(sum(hashtextextended(concat_ws('|', {}), 0)::numeric), 0)::text"
        row = self._connection.execute(
            f"SELECT count(*), count(*) FILTER (WHERE ({mine}) IS DISTINCT FROM"
            f" ({theirs})), {hashed.format(mine)}, {hashed.format(theirs)},"
            f" (SELECT coalesce(sum(last + 1 - n), 0) FROM (SELECT max(r.rank) AS last, count(*) AS n"
            f" FROM {table} s JOIN reference r USING (event_id) GROUP BY r.card_id) cards)"
            f" FROM {table} s LEFT JOIN reference r USING (event_id)".encode()
        ).fetchone()
        assert row is not None
        rows, wrong, found, expected, left_out = (str(v) for v in row)
        counts = {
            "records": int(rows),
            "wrong": int(wrong),
            "left_out": int(left_out),
        }
        if sink is not None:
            accounted = self._connection.execute(
                "SELECT coalesce(sum(records_total - duplicates_total - dead_total), 0),"
                " coalesce(sum(duplicates_total), 0) FROM range_records WHERE consumer = %s",
                (sink,),
            ).fetchone()
            assert accounted is not None
            counts["duplicates_left_out"] = int(str(accounted[1]))
            counts["unaccounted"] = abs(int(str(accounted[0])) - counts["records"])
        passed = counts["records"] > 0 and not (
            counts["wrong"] or counts["left_out"] or counts.get("unaccounted", 0)
        )
        return Check(passed, counts, found, expected)


def _busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> int:
    parser = arguments(__doc__, records=2_000_000)
    parser.add_argument("--full", action="store_true", help="the peers too with duplicates")
    chosen = parser.parse_args()
    pythons = {peer: python_of(peer) for peer, _ in PEERS.values()}
    jars = debezium.jars()
    with (
        alone(),
        services(chosen.port_base) as settings,
        connect(settings.database_url, "benchmark") as connection,
    ):
        codec = Codec(settings.schema_registry_url)
        data = Transactions(chosen.records)
        first = Declared("input")
        first.create(settings, codec)
        reference = Reference(connection, data)
        sources = {
            share: fill(settings, codec, data, topic("scores", f"scores-{share}"), every)
            for share, every in TWICE.items()
        }
        lines = min(DEBEZIUM_RECORDS, data.records)
        as_json = topic("scores", "scores-json")
        debezium.fill(settings, as_json, data, lines)

        def one(subject: str, n: int) -> Run:
            name, _, per_cent = subject.partition(" ")
            share = int(per_cent.strip("% ") or 0)
            source = sources[share]
            tag = f"{name}-{share}-{n}"
            declared = Declared(tag, source=first.transactions.name, scores=source.name)
            table = declared.table.name
            connection.execute(
                DDL.format(table, QUIX if name == "quix" else "" if name == DEBEZIUM else SOURCE).encode()
            )
            connection.execute("CHECKPOINT")
            try:
                if name == LIMIT:
                    return reference.load(table)
                told = job(
                    settings,
                    tag,
                    source=as_json.name if name == DEBEZIUM else source.name,
                    source_schema=f"{SCHEMAS}/scores.avsc",
                    transactions=first.transactions.name,
                    database=settings.database_url,
                    table=table,
                    columns=COLUMNS,
                )
                sampler = (
                    Sampler(f"sink-{share}", chosen.seconds) if chosen.profile and name == OURS else None
                )
                if name == OURS:
                    command = [sys.executable, "-m", "benchmarks.ours", "sink"]
                elif name == DEBEZIUM:
                    command = debezium.command(jars, told, settings)
                else:
                    peer, program = PEERS[name]
                    command = [pythons[peer], *program.split()]
                measured = Slice(
                    name=f"sink-{tag}",
                    command=command,
                    environ=job_environ(settings, told),
                    progress=Rows(connection, table),
                    total=lines if name == DEBEZIUM else data.records,
                    seconds=chosen.seconds,
                    while_measured=sampler.start if sampler else None,
                ).run()
                check = reference.check(table, declared.pipeline.sink_name if name == OURS else None)
                if sampler:
                    sampler.show()
                return Run(measured, check)
            finally:
                connection.execute(f"DROP TABLE {table}".encode())

        shares = [0, 1, 100]
        subjects = [f"{OURS}", *(f"{OURS} {s}%" for s in shares[1:])]
        for peer in (*PEERS, DEBEZIUM):
            subjects += [peer, *(f"{peer} {s}%" for s in shares[1:] if chosen.full and peer != DEBEZIUM)]
        runs = alternate([*subjects, LIMIT], chosen.only, chosen.slices, one)
        reference.file.unlink()
    return report("sink", "rows/s", runs)


def fill(settings: Settings, codec: Codec, data: Transactions, target: Topic, every: int | None) -> Topic:
    """A topic of all scores, with so many of them twice."""
    declared = Declared("fill", scores=target.name)
    declared.create(settings, codec)
    send(settings, target, ((e["card_id"], codec.encode(target, e)) for e in twice(data.scored(), every)))
    return target


if __name__ == "__main__":
    sys.exit(main())
