"""From a request that was due to its decision over HTTP: `python -m benchmarks.decision`.

An open loop: a client of its own sends one transaction a request, each with an `Idempotency-Key`, at each of
some rates; gateway, broker, processor (50 rules, the trained model, full windows), sink, Redis and database
share the machine with it. `--batch` sends batches of 1,000 instead, with a verdict for each transaction;
`--search` looks for the highest rate at which p99 is 200 ms at most. Afterwards every decision and every row
is compared with an independent fold, and every answer with its row, bit by bit.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from rich.table import Table

from benchmarks import fraud, http_load
from benchmarks.arrivals import Waits, holds
from benchmarks.harness import (
    END_SECONDS,
    STATE,
    Check,
    Running,
    SubjectFailed,
    Usage,
    alone,
    arguments,
    command_line,
    job_environ,
    publish,
    services,
)
from benchmarks.http_load import Answers, post
from benchmarks.latency import COLLECTORS, Times, highest, is_good, search, shared
from benchmarks.open_loop import Schedule
from benchmarks.stretches import Load, Stored, Stretch, beside, hear, sleep_until
from benchmarks.transactions import Transactions
from infra.codec import Codec
from infra.columns import Columns, events_of
from infra.postgres import Connection, connect
from infra.prepare import prepare_database
from infra.services.native import NativeServices
from infra.services.redis import RedisServer
from infra.settings import SETTINGS, Settings
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, PIPELINE

RATES = (100, 250, 500, 750, 1_000)
BATCH_RATES = (2_000, 5_000, 7_500, 10_000)
BATCH = 1_000
LANES = 8
"""So many batches are under way at once at the most, each of cards of its own."""
PATIENCE_SECONDS = 60.0
GATEWAY = (sys.executable, "-m", "connectors", "gateway")
NO_LIMIT = "write=1000000/s"
"""One client stands for many here, so what one may send does not count."""
SENT = {"event_id", "occurred_at", "card_id", "amount_minor", "currency", "customer_id", "merchant_id"}
SENT |= {"terminal_id", "country", "home_country", "mcc", "channel"}


@dataclass(frozen=True)
class Answered(Stretch):
    """What was measured at one rate of transactions, and how many answers had which status."""

    statuses: dict[int, int]
    undecided: int
    """Transactions whose decision did not come in time, of all of the stretch."""

    @property
    def gateway_us(self) -> float:
        """Processor time of the gateway for each transaction, in microseconds."""
        return round(self.cores["gateway"] / self.rate * 1e6, 1)

    def line(self) -> str:
        more = f"; undecided {self.undecided}" if self.undecided else ""
        return f"{super().line()}; gateway {self.gateway_us:.0f} us each; {self.statuses}{more}"


class Doors:
    """The pipeline behind its gateway, caught up with its history; transactions go in over HTTP."""

    def __init__(self, settings: Settings, load: Load, roles: dict[str, Running], size: int) -> None:
        """`size`: transactions a request; 1 for the single route."""
        self._settings, self.load, self._roles, self._size = settings, load, roles, size
        self.decisions: dict[str, tuple[str, float]] = {}
        """What was answered, by event id."""

    def measure(self, schedule: Schedule) -> Answered:
        """Send by the schedule of transactions, wait for all answers, and reckon. Raises `SubjectFailed`."""
        folder = STATE / "http"
        shutil.rmtree(folder, ignore_errors=True)  # nothing of the last stretch may be read as this one's
        folder.mkdir(parents=True)
        requests, firsts = self._requests(schedule)
        http_load.write(folder / "requests.arrow", requests)
        told = {
            "url": self._settings.gateway_url,
            "folder": str(folder),
            "rate": schedule.rate,
            "size": self._size,
            "patience_s": PATIENCE_SECONDS,
        }
        with ExitStack() as stack:
            client = stack.enter_context(beside(self._settings, ["benchmarks.http_load"], told))
            begin_ns = int(hear(client, "begin"))
            pids = {name: running.pid for name, running in self._roles.items()}
            usages = {
                n: Usage(pid) for n, pid in {**pids, **shared(self._settings), "client": client.pid}.items()
            }
            sleep_until(begin_ns + int(schedule.warm_seconds * 1e9))
            before = {name: usage.look() for name, usage in usages.items()}
            sleep_until(begin_ns + int((schedule.warm_seconds + schedule.seconds) * 1e9))
            cores = {n: round((u.look() - before[n]) / schedule.seconds, 3) for n, u in usages.items()}
            if client.wait(PATIENCE_SECONDS + END_SECONDS):
                raise SubjectFailed(f"the client ended with code {client.returncode}; its words are above")
        answers = Answers.load(folder)
        statuses = Counter(answers.status.tolist())
        if refused := {status: n for status, n in statuses.items() if status not in (200, 202)}:
            raise SubjectFailed(f"at {schedule.rate:,}/s requests were refused, by status: {refused}")
        self.load.sent = schedule.end
        self.load.settle(self._roles)
        return self._reckon(schedule, answers, begin_ns, firsts, cores)

    def _requests(self, schedule: Schedule) -> tuple[list[tuple[str, bytes]], list[int]]:
        """Requests with their lanes, and how many transactions were due before each."""
        batch = fraud.card_transactions(self.load.data, schedule.first, schedule.end)
        bodies = [{k: v for k, v in event.items() if k in SENT} for event in events_of(batch)]
        for body in bodies:
            body["occurred_at"] = datetime.fromtimestamp(body["occurred_at"] / 1000, UTC).isoformat()
        url, headers = self._settings.gateway_url, self._settings.client_headers
        if self._size == 1:
            made = [
                (
                    body["card_id"],
                    post(
                        url,
                        "/v1/transactions",
                        {**headers, "Idempotency-Key": body["event_id"]},
                        orjson.dumps(body),
                    ),
                )
                for body in bodies
            ]
            return made, list(range(len(made)))
        # A card's transactions stay in one lane, where a batch waits for the one before.
        lanes: list[list[dict[str, Any]]] = [[] for _ in range(LANES)]
        filled: list[tuple[str, bytes]] = []
        firsts: list[int] = []
        for n, body in enumerate([*bodies, None]):
            lane = None if body is None else int(body["card_id"][-6:]) % LANES
            if body is not None and lane is not None:
                lanes[lane].append(body)
            full = range(LANES) if lane is None else [lane]
            for k in full:
                if len(lanes[k]) == self._size or (lane is None and lanes[k]):
                    filled.append(
                        (str(k), post(url, "/v1/transactions/batch", headers, orjson.dumps(lanes[k])))
                    )
                    firsts.append(n - 1)
                    lanes[k] = []
        return filled, firsts

    def _reckon(
        self,
        schedule: Schedule,
        answers: Answers,
        begin_ns: int,
        firsts: Sequence[int],
        cores: dict[str, float],
    ) -> Answered:
        due = http_load.due_ns(len(firsts), schedule.rate, self._size) + begin_ns
        measured = np.array(firsts) >= schedule.warm
        undecided = 0
        for body in answers.bodies:
            told = orjson.loads(body or b"{}")
            items = [item["decided"] for item in told["items"]] if "items" in told else [told]
            for one in items:
                if one is None or "decision" not in one:
                    undecided += 1
                else:
                    self.decisions[one["event_id"]] = one["decision"], one["risk"]
        at_ns = answers.at_ns
        return Answered(
            rate=schedule.rate,
            decision=Waits.of((at_ns - due)[measured]),
            row=None,
            sender=Waits.of(answers.late_ns[measured]),
            is_held=holds(due[measured], at_ns[measured], schedule.rate // self._size),
            cores=cores,
            seconds=schedule.seconds,
            statuses=dict(Counter(answers.status.tolist())),
            undecided=undecided,
        )

    def compared(self, connection: Connection) -> int:
        """How many answers are not what the ledger says."""
        rows = connection.execute("SELECT event_id, decision, risk FROM card_ledger")
        stored = {event_id: (decision, risk) for event_id, decision, risk in rows}
        return sum(stored.get(event_id) != told for event_id, told in self.decisions.items())


@contextmanager
def running(settings: Settings, records: int, history: int, size: int) -> Iterator[tuple[Doors, Any]]:
    """The whole platform of the fraud pipeline, caught up; yields its doors and what checks everything."""
    prepare_database(settings)
    codec, data = Codec(settings.schema_registry_url), Transactions(history + records)
    columns = Columns(codec, CARD_TRANSACTIONS)
    environ = job_environ(settings, {}) | {SETTINGS["limits"].variable: NO_LIMIT}
    with connect(settings.database_url, "benchmark") as connection:
        in_force = fraud.prepare(settings, connection, codec)
        load = Load(
            settings,
            CARD_TRANSACTIONS,
            CARD_DECISIONS,
            data,
            lambda start, end: columns.encode(fraud.card_transactions(data, start, end)),
            Stored(connection, PIPELINE.sink_name),
        )
        load.preload(history)
        with (
            Running("decision-processor", fraud.WORKER, environ) as worker,
            Running("decision-sink", fraud.SINK, environ) as sink,
            Running("decision-gateway", GATEWAY, environ) as gateway,
        ):
            doors = Doors(settings, load, {"processor": worker, "sink": sink, "gateway": gateway}, size)
            load.settle({"processor": worker, "sink": sink, "gateway": gateway})

            def check() -> Check:
                found = fraud.Checker(data.first(load.sent), in_force).check(settings, codec, connection)
                counts = found.counts | {
                    "answered": len(doors.decisions),
                    "answers_unlike_rows": doors.compared(connection),
                }
                passed = found.passed and bool(doors.decisions) and not counts["answers_unlike_rows"]
                return Check(passed, counts, found.hash, found.expected_hash)

            yield doors, check


def main() -> int:
    parser = arguments(__doc__, records=fraud.HISTORY)
    parser.add_argument("--batch", action="store_true", help="batches of 1,000 instead of one a request")
    parser.add_argument("--rates", default="", help="transactions a second")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before the measured ones")
    parser.add_argument("--search", action="store_true", help="also the highest rate with p99 of 200 ms")
    parser.add_argument("--collector", choices=COLLECTORS, default="zgc", help="the broker's")
    chosen = parser.parse_args()
    if COLLECTORS[chosen.collector]:
        os.environ[SETTINGS["kafka_jvm"].variable] = COLLECTORS[chosen.collector]
    size = BATCH if chosen.batch else 1
    usual = BATCH_RATES if chosen.batch else RATES
    rates = [int(rate) for rate in chosen.rates.split(",")] if chosen.rates else list(usual)
    times = Times(chosen.warm_up, chosen.seconds)
    more = int(6 * rates[-1] * 1.2**4 * (chosen.warm_up + chosen.seconds)) if chosen.search else 0
    stretches: list[Answered] = []
    searched: list[Stretch] = []
    with alone(), services(chosen.port_base) as settings:
        redis = NativeServices(settings, [RedisServer(settings)])
        redis.up(progress=print)
        try:
            with running(settings, times.records(rates) + more, chosen.records, size) as (doors, check):

                def at(rate: int) -> Answered:
                    stretch = doors.measure(times.at(doors.load, rate))
                    print(f"  {stretch.line()}")
                    return stretch

                for rate in rates:
                    stretches.append(at(rate))
                good = [stretch for stretch in stretches if is_good(stretch)]
                if chosen.search and good:
                    print("  search")
                    searched = [good[-1], *search(at, good[-1].rate)]
                checked = check()
        finally:
            redis.down(purge=True, progress=print)
    print(f"{'checked' if checked.passed else 'THE CHECK FAILED'}: {checked.counts}")
    return report(stretches, checked, size, highest(searched) if chosen.search else {})


def report(stretches: Sequence[Answered], check: Check, size: int, more: dict[str, Any]) -> int:
    """Print the table and write the file; the exit code, 1 where the check failed."""
    table = Table(
        title=f"decision over HTTP, {size} a request: ms from when it was due, us of the gateway each"
    )
    for heading in (
        "rate",
        "p50",
        "p95",
        "p99",
        "max",
        "gateway us",
        "cores",
        "client p99",
        "undecided",
        "held",
    ):
        table.add_column(heading, justify="right")
    entries = []
    for s in stretches:
        d = s.decision
        cores = sum(v for k, v in s.cores.items() if k != "client")
        table.add_row(
            f"{s.rate:,}",
            *(f"{wait:,.0f}" for wait in (d.p50, d.p95, d.p99, d.max)),
            f"{s.gateway_us:,.0f}",
            f"{cores:.2f}",
            f"{s.sender.p99:.0f}{' LATE' if s.is_sender_late else ''}",
            str(s.undecided),
            "yes" if s.is_held else "NO",
        )
        entries.append(
            {
                "name": f"{s.rate}/s",
                "value": d.p99,
                "unit": "ms, p99 to the answer",
                "checked": check.passed,
                "check": {"command": command_line(), "slices": [asdict(check)]},
                "gateway_us": s.gateway_us,
                **asdict(s),
            }
        )
    return publish("decision-batch" if size > 1 else "decision", table, entries, **more)


if __name__ == "__main__":
    sys.exit(main())
