"""From a card transaction's scheduled time to its decision and to its row: `python -m benchmarks.latency`.

An open loop: a sender of its own sends at 5, 10, 20 and 30 thousand a second, whoever keeps up or not. Ours
is the fraud pipeline as production runs it, worker and sink, with 50 rules, the trained model and full
windows; the limit hands the same bytes on. `--peers` adds the peers of `process`, each at the highest rate of
a ladder that it holds; `--search` looks for the highest rate at which our p99 is 200 ms at most. After each
round every decision and every row is compared with an independent fold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa

from benchmarks import fraud
from benchmarks.harness import (
    LIMIT,
    OURS,
    Check,
    Running,
    Sampler,
    SubjectFailed,
    alone,
    arguments,
    job_environ,
    python_of,
    services,
)
from benchmarks.latency_report import Found, Measured, report
from benchmarks.open_loop import Schedule
from benchmarks.process import PROGRAMS, scoring_job
from benchmarks.stretches import Load, Stored, Stretch
from benchmarks.transactions import Declared, Transactions, records_of
from infra.codec import Codec
from infra.columns import Columns
from infra.postgres import connect
from infra.services.processes import Detached
from infra.settings import SETTINGS, Settings
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, PIPELINE

RATES = (5_000, 10_000, 20_000, 30_000)
LADDER = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000)
PROBE_WARM_SECONDS, PROBE_SECONDS = 2.0, 8.0
"""How long a peer has to hold a rung of the ladder before the next one."""
PEERS = [name for name in PROGRAMS if name not in (OURS, LIMIT)]
COMMIT_MS = 20
"""Between two of Pathway's commits, which its answers wait for: for throughput it is 500."""
LINGER_MS = 1
"""Of the limit's producer."""
PEER_HISTORY = 20_000
"""Transactions before a peer's first stretch, to see it at work: a day's would take some of them a minute."""

SEARCH_P99_MS = 200.0
SEARCH_STEP = 1.2
SEARCH_TIMES = (5.0, 30.0)
"""Warm-up and length of the search's stretches at the most."""
SEARCH_UP, SEARCH_BETWEEN = 4, 2
"""Steps upwards at the most, and steps between the last rate that is good and the first that is not."""

COLLECTORS = {
    "zgc": "-Xms512m -Xmx512m -XX:+UseZGC -XX:+AlwaysPreTouch",
    "g1": "-Xms512m -Xmx512m -XX:+UseG1GC -XX:MaxGCPauseMillis=5 -XX:+AlwaysPreTouch",
    "serial": "-Xms512m -Xmx512m -Xmn64m -XX:+UseSerialGC -XX:+AlwaysPreTouch",
    "default": "",
}
"""JVM options of the broker. ZGC stops it for less than a millisecond at a time, but collects beside it; G1
and serial stop it for as long as what lives in the young generation takes. `default`: as `millrace up`."""


@dataclass(frozen=True)
class Times:
    """How long a stretch takes."""

    warm_seconds: float
    seconds: float

    def at(self, load: Load, rate: int) -> Schedule:
        return Schedule(load.sent, rate, self.warm_seconds, self.seconds)

    def records(self, rates: Sequence[float]) -> int:
        """How many are sent at these rates."""
        return int(sum(rates) * (self.warm_seconds + self.seconds)) + len(rates)


@dataclass(frozen=True)
class AtWork:
    """A subject whose processes run: what measures it at a rate, and what checks all that it was sent."""

    load: Load
    measure: Callable[[Schedule], Stretch]
    check: Callable[[], Check]


@contextmanager
def ours(settings: Settings, n: int, records: int, history: int, profile: float) -> Iterator[AtWork]:
    """The fraud pipeline, caught up with its history; `profile`: seconds to sample the worker for, or 0."""
    codec, data = Codec(settings.schema_registry_url), Transactions(history + records)
    columns = Columns(codec, CARD_TRANSACTIONS)
    environ = job_environ(settings, {})
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
            Running(f"latency-processor-{n}", fraud.WORKER, environ) as worker,
            Running(f"latency-sink-{n}", fraud.SINK, environ) as sink,
        ):
            roles = {"processor": worker, "sink": sink}
            load.settle(roles)

            def measure(schedule: Schedule) -> Stretch:
                sampler = Sampler(f"latency-{schedule.rate}", profile) if profile else None
                begin = partial(sampler.start, worker.pid) if sampler else None
                stretch = load.run(schedule, roles, shared(settings), begin)
                if sampler:
                    sampler.show()
                return stretch

            def check() -> Check:
                sent = data.first(load.sent)
                return fraud.Checker(sent, in_force).check(settings, codec, connection)

            yield AtWork(load, measure, check)


