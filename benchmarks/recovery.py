"""A kill -9 in the middle of even input: `python -m benchmarks.recovery`.

Each subject takes a backlog in, then follows input of a fixed rate, is killed, and is started again at once
with what it has saved. Seconds from the kill: to its first new result, and until its results follow the
input again as closely as before. All that is on its topic is then compared with the fold: results that came
twice (and whether with the same bytes), wrong ones (state that was lost or counted twice), missing ones. Ours
also goes through the sink, in whose table none may stand twice. Peers are told of, not failed, for what
they promise not.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np

from benchmarks.effects import effects
from benchmarks.figures import Figure, report, summed
from benchmarks.handbook import weighted
from benchmarks.harness import (
    OURS,
    START_SECONDS,
    Check,
    Running,
    SubjectFailed,
    alone,
    arguments,
    delete_topics,
    job,
    job_environ,
    python_of,
    services,
)
from benchmarks.process import PROGRAMS, scoring_job
from benchmarks.production import Position, await_until
from benchmarks.sink import DDL, SOURCE
from benchmarks.transactions import ID_AT, Declared, Ints, Transactions, send
from infra.broker import admin, producer
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.topic_log import ends, partitions, read
from schemas.declare import Topic

SUBJECTS = (OURS, "faust", "quix", "bytewax", "pathway")
BACKLOG = 20_000
STEADY_SECONDS = 8.0
"""Of even input before the kill; so many results at least give the usual delay."""
RESTART_SECONDS = 0.3
"""Between the kill and the next start: as long as a supervisor takes to see it."""
LOOK_SECONDS = 0.25
CLOSE_MS = 1_000
"""Results follow closely where they come this much later than was usual, or less."""
DEADLINE_SECONDS = 150.0
AFTER_SECONDS = 3.0
"""Input goes on for so long once it has been caught up with."""
DRAIN_SECONDS = 60.0


class Outputs:
    """The results on a topic, each partition in its order, and when the broker appended each."""

    def __init__(self, settings: Settings, topic: Topic, records: int) -> None:
        self._settings, self._places = settings, partitions([topic])
        self._client = admin(settings.kafka)
        self._next = dict.fromkeys(self._places, 0)
        self.values: dict[int, list[bytes]] = {place.partition: [] for place in self._places}
        self.appended_ms: list[int] = []
        self.first_ms: Ints = np.full(records, -1)
        """Of each transaction its first result's; -1 without one."""
        self.distinct = 0

    def look(self) -> int:
        """Read what is new; returns how many transactions have a result."""
        end = ends(self._client, self._places)
        for messages in read(self._settings.kafka, self._next, end):
            for message in messages:
                value, at_ms = message.value() or b"", message.timestamp()[1]
                self.values[int(message.partition() or 0)].append(value)
                self.appended_ms.append(at_ms)
                n = number(value)
                if n is not None and n < len(self.first_ms):
                    self.distinct += int(self.first_ms[n] < 0)
                    # Partitions are read side by side: the first to be read need not be the first.
                    self.first_ms[n] = at_ms if self.first_ms[n] < 0 else min(self.first_ms[n], at_ms)
        self._next = end
        return self.distinct

    def in_order(self) -> Iterator[bytes]:
        """All values, one partition after the other."""
        for values in self.values.values():
            yield from values


def number(value: bytes) -> int | None:
    """Which transaction a record is about; None where it is no transaction's."""
    try:
        return int(value[ID_AT])
    except ValueError:
        return None


