"""Is memory flat? The fraud pipeline under even input, while event time runs thousands of times the clock.

A quarter of the time goes by until more event time has passed than any card's memory spans; from then on the
resident memory of each process, as medians of short stretches, may vary by a tenth. Afterwards the ledger
must hold every transaction, and `millrace verify` must be clean. `python -m benchmarks.scale --soak 20`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

from benchmarks import rules
from benchmarks.figures import Figure, report
from benchmarks.harness import Check, SubjectFailed
from benchmarks.production import Position, await_until, check_alive, command, log_of, millrace, running
from infra import versions
from infra.broker import producer
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.settings import Settings
from schemas.declare import DAY_MS
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, FRAUD_SCORING, PIPELINE

RATE = 2_000
CARDS = 10_000
WARM_UP = 0.25
"""Of the whole: what lies before is not judged."""
WARM_UP_DAYS = 10
"""Event time that has passed by then: a card's memory spans eight days."""
STRETCHES = 15
ALLOWED = 1.1
LOOK_SECONDS = 1.0
TOLD_SECONDS = 60.0
DRAIN_SECONDS = 120.0


@dataclass(eq=False)
class Feed(threading.Thread):
    """Sends transactions at an even rate of the clock's time, event time running ahead of it."""

    settings: Settings
    seconds: float
    sent: int = 0
    ending: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.step_ms = WARM_UP_DAYS * DAY_MS / (WARM_UP * self.seconds * RATE)
        """Event time from one transaction to the next."""
        self._begin_ms = time.time() * 1000 - self.step_ms * RATE * self.seconds * 1.2

    def run(self) -> None:
        try:
            self._send()
        except Exception as failure:  # told by the main thread
            self.failure = failure

    def _send(self) -> None:
        codec = Codec(self.settings.schema_registry_url)
        sender = producer(self.settings.kafka)
        random = np.random.default_rng(3)
        began = time.monotonic()
        while not self.ending.wait(0.05):
            due = int((time.monotonic() - began) * RATE)
            # Bounded: after a stall of the machine the input goes on evenly, it does not burst.
            due = min(due, self.sent + RATE)
            picked = random.integers(0, CARDS, due - self.sent).tolist()
            for n, card in enumerate(picked, self.sent):
                event = {
                    "event_id": f"soak-{n:012}",
                    "tenant": "default",
                    "occurred_at": int(self._begin_ms + n * self.step_ms),
                    "card_id": f"soak-card-{card:05}",
                    "amount_minor": 100 + n * 37 % 50_000,
                    "currency": "EUR",
                    "customer_id": None,
                    "merchant_id": f"merchant-{n % 2_000:04}",
                    "terminal_id": str(n % 3_000),
                    "country": ("NL", "BE", "DE")[n % 3],
                    "home_country": "NL",
                    "mcc": f"{4_000 + n % 500}",
                    "channel": ("PRESENT", "ONLINE")[n % 2],
                }
                sender.produce(
                    CARD_TRANSACTIONS.name, codec.encode(CARD_TRANSACTIONS, event), str(event["card_id"])
                )
            self.sent = due
            sender.poll(0)
        if left := sender.flush(30):
            raise RuntimeError(f"{left} transactions were not acknowledged")


def run(settings: Settings, minutes: float) -> int:
    """Soak for so many minutes; prints and writes what was found, and returns the exit code."""
    seconds = minutes * 60
    with connect(settings.database_url, "benchmark") as connection:
        _do(settings, [sys.executable, "-m", "infra.prepare"], "prepare")
        versions.publish(connection, "fraud", "rules", rules.fifty())
        feed = Feed(settings, seconds)
        with running(settings, PIPELINE, connection) as processes:
            samples = _sampled(feed, processes, seconds)
            sink = Position(connection, PIPELINE.sink_name, CARD_DECISIONS)
            decided = Position(connection, FRAUD_SCORING.name, CARD_TRANSACTIONS)
            await_until(
                lambda: min(sink(), decided()) >= feed.sent, processes, "was caught up with", DRAIN_SECONDS
            )
            _do(settings, millrace("verify", "fraud", "--settled"), "verify")
        check = _check(connection, feed.sent)
    figures = [_figure(role, taken, seconds, check) for role, taken in samples.items()]
    days = feed.step_ms * feed.sent / DAY_MS
    about = f"most to least memory after {WARM_UP_DAYS} of {days:.0f} days, {minutes:g} min, {RATE:,} tx/s"
    return report("soak", about, figures)


