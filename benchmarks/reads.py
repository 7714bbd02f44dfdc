"""Reading over HTTP, while it is busy and beyond: `python -m benchmarks.reads`.

An open loop over a mix of read routes, answered by several processes of the API; database, broker, Redis and
the client share the machine with them. Four stretches: the rate alone; with 1,000 connections beside it that
mostly wait; ten times the rate; and the rate again, at once after that. Every answer is compared with a
document made from the tables alone. The check fails where a bound of the promise is not kept.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import numpy as np
import orjson
from rich.table import Table

from benchmarks import fraud, http_load, read_routes
from benchmarks.arrivals import Waits
from benchmarks.harness import (
    END_SECONDS,
    START_SECONDS,
    STATE,
    Check,
    Running,
    Sampler,
    SubjectFailed,
    Usage,
    alone,
    arguments,
    command_line,
    job_environ,
    publish,
    services,
)
from benchmarks.http_load import BROKEN, UNSENT, Answers, get
from benchmarks.latency import shared
from benchmarks.read_routes import TENANT, Asked, Mix
from benchmarks.stretches import Load, Stored, beside, hear, sleep_until
from benchmarks.transactions import Transactions, send
from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.columns import Columns
from infra.identity import subjects
from infra.postgres import Connection, connect
from infra.prepare import prepare_database
from infra.services.credentials import ensure_secret
from infra.services.native import NativeServices
from infra.services.processes import Detached
from infra.services.redis import RedisServer
from infra.settings import SETTINGS, Settings
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, PIPELINE

API = (sys.executable, "-m", "api")
RATE = 1_000
PROCESSES = 2
HISTORY = 20_000
EACH = 300
"""Requests of each route that are told apart."""
SUBJECTS = 10
"""Askers: one may read 500 times a second, and have 100 streams opened at once."""
OVERLOAD = 10
OVERLOAD_SECONDS = 10.0
OVERLOAD_CONNECTIONS = 2_000
GIVE_UP_S = 2.0
"""What the overloading client cannot send for so long it does not send any more: no client waits for ever."""
RECOVERY_SECONDS = 10.0
"""So soon after the overload everything is to be as before."""
IDLE = {"websocket": 500, "events": 250, "http": 250}
RECORD_EVERY_S = 5.0
PATIENCE_SECONDS = 60.0

P95_MS = 200.0
REFUSALS = {429, 503}


@dataclass(frozen=True)
class Found:
    """What a stretch came to. Counts are of measured requests; waits of those that were answered 200."""

    name: str
    rate: int
    waits: Waits
    client: Waits
    """How late the client itself was; part of all waits."""
    requests: int
    statuses: dict[int, int]
    wrong: int
    """Answers 200 that are not what the tables hold."""
    without_again: int
    """Refusals that do not say when to come again."""
    by_route: dict[str, float]
    """p95 in milliseconds."""
    cores: dict[str, float]
    seconds: float
    api_seconds: float
    """Processor time of the API from the first measured second on, until the last answer was there."""
    answered: int
    """How many were answered 200 in that time."""
    idle: dict[str, dict[str, Any]] | None = None
    appended: int = 0

    @property
    def api_us(self) -> float:
        """Processor time of the API for each answer 200, in microseconds."""
        return round(self.api_seconds / max(1, self.answered) * 1e6, 1)

    @property
    def errors(self) -> int:
        """All that was not answered 200."""
        return self.requests - self.statuses.get(200, 0)

    def faults(self, is_overload: bool) -> dict[str, int]:
        """Which bounds are not kept, and how far."""
        found = {"wrong": self.wrong}
        if is_overload:
            allowed = {200, UNSENT, *REFUSALS}
            found |= {
                "other_than_shed": sum(n for status, n in self.statuses.items() if status not in allowed),
                "refused_without_when": self.without_again,
                "nothing_shed": int(not any(self.statuses.get(status) for status in REFUSALS)),
                "nothing_served": int(not self.statuses.get(200)),
            }
        else:
            found |= {"errors": self.errors, "p95_beyond": int(self.waits.p95 > P95_MS)}
        for name, kind in (self.idle or {}).items():
            heard = {int(times): count for times, count in kind["heard"].items()}
            deaf = 0 if name == "http" else sum(n for times, n in heard.items() if times != self.appended)
            missing = IDLE[name] - kind["opened"]
            found |= {f"{name}_lost": kind["lost"] + missing, f"{name}_wrong": kind["wrong"] + deaf}
        return found

    def line(self) -> str:
        """The stretch in one line."""
        w = self.waits
        waits = f"p50 {w.p50:.0f} p95 {w.p95:.0f} p99 {w.p99:.0f} max {w.max:.0f} ms"
        cores = " ".join(f"{name} {cores:.2f}" for name, cores in self.cores.items())
        return (
            f"{self.name}: {waits}; {self.statuses}; api {self.api_us:.0f} us each; cores: {cores};"
            f" client p99 {self.client.p99:.0f} ms"
        )


@dataclass
class Reads:
    """The API over its filled database."""

    settings: Settings
    connection: Connection
    apis: Mapping[str, Running]
    requests: Mix
    credentials: Sequence[dict[str, str]]
    encode: Any
    profile: bool = False
    _appended: int = 0

    def stretch(
        self,
        name: str,
        rate: int,
        warm_s: float,
        seconds: float,
        *,
        is_overload: bool = False,
        idle: bool = False,
    ) -> Found:
        """Ask at this rate, and compare every answer. Raises `SubjectFailed`."""
        warm, count = int(rate * warm_s), int(rate * (warm_s + seconds))
        drawn = self.requests.draw(count)
        folder = STATE / "reads"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        url, credentials = self.settings.api_url, self.credentials
        http_load.write(
            folder / "requests.arrow",
            (
                (str(n), get(url, asked.path, credentials[n % len(credentials)]))
                for n, (_, asked) in enumerate(drawn)
            ),
        )
        told: dict[str, Any] = {
            "url": url,
            "folder": str(folder),
            "rate": rate,
            "size": 1,
            "patience_s": PATIENCE_SECONDS,
        }
        if is_overload:
            told |= {"connections": OVERLOAD_CONNECTIONS, "give_up_ns": int(GIVE_UP_S * 1e9)}
        with ExitStack() as stack:
            waiting = stack.enter_context(self._idle(folder)) if idle else None
            client = stack.enter_context(beside(self.settings, ["benchmarks.http_load"], told))
            begin_ns = int(hear(client, "begin"))
            usages = {n: Usage(pid) for n, pid in {**self._pids(), "client": client.pid}.items()}
            sleep_until(begin_ns + int(warm_s * 1e9))
            before = {n: usage.look() for n, usage in usages.items()}
            sampler = Sampler(f"reads-{name}", seconds) if self.profile else None
            if sampler is not None:
                sampler.start(next(iter(self.apis.values())).pid)
            appended = self._beside_it(begin_ns + int((warm_s + seconds) * 1e9), idle)
            cores = {n: round((u.look() - before[n]) / seconds, 3) for n, u in usages.items()}
            if client.wait(PATIENCE_SECONDS + END_SECONDS):
                raise SubjectFailed(f"the client ended with code {client.returncode}; its words are above")
            api_s = sum(usages[name].look() - before[name] for name in self.apis)
            if sampler is not None:
                sampler.show()
            time.sleep(1.0 if idle else 0.0)  # until the last record was heard
        for running in self.apis.values():
            running.require()
        answers = Answers.load(folder)
        kinds = None if waiting is None else json.loads(waiting.read_text())
        return self._reckon(
            name, rate, drawn, answers, warm, begin_ns, cores, seconds, api_s, kinds, appended
        )

    def _beside_it(self, until_ns: int, idle: bool) -> int:
        """Wait until then; meanwhile append a record now and again for those who listen. Returns how many."""
        appended = 0
        while idle and time.monotonic_ns() + (RECORD_EVERY_S + 2.0) * 1e9 < until_ns:
            time.sleep(RECORD_EVERY_S)
            number = HISTORY + self._appended
            (value,) = self.encode(number, number + 1)
            send(self.settings, CARD_TRANSACTIONS, [("card", value)], **{"linger.ms": 0})
            appended += 1
            self._appended += 1
        sleep_until(until_ns)
        return appended

    @contextmanager
    def _idle(self, folder: Path) -> Iterator[Path]:
        """1,000 connections that mostly wait; what they have seen is in the file afterwards."""
        out = folder / "idle.json"
        told = {
            "url": self.settings.api_url,
            "topic": CARD_TRANSACTIONS.name,
            "path": self.requests.routes["a decision"][0].path,
            "credentials": self.credentials,
            "wanted": IDLE,
            "out": str(out),
        }
        with beside(self.settings, ["benchmarks.idle_connections"], told) as process:
            hear(process, "ready")
            yield out

    def _pids(self) -> dict[str, int]:
        redis = Detached(self.settings.home_path / "run" / "redis.pid").pid()
        pids = {name: running.pid for name, running in self.apis.items()} | shared(self.settings)
        return pids | ({"redis": redis} if redis is not None else {})

    def _reckon(
        self,
        name: str,
        rate: int,
        drawn: Sequence[tuple[str, Asked]],
        answers: Answers,
        warm: int,
        begin_ns: int,
        cores: dict[str, float],
        seconds: float,
        api_s: float,
        idle: dict[str, dict[str, Any]] | None,
        appended: int,
    ) -> Found:
        due = http_load.due_ns(len(drawn), rate, 1) + begin_ns
        waits = answers.at_ns - due
        status = answers.status[warm:]
        measured = np.arange(len(drawn)) >= warm
        served = measured & (answers.status == 200)
        if not served.any():
            raise SubjectFailed(f"{name}: nothing was answered: {dict(Counter(status.tolist()))}")
        routes = np.array([route for route, _ in drawn])
        wrong = 0
        for n in np.flatnonzero(answers.status == 200):
            if not drawn[n][1].is_answered_by(orjson.loads(answers.bodies[n])):
                wrong += 1
                if wrong == 1:
                    print(f"  wrong: {drawn[n][1]} was answered {answers.bodies[n].decode()[:2000]}")
        refused = np.isin(answers.status, list(REFUSALS))
        return Found(
            name=name,
            rate=rate,
            waits=Waits.of(waits[served]),
            client=Waits.of(answers.late_ns[measured]),
            requests=int(measured.sum()),
            statuses=dict(sorted(Counter(status.tolist()).items())),
            wrong=wrong,
            without_again=int((refused & (answers.again == 0)).sum()),
            by_route={
                route: Waits.of(waits[served & (routes == route)]).p95
                for route in self.requests.routes
                if (served & (routes == route)).any()
            },
            cores=cores,
            seconds=seconds,
            api_seconds=round(api_s, 3),
            answered=int(np.count_nonzero((answers.status == 200) & (answers.at_ns >= due[warm]))),
            idle=idle,
            appended=appended,
        )


@contextmanager
def reading(settings: Settings, processes: int, profile: bool) -> Iterator[Reads]:
    """Rows, askers, and the API's processes, ready."""
    prepare_database(settings)
    codec, data = Codec(settings.schema_registry_url), Transactions(HISTORY + 1_000)
    columns = Columns(codec, CARD_TRANSACTIONS)
    shares = {SETTINGS["api_processes"].variable: str(processes)}
    with ExitStack() as stack:
        connection = stack.enter_context(connect(settings.database_url, "benchmark"))
        ensure_topics(settings.kafka, (TopicSpec.of(t) for t in PIPELINE.topics))
        fraud.prepare(settings, connection, codec)

        def encode(start: int, end: int) -> list[bytes]:
            return columns.encode(fraud.card_transactions(data, start, end))

        stored = Stored(connection, PIPELINE.sink_name)
        load = Load(settings, CARD_TRANSACTIONS, CARD_DECISIONS, data, encode, stored)
        load.preload(HISTORY)
        # The ledger's rows are the pipeline's own. It rests while they are read.
        environ = job_environ(settings, {})
        with (
            Running("reads-worker", fraud.WORKER, environ) as w,
            Running("reads-sink", fraud.SINK, environ) as k,
        ):
            load.settle({"processor": w, "sink": k})
        read_routes.fill(connection)
        passwords = {}
        for n in range(SUBJECTS):
            name = f"reader-{n}"
            passwords[name] = ensure_secret(settings, f"bench-{name}")
            grants = ["viewer:*", "operator"]
            subjects.create(connection, name, "program", TENANT, passwords[name], grants)
        ports = Settings({**settings.environ, **shares}).http_ports("api")
        apis = {}
        for n, port in enumerate(ports):
            own = environ | shares | {SETTINGS["metrics_port"].variable: str(port)}
            apis[f"api {n}"] = stack.enter_context(Running(f"reads-api-{n}", API, own))
        _await_ready(apis, ports)
        credentials = [_token(settings, name, password) for name, password in passwords.items()]
        requests = read_routes.mix(connection, EACH)
        yield Reads(settings, connection, apis, requests, credentials, encode, profile)