@dataclass(eq=False)
class Feed(threading.Thread):
    """Appends the records, from number `first` on, so many a second of the clock, until `ending`."""

    settings: Settings
    target: Topic
    records: Iterator[tuple[str, bytes]]
    first: int
    rate: int
    sent: int = 0
    ending: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.sent = self.first

    def run(self) -> None:
        try:
            sender = producer(self.settings.kafka)
            began = time.monotonic()
            while not self.ending.wait(0.01):
                due = self.first + int((time.monotonic() - began) * self.rate)
                for key, value in islice(self.records, max(0, due - self.sent)):
                    sender.produce(self.target.name, value, key)
                    self.sent += 1
                sender.poll(0)
            if left := sender.flush(30):
                raise RuntimeError(f"{left} transactions were not acknowledged")
        except Exception as failure:  # told by the main thread
            self.failure = failure


class Subject:
    """A subject's process, which can be killed and started again."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str]) -> None:
        self._next = (Running(f"recovery-{name}-{n}", command, environ) for n in count(1))
        self._running: Running | None = None

    def start(self) -> None:
        self._running = next(self._next).start()

    def check(self) -> None:
        """Raises `SubjectFailed` where it has ended by itself."""
        if self._running is not None:
            self._running.require()

    def kill(self) -> None:
        """SIGKILL, to all its processes at once."""
        assert self._running is not None
        self._running.kill()

    def end(self) -> None:
        """End it well, or else by force."""
        if self._running is not None:
            self._running.end()


@dataclass(frozen=True)
class Recovered:
    """Seconds from the kill until the first new result, and until results follow closely; None: never."""

    new_s: float | None
    caught_up_s: float | None


def recovered(
    appended_ms: Ints, first_ms: Ints, steady_from_ms: int, killed_ms: int, back_ms: int
) -> Recovered:
    """What the log says of a kill at `killed_ms` with the next start at `back_ms`.

    By transaction: when it was appended, and its first result (-1 without). The usual delay is that of the
    99th of a hundred results of the transactions appended from `steady_from_ms` on, before the kill.
    """
    has = first_ms >= 0
    delay = first_ms - appended_ms
    usual = has & (appended_ms >= steady_from_ms) & (first_ms < killed_ms)
    new = first_ms[has & (first_ms >= back_ms)]
    if not len(new) or not usual.any():
        return Recovered(None, None)
    close_ms = CLOSE_MS + float(np.percentile(delay[usual], 99))
    late = first_ms[has & (first_ms >= killed_ms) & (delay > close_ms)]
    new_s = (int(new.min()) - killed_ms) / 1000
    if not has.all():
        return Recovered(new_s, None)
    return Recovered(new_s, max(new_s, (int(late.max()) - killed_ms) / 1000) if len(late) else new_s)


class Trial:
    """One kill of one subject, over topics of its own."""

    def __init__(
        self, settings: Settings, codec: Codec, name: str, n: int, rate: int, seconds: float
    ) -> None:
        self.settings, self.codec, self.name, self.rate, self.seconds = settings, codec, name, rate, seconds
        self.tag = f"recovery-{name}-{n}"
        most = BACKLOG + int(rate * (seconds + 2 * DEADLINE_SECONDS))
        self.data = Transactions(most)
        self.declared = Declared(self.tag)

    def run(self, python: str) -> tuple[Recovered, Check]:
        """Raises `SubjectFailed`."""
        settings, declared, codec = self.settings, self.declared, self.codec
        declared.create(settings, codec)
        _, program = PROGRAMS[self.name]
        told = scoring_job(settings, codec, self.tag, declared, recovering=True)
        events = self.data.events()
        records = ((e["card_id"], codec.encode(declared.transactions, e)) for e in events)
        send(settings, declared.transactions, islice(records, BACKLOG))
        outputs = Outputs(settings, declared.scores, self.data.records)
        feed = Feed(settings, declared.transactions, records, BACKLOG, self.rate)
        subject = Subject(self.tag, [python, *program.split()], job_environ(settings, told))
        try:
            subject.start()
            self._follow(subject, outputs, feed, lambda: outputs.look() >= BACKLOG, START_SECONDS, "began")
            feed.start()
            steady_from_ms = _now_ms() + 1_000
            self._follow(subject, outputs, feed, _after(self.seconds), 2 * self.seconds, "went on")
            subject.kill()
            killed_ms = _now_ms()
            time.sleep(RESTART_SECONDS)
            back_ms = _now_ms()
            subject.start()
            self._catch_up(subject, outputs, feed)
        finally:
            feed.ending.set()
            if feed.is_alive():
                feed.join(60)
            subject.end()
        outputs.look()  # what it has brought about while it ended
        if feed.failure is not None:
            raise feed.failure
        found = recovered(
            self._appended(feed.sent), outputs.first_ms[: feed.sent], steady_from_ms, killed_ms, back_ms
        )
        return found, self._check(self.data.first(feed.sent), outputs)

    def _catch_up(self, subject: Subject, outputs: Outputs, feed: Feed) -> None:
        """Until all is there that was sent, or a subject has had its time."""
        try:
            self._follow(
                subject,
                outputs,
                feed,
                lambda: outputs.look() >= feed.sent - self.rate,
                DEADLINE_SECONDS,
                "caught up",
            )
            self._follow(subject, outputs, feed, _after(AFTER_SECONDS), 2 * AFTER_SECONDS, "went on")
        except SubjectFailed as failure:
            subject.check()
            print(f"  {self.tag}: {failure}")
        feed.ending.set()
        feed.join(60)
        try:
            self._follow(
                subject, outputs, feed, lambda: outputs.look() >= feed.sent, DRAIN_SECONDS, "came to the end"
            )
        except SubjectFailed as failure:
            subject.check()
            print(f"  {self.tag}: {failure}")

    def _follow(
        self, subject: Subject, outputs: Outputs, feed: Feed, done: Any, seconds: float, what: str
    ) -> None:
        until = time.monotonic() + seconds
        while not done():
            subject.check()
            if feed.failure is not None:
                raise feed.failure
            if time.monotonic() > until:
                raise SubjectFailed(
                    f"nothing {what} within {seconds:.0f} s: {outputs.look():,} results of {feed.sent:,}"
                )
            time.sleep(LOOK_SECONDS)

    def _appended(self, sent: int) -> Ints:
        """When each transaction was appended."""
        appended = Outputs(self.settings, self.declared.transactions, sent)
        if appended.look() != sent:
            raise SubjectFailed(f"{appended.distinct} of {sent} transactions are on their topic")
        return appended.first_ms

    def _check(self, data: Transactions, outputs: Outputs) -> Check:
        scored = data.hashes(self.codec.encode(self.declared.scores, e) for e in data.scored())
        check = effects(data, outputs.in_order(), scored, complete=True)
        if self.name != OURS:
            return Check(check.counts["distinct"] > 0, check.counts, check.hash, check.expected_hash)
        with connect(self.settings.database_url, "benchmark") as connection:
            table = self.declared.table.name
            connection.execute(DDL.format(table, SOURCE).encode())
            try:
                with self._sink(connection, check.counts["records"]):
                    effect = self._effect(connection, data, table, check.counts["duplicates"])
            finally:
                connection.execute(f"DROP TABLE {table}".encode())
        return Check(
            check.passed and effect.passed,
            {**check.counts, **effect.counts},
            f"{check.hash}-{effect.hash}",
            f"{check.expected_hash}-{effect.expected_hash}",
        )

    @contextmanager
    def _sink(self, connection: Connection, records: int) -> Iterator[None]:
        """Our sink has read the whole topic."""
        told = job(
            self.settings,
            f"{self.tag}-sink",
            source=self.declared.scores.name,
            transactions=self.declared.transactions.name,
        ) | {"tag": self.tag}
        command = [sys.executable, "-m", "benchmarks.ours", "sink"]
        read_to = Position(connection, self.declared.pipeline.sink_name, self.declared.scores)
        with Running(f"recovery-{self.tag}-sink", command, job_environ(self.settings, told)) as sink:

            def is_stored() -> bool:
                sink.require()
                return read_to() >= records

            await_until(is_stored, {}, "was stored", DEADLINE_SECONDS)
            yield

    def _effect(self, connection: Connection, data: Transactions, table: str, repeated: int) -> Check:
        """The rows: each transaction once, with the fold's values; the duplicates were left out as such."""
        names = ("count_24h", "sum_24h_minor", "amount_minor")
        hashes = ", ".join(
            f"coalesce(sum((n + 1)::numeric * {name}), 0) % 18446744073709551616" for name in names
        )
        row = connection.execute(
            f"SELECT count(*), count(DISTINCT n), {hashes},"
            f" (SELECT coalesce(sum(duplicates_total), 0) FROM range_records WHERE consumer = '"
            f"{self.declared.pipeline.sink_name}')"
            f" FROM (SELECT *, substr(event_id, 4)::bigint AS n FROM {table}) rows".encode()
        ).fetchone()
        assert row is not None
        rows, distinct, *found, left_out = (int(str(value)) for value in row)
        count, total = data.windows
        numbers = np.arange(data.records)
        expected = [weighted(numbers, values) for values in (count, total, data.amount)]
        counts = {"rows": rows, "effect_duplicates": rows - distinct, "left_out_by_sink": left_out}
        passed = rows == distinct == data.records and found == expected and left_out == repeated
        return Check(passed, counts, _joined(found), _joined(expected))


