"""A replay of a whole topic beside live traffic, with its comparison and swap, under concurrent readers.

`PYTHONPATH=. python -m benchmarks.replay --records 1000000` brings up an instance of its own, fills
the fleet's topic, keeps sending, and then works through the command line alone. It ends with code 1 where
the comparison is not empty, a reader saw anything but one generation whole, or live traffic waited for 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from infra.broker import producer
from infra.codec import Codec
from infra.postgres import connect
from infra.replay.live import Live
from infra.settings import Settings
from schemas.fleet import LATEST_POSITION_TABLE, PIPELINE, POSITIONS_TABLE, TRUCK_TELEMETRY

TRUCKS = 2_000
LIVE_PER_SECOND = 300
LAG_LIMIT_S = 5.0
DEADLINE_S = 1_500.0


def event(n: int, start_ms: int) -> dict[str, Any]:
    """The n-th fix; every truck in turn, a second apart."""
    truck = n % TRUCKS
    return {
        "event_id": f"bench-{n}",
        "truck_id": f"bench-{truck}",
        "occurred_at": start_ms + n // TRUCKS * 1_000,
        "sequence": n // TRUCKS,
        "latitude": 40.0 + truck / 1_000 + n // TRUCKS / 100_000,
        "longitude": 5.0,
        "accuracy_m": 5.0,
        "engine_temperature_c": 80.0,
    }


def millrace(settings: Settings, *arguments: str) -> str:
    """A run of the command; raises where it fails. Its progress goes to our standard error."""
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(command, env=settings.environ, text=True, stdout=subprocess.PIPE, check=True).stdout


class Traffic(threading.Thread):
    """Sends events at an even rate until stopped."""

    def __init__(self, settings: Settings, first: int, start_ms: int) -> None:
        super().__init__(daemon=True)
        self._settings, self.sent, self._start_ms = settings, first, start_ms
        self.ending = threading.Event()

    def run(self) -> None:
        codec, sender = (
            Codec(self._settings.schema_registry_url),
            producer(self._settings.kafka),
        )
        while not self.ending.wait(0.1):
            send(sender, codec, range(self.sent, self.sent + LIVE_PER_SECOND // 10), self._start_ms)
            self.sent += LIVE_PER_SECOND // 10
        sender.flush(30)


class Lag(threading.Thread):
    """Looks at the live pipeline's lag all the time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._settings, self.most_s, self.looks = settings, 0.0, 0
        self.ending = threading.Event()

    def run(self) -> None:
        live = Live(self._settings, PIPELINE, [TRUCK_TELEMETRY])
        with connect(self._settings.database_url, "benchmark") as connection:
            while not self.ending.wait(0.25):
                live.look(connection)
                self.looks += 1
                self.most_s = max(self.most_s, live.lag_s)


class Reader(threading.Thread):
    """Reads one table through its name, again and again: rows may only become more."""

    def __init__(self, settings: Settings, table: str) -> None:
        super().__init__(daemon=True)
        self._settings, self._table = settings, table
        self.reads, self.torn, self.slowest_s = 0, [], 0.0
        self.ending = threading.Event()

    torn: list[tuple[int, int]]

    def run(self) -> None:
        before = 0
        with connect(self._settings.database_url, "benchmark") as connection:
            while not self.ending.wait(0.02):
                began = time.monotonic()
                row = connection.execute(f"SELECT count(*) FROM {self._table}".encode()).fetchone()
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                rows = int(str(row[0])) if row else -1
                if rows < before:
                    self.torn.append((before, rows))
                before, self.reads = rows, self.reads + 1


def send(sender: Any, codec: Codec, numbers: range, start_ms: int) -> None:
    for n in numbers:
        one = event(n, start_ms)
        value = codec.encode(TRUCK_TELEMETRY, one)
        while True:
            try:
                sender.produce(TRUCK_TELEMETRY.name, value, one["truck_id"])
                break
            except BufferError:
                sender.poll(0.1)
    sender.poll(0)