def _token(settings: Settings, name: str, password: str) -> dict[str, str]:
    form = {"grant_type": "client_credentials", "client_id": name, "client_secret": password}
    answer = httpx.post(f"{settings.api_url}/v1/oauth/token", data=form, timeout=30, trust_env=False)
    answer.raise_for_status()
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def _await_ready(apis: Mapping[str, Running], ports: Sequence[int]) -> None:
    until = time.monotonic() + START_SECONDS
    for port in ports:
        while True:
            for running in apis.values():
                running.require()
            with (
                suppress(OSError, HTTPException),
                urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5),
            ):
                break
            if time.monotonic() > until:
                raise SubjectFailed(f"port {port} was not ready within {START_SECONDS:.0f} s")
            time.sleep(0.2)


def main() -> int:
    parser = arguments(__doc__, records=HISTORY)
    parser.add_argument("--rate", type=int, default=RATE, help="requests a second")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="of the API")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before the measured ones")
    parser.set_defaults(seconds=60.0)
    chosen = parser.parse_args()
    wanted = chosen.only.split(",") if chosen.only else ["alone", "beside", "overload"]
    found: list[tuple[Found, bool]] = []

    def keep(stretch: Found, is_overload: bool = False) -> None:
        print(f"  {stretch.line()}")
        found.append((stretch, is_overload))

    with alone(), services(chosen.port_base) as settings:
        redis = NativeServices(settings, [RedisServer(settings)])
        redis.up(progress=print)
        try:
            with reading(settings, chosen.processes, chosen.profile) as reads:
                if "alone" in wanted:
                    keep(reads.stretch("alone", chosen.rate, chosen.warm_up, chosen.seconds))
                if "beside" in wanted:
                    keep(reads.stretch("beside", chosen.rate, chosen.warm_up, chosen.seconds, idle=True))
                if "overload" in wanted:
                    much = chosen.rate * OVERLOAD
                    keep(reads.stretch("overload", much, 0.0, OVERLOAD_SECONDS, is_overload=True), True)
                    keep(reads.stretch("recovered", chosen.rate, RECOVERY_SECONDS, chosen.seconds / 2))
        finally:
            redis.down(purge=True, progress=print)
    return report(found, chosen.processes)