def _joined(hashes: Iterable[int]) -> str:
    return "-".join(f"{value:016x}" for value in hashes)


def _after(seconds: float) -> Any:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def _now_ms() -> int:
    return int(time.time() * 1000)


def main() -> int:
    parser = arguments(__doc__, records=0)
    parser.set_defaults(seconds=STEADY_SECONDS)
    parser.add_argument("--rate", type=int, default=1_000, help="transactions a second, which all hold")
    chosen = parser.parse_args()
    wanted = [name for name in SUBJECTS if not chosen.only or name in chosen.only.split(",")]
    pythons = {}
    for name in wanted:
        peer, _ = PROGRAMS[name]
        pythons[name] = python_of(peer) if peer else sys.executable
    figures = {name: Figure(name, "s") for name in wanted}
    new: dict[str, list[float | None]] = {name: [] for name in wanted}
    with alone(), services(chosen.port_base) as settings:
        codec = Codec(settings.schema_registry_url)
        for n in range(chosen.slices):
            turn = n % len(wanted)
            for name in wanted[turn:] + wanted[:turn]:
                trial = Trial(settings, codec, name, n, chosen.rate, chosen.seconds)
                figure = figures[name]
                try:
                    found, check = trial.run(pythons[name])
                except SubjectFailed as failure:
                    print(f"{name} {n + 1}/{chosen.slices}: {failure}", flush=True)
                    figure.failed.append(str(failure))
                    continue
                finally:
                    delete_topics(
                        settings, [t.name for t in (trial.declared.transactions, trial.declared.scores)]
                    )
                print(f"{name} {n + 1}/{chosen.slices}: {found}, {check.counts}", flush=True)
                figure.runs.append(found.caught_up_s)
                figure.checks.append(check)
                new[name].append(found.new_s)
    for name, figure in figures.items():
        seconds = [s for s in new[name] if s is not None]
        counts = summed(figure.checks)
        figure.more = {
            "first_new_s": float(np.median(seconds)) if seconds else None,
            "never_caught_up": figure.runs.count(None),
            **{
                count: counts.get(count)
                for count in ("duplicates", "differing", "wrong", "missing", "effect_duplicates")
            },
        }
    about = (
        f"seconds from a kill -9 to caught up, at {chosen.rate:,} tx/s; duplicates of all kills on the topic"
    )
    return report("recovery", about, list(figures.values()), rate=chosen.rate)


if __name__ == "__main__":
    sys.exit(main())