def rows_stored(settings: Settings) -> int:
    with connect(settings.database_url, "benchmark") as connection:
        row = connection.execute(
            "SELECT sum(next_offset) FROM checkpoints WHERE consumer = %s AND topic = %s",
            (PIPELINE.sink_name, POSITIONS_TABLE.topic.name),
        ).fetchone()
    return int(str(row[0] or 0)) if row else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--home", type=Path, default=Path(".millrace/benchmark-replay"))
    parser.add_argument("--port-base", type=int, default=28_000)
    arguments = parser.parse_args()
    settings = Settings(
        {
            **os.environ,
            "MILLRACE_HOME": str(arguments.home.absolute()),
            "MILLRACE_PORT_BASE": str(arguments.port_base),
        }
    )
    millrace(settings, "down", "--purge")
    try:
        millrace(settings, "up")
        return measure(settings, arguments.records)
    finally:
        millrace(settings, "down", "--purge")


def measure(settings: Settings, records: int) -> int:
    start_ms = int(time.time() * 1000) - 86_400_000
    began = time.monotonic()
    codec, sender = Codec(settings.schema_registry_url), producer(settings.kafka)
    for first in range(0, records, 10_000):
        send(sender, codec, range(first, min(first + 10_000, records)), start_ms)
    sender.flush(60)
    while (stored := rows_stored(settings)) < records:
        if time.monotonic() - began > DEADLINE_S:
            raise TimeoutError(f"{stored} of {records} records were stored within {DEADLINE_S:.0f} s")
        time.sleep(1)
    live_s = time.monotonic() - began
    print(f"live: {records:,} records in {live_s:.0f} s, {records / live_s:,.0f} records/s")

    traffic, lag = Traffic(settings, records, start_ms), Lag(settings)
    readers = [Reader(settings, t.name) for t in (POSITIONS_TABLE, LATEST_POSITION_TABLE)]
    watchers: list[Traffic | Lag | Reader] = [traffic, lag, *readers]
    for watcher in watchers:
        watcher.start()
    print(millrace(settings, "replay", "plan", "fleet"))
    began = time.monotonic()
    run = json.loads(millrace(settings, "replay", "run", "fleet", "--json"))
    run_s = time.monotonic() - began
    print(f"replay: {run['records']:,} records in {run_s:.0f} s, {run['records'] / run_s:,.0f} records/s")
    compared = json.loads(millrace(settings, "replay", "diff", str(run["run"]), "--json"))["tables"]
    print(millrace(settings, "replay", "diff", str(run["run"])))
    print(millrace(settings, "replay", "swap", str(run["run"])))
    time.sleep(5)
    for watcher in watchers:
        watcher.ending.set()
    for watcher in watchers:
        watcher.join(60)
    end = time.monotonic() + 60
    while rows_stored(settings) < traffic.sent and time.monotonic() < end:
        time.sleep(0.5)
    with connect(settings.database_url, "benchmark") as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT event_id) FROM truck_positions").fetchone()
    assert row is not None
    print(millrace(settings, "replay", "abort", str(run["run"])))
    checks = {
        "the comparison is empty": all(t["empty"] for t in compared),
        f"live traffic never waited {LAG_LIMIT_S:g} s (most: {lag.most_s:.1f} s in {lag.looks} looks)": (
            lag.most_s < LAG_LIMIT_S
        ),
        f"readers saw whole generations ({sum(r.reads for r in readers)} reads,"
        f" slowest {max(r.slowest_s for r in readers):.1f} s)": not any(r.torn for r in readers),
        f"every record sent is there once ({row[0]:,} rows of {traffic.sent:,})": row
        == (traffic.sent, traffic.sent),
    }
    for sentence, holds in checks.items():
        print("ok  " if holds else "NOT ", sentence)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
