"""A subject under an even load, stretch after stretch: what each answer and each row had to wait for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import open_loop
from benchmarks.arrivals import Arrivals, Positions, Waits, holds
from benchmarks.harness import (
    END_SECONDS,
    ROOT,
    STATE,
    Running,
    SubjectFailed,
    Usage,
    job_environ,
)
from benchmarks.open_loop import Schedule
from benchmarks.transactions import Appended, Transactions, send
from infra.broker import admin
from infra.postgres import Connection
from infra.settings import Settings
from infra.topic_log import ends, partitions
from schemas.declare import Topic

CHUNK = 65_536
LOOK_SECONDS = 0.05
PRELOAD_SECONDS = 300.0
DRAIN_SECONDS = 180.0
"""A subject that has fallen behind may take so long to catch up before the benchmark gives it up."""
SENDER_LATE_MS = 10.0
"""A sender that is later than this at its 99th percentile has not kept its schedule."""


@dataclass(frozen=True)
class Stretch:
    """What was measured at one rate."""

    rate: int
    decision: Waits
    """From the scheduled time until the answer could be read on the topic."""
    row: Waits | None
    """And until its row could be read; None for a subject without a sink."""
    sender: Waits
    """How late the sender itself was; part of all the waits."""
    is_held: bool
    cores: dict[str, float]
    """What each process took of the processors meanwhile, in cores."""
    seconds: float
    """How long it was measured."""

    @property
    def is_sender_late(self) -> bool:
        return self.sender.p99 > SENDER_LATE_MS

    def line(self) -> str:
        """The stretch in one line."""
        row = f", row p50 {self.row.p50:.0f} p99 {self.row.p99:.0f}" if self.row else ""
        late = f"; THE SENDER WAS LATE: p99 {self.sender.p99:.0f}" if self.is_sender_late else ""
        d = self.decision
        waits = f"ms to the decision: p50 {d.p50:.0f} p95 {d.p95:.0f} p99 {d.p99:.0f} max {d.max:.0f}{row}"
        return f"{self.rate:,}/s {'held' if self.is_held else 'NOT HELD'}; {waits}{late}"


@dataclass(frozen=True)
class Stored:
    """Where a subject's rows are: the consumer whose committed positions tell of them."""

    connection: Connection
    consumer: str

    def records(self, topic: Topic) -> int:
        """How many records of the topic have taken effect."""
        found = self.connection.execute(
            "SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints"
            " WHERE consumer = %s AND topic = %s",
            (self.consumer, topic.name),
        ).fetchone()
        assert found is not None
        return int(str(found[0]))