@contextmanager
def theirs(settings: Settings, name: str, n: int, records: int) -> Iterator[AtWork]:
    """A peer or the limit, caught up with its history."""
    peer, program = _program(name)
    tag = f"{name}-{n}"
    codec, data, declared = (
        Codec(settings.schema_registry_url),
        Transactions(PEER_HISTORY + records),
        Declared(tag),
    )
    declared.create(settings, codec)
    columns = {topic.name: Columns(codec, topic) for topic in (declared.transactions, declared.scores)}
    told = scoring_job(settings, codec, tag, declared, commit_ms=COMMIT_MS, linger_ms=LINGER_MS)

    def encode(start: int, end: int) -> list[bytes]:
        return columns[declared.transactions.name].encode(
            _batch(data.columns(start, end), declared.transactions)
        )

    load = Load(settings, declared.transactions, declared.scores, data, encode)
    load.preload(PEER_HISTORY)
    with Running(
        f"latency-{tag}", [python_of(peer), *program.split()], job_environ(settings, told)
    ) as running:
        load.settle({name: running})

        def check() -> Check:
            sent = data.first(load.sent)
            if name == LIMIT:
                expected = encode(0, load.sent)
            else:
                expected = columns[declared.scores.name].encode(
                    _batch(sent.scored_columns(0, load.sent), declared.scores)
                )
            found = sent.check(records_of(settings, declared.scores), sent.hashes(expected))
            is_whole = found.counts["distinct"] == load.sent
            return replace(
                found, passed=found.passed and is_whole, counts={**found.counts, "sent": load.sent}
            )

        yield AtWork(load, lambda schedule: load.run(schedule, {name: running}, shared(settings)), check)


def _program(name: str) -> tuple[str, str]:
    """Whose environment a peer or the limit runs in, and its program."""
    peer, program = PROGRAMS[name]
    assert peer is not None
    return peer, program


def at_rate(at_work: AtWork, times: Times, rate: int) -> Stretch:
    """A stretch at the rate, with a line of progress."""
    stretch = at_work.measure(times.at(at_work.load, rate))
    print(f"  {stretch.line()}")
    return stretch


def climb(at_work: AtWork, times: Times) -> list[Stretch]:
    """Up the ladder while it is held, then down to the first rung that is held for the whole time as well.

    Raises `SubjectFailed` where there is none.
    """
    held: list[int] = []
    for rate in LADDER:
        if not at_rate(at_work, Times(PROBE_WARM_SECONDS, PROBE_SECONDS), rate).is_held:
            break
        held.append(rate)
    for rate in reversed(held):
        stretch = at_rate(at_work, times, rate)
        if stretch.is_held:
            return [stretch]
    raise SubjectFailed(f"it holds not even {LADDER[0]:,}/s")


def is_good(stretch: Stretch) -> bool:
    """Whether the rate is held and its p99 is as wanted."""
    return stretch.is_held and stretch.decision.p99 <= SEARCH_P99_MS


def search(measure: Callable[[int], Stretch], good: int) -> list[Stretch]:
    """Look upwards from a rate that is good for the highest one; bounded, see `SEARCH_UP`."""
    found: list[Stretch] = []

    def holds(rate: int) -> bool:
        found.append(measure(rate))
        return is_good(found[-1])

    bad = 0
    for _ in range(SEARCH_UP):
        rate = int(good * SEARCH_STEP)
        if not holds(rate):
            bad = rate
            break
        good = rate
    for _ in range(SEARCH_BETWEEN if bad else 0):
        rate = (good + bad) // 2
        if holds(rate):
            good = rate
        else:
            bad = rate
    return found