def report(found: Sequence[tuple[Found, bool]], processes: int) -> int:
    """Print the table and write the file; the exit code, 1 where a bound was not kept."""
    table = Table(title=f"reads by {processes} processes: ms from when they were due, us of the API each")
    for heading in ("stretch", "rate", "p50", "p95", "p99", "max", "200", "429", "503", "unsent", "api us"):
        table.add_column(heading, justify="right")
    for heading in ("cores", "kept"):
        table.add_column(heading, justify="right")
    entries = []
    for stretch, is_overload in found:
        faults = stretch.faults(is_overload)
        kept = not any(faults.values())
        check = Check(kept, faults, "", "")
        w, statuses = stretch.waits, stretch.statuses
        table.add_row(
            stretch.name,
            f"{stretch.rate:,}",
            *(f"{wait:,.0f}" for wait in (w.p50, w.p95, w.p99, w.max)),
            *(f"{statuses.get(status, 0):,}" for status in (200, 429, 503, UNSENT)),
            f"{stretch.api_us:,.0f}",
            f"{sum(v for k, v in stretch.cores.items() if k != 'client'):.2f}",
            "yes" if kept else "NO",
        )
        if not kept:
            print(f"{stretch.name}: { ({name: n for name, n in faults.items() if n}) }")
        entries.append(
            {
                "name": stretch.name,
                "value": w.p95,
                "unit": "ms, p95 to the answer",
                "checked": kept,
                "check": {"command": command_line(), "slices": [asdict(check)]},
                "api_us": stretch.api_us,
                "broken": statuses.get(BROKEN, 0),
                **{k: v for k, v in asdict(stretch).items() if k != "name"},
            }
        )
    return publish("reads", table, entries, processes=processes)


if __name__ == "__main__":
    sys.exit(main())