@dataclass
class Load:
    """Transactions for one subject, in their order: first what stands in its log, then stretches."""

    settings: Settings
    source: Topic
    target: Topic
    data: Transactions
    encode: Callable[[int, int], list[bytes]]
    """The record values of the transactions from a number up to another."""
    stored: Stored | None = None
    sent: int = 0

    def preload(self, records: int) -> None:
        """Append the next transactions as fast as can be."""
        rows = ((k, v) for batch in self._batches(self.sent, records) for k, v in zip(*batch, strict=True))
        send(self.settings, self.source, rows)
        self.sent += records

    def settle(self, roles: Mapping[str, Running], seconds: float = PRELOAD_SECONDS) -> None:
        """Wait until all that was sent is answered and stored. Raises `SubjectFailed`."""
        answered = Appended(self.settings, self.target)
        until = time.monotonic() + seconds
        while (done := answered()) < self.sent or (
            self.stored is not None and self.stored.records(self.target) < self.sent
        ):
            for running in roles.values():
                running.require()
            if time.monotonic() > until:
                first = next(iter(roles.values()))
                raise first.failed(f"had {done} of {self.sent} answered after {seconds:.0f} s")
            time.sleep(LOOK_SECONDS)

    def run(
        self,
        schedule: Schedule,
        roles: Mapping[str, Running],
        others: Mapping[str, int],
        while_measured: Callable[[], None] | None = None,
    ) -> Stretch:
        """Send by the schedule, wait for all answers, and reckon. Raises `SubjectFailed`.

        `roles`: the subject's processes; `others`: ids of more whose share of the processors is told.
        """
        if schedule.first != self.sent or schedule.end > self.data.records:
            raise ValueError(
                f"{schedule} does not follow {self.sent} sent of {self.data.records}; make more data"
            )
        folder = STATE / "stretch"
        shutil.rmtree(folder, ignore_errors=True)  # nothing of the last stretch may be read as this one's
        folder.mkdir(parents=True)
        open_loop.write(folder / "records.arrow", self._batches(schedule.first, schedule.records))
        with ExitStack() as stack:
            watchers = {"topic watcher": self._topic_watcher(stack, folder).pid}
            if self.stored is not None:
                watchers["table watcher"] = self._table_watcher(stack, folder, self.stored).pid
            sender, begin_ns = self._sender(stack, folder, schedule)
            pids = {
                **{name: running.pid for name, running in roles.items()},
                **others,
                "sender": sender.pid,
                **watchers,
            }
            sleep_until(begin_ns + int(schedule.warm_seconds * 1e9))
            usages = {name: Usage(pid) for name, pid in pids.items()}
            before = {name: usage.look() for name, usage in usages.items()}
            if while_measured is not None:
                while_measured()
            sleep_until(begin_ns + int((schedule.warm_seconds + schedule.seconds) * 1e9))
            cores = {n: round((u.look() - before[n]) / schedule.seconds, 3) for n, u in usages.items()}
            if sender.wait(open_loop.FLUSH_SECONDS + END_SECONDS):
                raise RuntimeError(f"the sender ended with code {sender.returncode}; its words are above")
            self.sent += schedule.records
            self.settle(roles, DRAIN_SECONDS)
        return _reckon(folder, schedule, begin_ns, cores, self.stored is not None)

    def _batches(self, first: int, records: int) -> Iterator[tuple[list[str], list[bytes]]]:
        for start in range(first, first + records, CHUNK):
            end = min(start + CHUNK, first + records)
            yield self.data.columns(start, end)["card_id"].to_pylist(), self.encode(start, end)

    def _topic_watcher(self, stack: ExitStack, folder: Path) -> subprocess.Popen[str]:
        at = ends(admin(self.settings.kafka), partitions([self.target]))
        told = {
            "bootstrap": self.settings.kafka_bootstrap_servers,
            "topic": self.target.name,
            "from": {place.partition: offset for place, offset in at.items()},
            "out": str(folder / "arrivals.npz"),
        }
        watcher = stack.enter_context(beside(self.settings, ["benchmarks.arrivals", "topic"], told))
        hear(watcher, "ready")
        return watcher

    def _table_watcher(self, stack: ExitStack, folder: Path, stored: Stored) -> subprocess.Popen[str]:
        told = {
            "database": self.settings.database_url,
            "consumer": stored.consumer,
            "topic": self.target.name,
            "out": str(folder / "positions.npz"),
        }
        watcher = stack.enter_context(beside(self.settings, ["benchmarks.arrivals", "table"], told))
        hear(watcher, "ready")
        return watcher

    def _sender(
        self, stack: ExitStack, folder: Path, schedule: Schedule
    ) -> tuple[subprocess.Popen[str], int]:
        told = {
            "bootstrap": self.settings.kafka_bootstrap_servers,
            "topic": self.source.name,
            "records": str(folder / "records.arrow"),
            "count": schedule.records,
            "rate": schedule.rate,
            "out": str(folder / "late.npy"),
        }
        sender = stack.enter_context(beside(self.settings, ["benchmarks.open_loop"], told))
        return sender, int(hear(sender, "begin"))


def _reckon(
    folder: Path, schedule: Schedule, begin_ns: int, cores: dict[str, float], has_rows: bool
) -> Stretch:
    """Compare what the watchers have left with the schedule."""
    measured = slice(schedule.warm, None)
    due = schedule.due_ns()[measured] + begin_ns
    try:
        answers = Arrivals.load(folder / "arrivals.npz").first_of(
            schedule.first + schedule.warm, schedule.end
        )
        row_ns = Positions.load(folder / "positions.npz").stored_ns(answers) if has_rows else None
    except LookupError as missing:
        raise SubjectFailed(str(missing)) from missing
    return Stretch(
        rate=schedule.rate,
        decision=Waits.of(answers.at_ns - due),
        row=None if row_ns is None else Waits.of(row_ns - due),
        sender=Waits.of(np.load(folder / "late.npy")[measured]),
        is_held=holds(due, answers.at_ns if row_ns is None else row_ns, schedule.rate),
        cores=cores,
        seconds=schedule.seconds,
    )


@contextmanager
def beside(settings: Settings, module: list[str], told: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process of the benchmark's own, ended by SIGTERM at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env={**job_environ(settings, told)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def hear(process: subprocess.Popen[str], word: str) -> str:
    """The rest of the line that begins with this word; raises RuntimeError where the process says no such."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line.startswith(word):
        raise RuntimeError(f"{process.args!r} said {line!r} instead of {word}; its words are above")
    return line.removeprefix(word).strip()


def sleep_until(monotonic_ns: int) -> None:
    time.sleep(max(0.0, (monotonic_ns - time.monotonic_ns()) / 1e9))