def _sampled(
    feed: Feed, processes: dict[str, subprocess.Popen[bytes]], seconds: float
) -> dict[str, list[tuple[float, int]]]:
    """The resident memory of each process, by the seconds since the start."""
    watched = {role: psutil.Process(process.pid) for role, process in processes.items()}
    samples: dict[str, list[tuple[float, int]]] = {role: [] for role in watched}
    began = told = time.monotonic()
    feed.start()
    try:
        while (now := time.monotonic()) < began + seconds:
            check_alive(processes)
            if feed.failure is not None:
                raise feed.failure
            for role, process in watched.items():
                samples[role].append((now - began, process.memory_info().rss))
            if now > told + TOLD_SECONDS:
                told = now
                sizes = ", ".join(f"{role} {s[-1][1] / 1e6:.0f} MB" for role, s in samples.items())
                print(f"  {(now - began) / 60:.0f} min: {feed.sent:,} sent; {sizes}", flush=True)
            time.sleep(LOOK_SECONDS)
    finally:
        feed.ending.set()
        feed.join(60)
    if feed.failure is not None:
        raise feed.failure
    return samples


def flatness(samples: Sequence[tuple[float, int]], since: float) -> tuple[float, float]:
    """Least and most of the memory (bytes) from `since` on: medians of `STRETCHES` equal stretches of time.

    Raises ValueError where a stretch has no sample.
    """
    judged = [(at, size) for at, size in samples if at >= since]
    if not judged:
        raise ValueError(f"no sample was taken after {since:.0f} s")
    width = (judged[-1][0] - since) / STRETCHES or 1.0
    stretches: list[list[int]] = [[] for _ in range(STRETCHES)]
    for at, size in judged:
        stretches[min(int((at - since) / width), STRETCHES - 1)].append(size)
    if not all(stretches):
        raise ValueError(f"{len(judged)} samples are too few; soak for longer")
    medians = [float(np.median(stretch)) for stretch in stretches]
    return min(medians), max(medians)


def _figure(role: str, samples: Sequence[tuple[float, int]], seconds: float, check: Check) -> Figure:
    least, most = flatness(samples, WARM_UP * seconds)
    flat = Check(check.passed and most <= ALLOWED * least, check.counts, check.hash, check.expected_hash)
    more: dict[str, float | str | None] = {
        "least_mb": least / 1e6,
        "most_mb": most / 1e6,
        "at_start_mb": samples[0][1] / 1e6,
        "at_end_mb": samples[-1][1] / 1e6,
    }
    return Figure(f"millrace: {role}", "most/least", [most / least], [flat], more)


def _check(connection: Connection, sent: int) -> Check:
    row = connection.execute(
        "SELECT count(*), count(DISTINCT event_id), (SELECT count(*) FROM dead_letters),"
        " coalesce(sum(substr(event_id, 6)::bigint), 0) FROM card_ledger"
    ).fetchone()
    assert row is not None
    rows, distinct, dead, numbers = (int(str(value)) for value in row)
    counts = {"sent": sent, "rows": rows, "duplicates": rows - distinct, "dead_letters": dead}
    expected = sent * (sent - 1) // 2
    passed = (rows, distinct, dead, numbers) == (sent, sent, 0, expected)
    return Check(passed, counts, f"{numbers:016x}", f"{expected:016x}")


def _do(settings: Settings, arguments: Sequence[str], name: str) -> None:
    with log_of(f"soak-{name}").open("wb") as output:
        code = command(settings, arguments, output, output).wait()
    if code:
        raise SubjectFailed(f"{name} ended with code {code}; see {log_of(f'soak-{name}')}")