@dataclass
class Plan:
    """What is measured in which round, and what was found."""

    wanted: Sequence[str]
    rates: Sequence[int]
    times: Times
    slices: int
    history: int
    is_full: bool
    is_search: bool
    is_profile: bool
    found: Found = field(default_factory=dict)
    searched: list[Stretch] = field(default_factory=list)

    def round(self, settings: Settings, n: int) -> None:
        """Peers climb in the first round; from then on we and the limit have their rates as well as ours."""
        if n == 0:
            for name in PEERS:
                if name in self.wanted:
                    self._peer(settings, name)
        held = {rate for name, rate in self.found if name in PEERS and self.found[name, rate].stretches}
        rates = sorted({*self.rates, *held})
        if LIMIT in self.wanted and (n == 0 or self.is_full):
            with (
                self._turn(LIMIT, rates),
                theirs(settings, LIMIT, n, self.times.records(rates)) as limit,
            ):
                self._keep(LIMIT, self._each(limit, rates), limit.check())
        if OURS in self.wanted:
            self._ours(settings, n, rates)

    def _peer(self, settings: Settings, name: str) -> None:
        records = Times(PROBE_WARM_SECONDS, PROBE_SECONDS).records(LADDER) + self.times.records(LADDER)
        with self._turn(name, LADDER[:1]), theirs(settings, name, 0, records) as peer:
            self._keep(name, climb(peer, self.times), peer.check())

    def _ours(self, settings: Settings, n: int, rates: Sequence[int]) -> None:
        is_search = self.is_search and n == self.slices - 1
        up = [rates[-1] * SEARCH_STEP ** (k + 1) for k in range(SEARCH_UP)]
        looks = [*up, *up[-1:] * SEARCH_BETWEEN]
        brief = Times(*map(min, (self.times.warm_seconds, self.times.seconds), SEARCH_TIMES))
        records = self.times.records(rates) + (brief.records(looks) if is_search else 0)
        seconds = self.times.seconds if self.is_profile else 0.0
        with self._turn(OURS, rates), ours(settings, n, records, self.history, seconds) as pipeline:
            stretches = self._each(pipeline, rates)
            good = [stretch for stretch in stretches if is_good(stretch)]
            if is_search and good:
                print("  search")
                found = search(lambda rate: at_rate(pipeline, brief, rate), good[-1].rate)
                self.searched = [good[-1], *found]
            self._keep(OURS, stretches, pipeline.check())

    def _each(self, at_work: AtWork, rates: Sequence[int]) -> list[Stretch]:
        """The rates, rising: what an overload leaves cannot meet a rate that comes before it."""
        return [at_rate(at_work, self.times, rate) for rate in rates]

    @contextmanager
    def _turn(self, name: str, rates: Sequence[int]) -> Iterator[None]:
        """A failure is the subject's result in this round, and the next one has its turn."""
        print(name)
        try:
            yield
        except SubjectFailed as failure:
            print(f"  {failure}")
            for rate in rates:
                self.found.setdefault((name, rate), Measured()).failures.append(str(failure))

    def _keep(self, name: str, stretches: Sequence[Stretch], check: Check) -> None:
        print(f"  {'checked' if check.passed else 'THE CHECK FAILED'}: {check.counts}")
        for stretch in stretches:
            measured = self.found.setdefault((name, stretch.rate), Measured())
            measured.stretches.append(stretch)
            measured.checks.append(check)


def highest(searched: Sequence[Stretch]) -> dict[str, Any]:
    """What the search came to; None where no rate was good."""
    good = [stretch.rate for stretch in searched if is_good(stretch)]
    print(f"highest rate tried with p99 <= {SEARCH_P99_MS:.0f} ms: {max(good, default=0):,}/s")
    return {"highest_rate_p99_200_ms": max(good, default=None), "search": [asdict(s) for s in searched]}


def main() -> int:
    parser = arguments(__doc__, records=fraud.HISTORY)
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="transactions a second")
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds before the measured ones")
    parser.add_argument("--peers", action="store_true", help="also the peers, at the highest rate each holds")
    parser.add_argument(
        "--full", action="store_true", help="the limit in every round, not in the first alone"
    )
    parser.add_argument("--search", action="store_true", help="also the highest rate with p99 of 200 ms")
    parser.add_argument("--collector", choices=COLLECTORS, default="zgc", help="the broker's")
    chosen = parser.parse_args()
    if COLLECTORS[chosen.collector]:
        os.environ[SETTINGS["kafka_jvm"].variable] = COLLECTORS[chosen.collector]
    possible = [OURS, LIMIT, *(PEERS if chosen.peers else ())]
    plan = Plan(
        wanted=[name for name in possible if not chosen.only or name in chosen.only.split(",")],
        rates=[int(rate) for rate in chosen.rates.split(",")],
        times=Times(chosen.warm_up, chosen.seconds),
        slices=chosen.slices,
        history=chosen.records,
        is_full=chosen.full,
        is_search=chosen.search,
        is_profile=chosen.profile,
    )
    for peer in sorted({_program(name)[0] for name in plan.wanted if name != OURS}):
        python_of(peer)  # installed before anything is measured
    with alone():
        for n in range(plan.slices):
            print(f"round {n + 1} of {plan.slices}")
            # New services each time: what a round leaves in log and tables must not slow the next one.
            with services(chosen.port_base) as settings:
                plan.round(settings, n)
    more = {"collector": chosen.collector, "broker_jvm": COLLECTORS[chosen.collector]}
    return report(plan.found, highest(plan.searched) | more if plan.is_search else more)


def _batch(columns: Mapping[str, pa.Array], topic: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: columns[name] for name in topic.fields})


def shared(settings: Settings) -> dict[str, int]:
    """Broker and database, whose share of the processors counts on a small machine."""
    run = settings.home_path / "run"
    pids = {"broker": Detached(run / "kafka.pid").pid(), "database": Detached(run / "postgres.pid").pid()}
    return {name: pid for name, pid in pids.items() if pid is not None}


if __name__ == "__main__":
    sys.exit(main())
