"""A million card transactions from a file to a verified ledger: `python -m benchmarks.million [FILE]`.

The pipeline's processes are up, 50 rules and a model in force. The clock runs from the start of `millrace
ingest fraud` to the commit of the last row, and on through `millrace verify fraud`. Rows, sums, windows and
versions are then compared with what the file alone says. Each run has an instance of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import rules
from benchmarks.figures import Figure, report
from benchmarks.handbook import Expected, first_rows, generate
from benchmarks.harness import (
    OURS,
    STATE,
    Check,
    Sampler,
    SubjectFailed,
    Usage,
    alone,
    arguments,
    services,
)
from benchmarks.production import Position, check_alive, command, log_of, millrace, running
from benchmarks.transactions import Appended
from infra import versions
from infra.postgres import Connection, connect
from infra.settings import Settings
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS, FRAUD_SCORING, PIPELINE

FILE_VARIABLE = "MILLRACE_BENCH_TRANSACTIONS"
TARGET_SECONDS, TARGET_ROWS = 45.0, 1_000_000
TRAINED_ROWS = 50_000
FORESTS = ("isolation forest", "random forest")
"""The model that is in force must have both."""
LOOK_SECONDS = 0.2
TOLD_SECONDS = 5.0
STILL_SECONDS = 60.0
"""A run in which nothing moves for so long has failed."""
PROFILED_SECONDS = 600.0


@dataclass
class Stage:
    """When a stage had brought its last record on, what that took, and how much of it."""

    done: Callable[[], int] | None = None
    usage: Usage | None = None
    count: int = 0
    seconds: float | None = None
    cpu_before: float = 0.0
    cpu_seconds: float = 0.0

    def look(self, since: float, total: int) -> None:
        """Take note of how far it is."""
        if self.usage is not None:
            self.cpu_seconds = self.usage.look() - self.cpu_before
        if self.done is not None:
            self.count = self.done()
            if self.count >= total:
                self.seconds = time.monotonic() - since
                self.done = None  # a client of its own, which must not outlive the broker


@dataclass
class Result:
    """One run: seconds from the start of the clock, and what was found."""

    ledger_s: float
    verify_s: float
    total_s: float
    stages: dict[str, Stage]
    check: Check
    verified: dict[str, Any] = field(default_factory=dict)


class Run:
    """One run over a fresh instance."""

    def __init__(self, settings: Settings, path: Path, expected: Expected, *, profile: bool) -> None:
        self._settings, self._path, self._expected = settings, path, expected
        self._profile = profile
        self._samplers: list[Sampler] = []

    def __call__(self) -> Result:
        """Raises `SubjectFailed`."""
        with connect(self._settings.database_url, "benchmark") as connection:
            in_force = self._put_in_force(connection)
            with running(self._settings, PIPELINE, connection) as processes:
                result = self._measure(connection, processes)
            result.check = self._checked(connection, in_force, result)
        for sampler in self._samplers:
            sampler.show()
        return result

    def _put_in_force(self, connection: Connection) -> dict[str, int]:
        """Topics, schemas, a model trained on the file and the rules; returns the versions."""
        self._do([sys.executable, "-m", "infra.prepare"], "prepare")
        train = ("models", "train", "fraud", "--from", str(self._path), "--rows", str(TRAINED_ROWS))
        self._do(millrace(*train), "train")
        versions.publish(connection, "fraud", "rules", rules.fifty())
        in_force = versions.latest(connection, "fraud", ["rules", "model"])
        kind = str(versions.body(connection, "fraud", "model", in_force["model"])["kind"])
        if not all(forest in kind for forest in FORESTS):
            raise SubjectFailed(f"the model is a mere {kind}; give a file with more rows marked is_fraud")
        return in_force

    def _do(self, arguments: list[str], name: str) -> bytes:
        """Run a command to its end; returns what it printed."""
        with log_of(f"million-{name}").open("w+b") as output:
            code = command(self._settings, arguments, output, output).wait()
            output.seek(0)
            printed = output.read()
        if code:
            raise SubjectFailed(f"{name} ended with code {code}: {printed.decode(errors='replace')[-600:]}")
        return printed

    def _measure(self, connection: Connection, processes: dict[str, subprocess.Popen[bytes]]) -> Result:
        settings, rows = self._settings, self._expected.rows
        stages = {
            "ingest": Stage(Appended(settings, CARD_TRANSACTIONS)),
            "processor": Stage(Appended(settings, CARD_DECISIONS)),
            "sink": Stage(Position(connection, PIPELINE.sink_name, CARD_DECISIONS)),
            # Its last checkpoint follows its last output; verify counts what lies before it.
            "checkpoint": Stage(Position(connection, FRAUD_SCORING.name, CARD_TRANSACTIONS)),
        }
        for role, process in processes.items():
            stages[role].usage = usage = Usage(process.pid)
            stages[role].cpu_before = usage.look()
            self._sample(role, process.pid)
        with ExitStack() as files:
            output = files.enter_context(log_of("million-ingest").open("wb"))
            began = time.monotonic()
            ingest = command(settings, millrace("ingest", "fraud", str(self._path)), output, output)
            files.callback(_end, ingest)
            stages["ingest"].usage = Usage(ingest.pid)
            self._sample("ingest", ingest.pid)
            self._watch(stages, began, rows, processes, ingest)
            ledger_s = stages["sink"].seconds or 0.0
            verify_began = time.monotonic()
            errors = files.enter_context(log_of("million-verify").open("wb"))
            found = files.enter_context(log_of("million-verify-report").open("w+b"))
            verify = command(settings, millrace("verify", "fraud", "--settled", "--json"), found, errors)
            files.callback(_end, verify)
            stages["verify"] = Stage(usage=Usage(verify.pid))
            self._sample("verify", verify.pid)
            while verify.poll() is None:
                stages["verify"].look(began, rows)
                time.sleep(LOOK_SECONDS)
            now = time.monotonic()
            stages["verify"].seconds = now - began
            found.seek(0)
            verified = json.loads(found.read() or b"[{}]")[0] | {"exit_code": verify.returncode}
        return Result(ledger_s, now - verify_began, now - began, stages, Check(False, {}, "", ""), verified)

    def _watch(
        self,
        stages: dict[str, Stage],
        began: float,
        rows: int,
        processes: dict[str, subprocess.Popen[bytes]],
        ingest: subprocess.Popen[bytes],
    ) -> None:
        """Until all rows and the processor's position are committed and ingest has ended well."""
        moved = told = began
        counts: list[int] = []
        while any(s.seconds is None for s in stages.values()) or ingest.poll() is None:
            time.sleep(LOOK_SECONDS)
            check_alive(processes)
            if ingest.poll():
                raise SubjectFailed(
                    f"ingest ended with code {ingest.returncode}; see {log_of('million-ingest')}"
                )
            for stage in stages.values():
                stage.look(began, rows)
            now, before = time.monotonic(), counts
            counts = [stage.count for stage in stages.values()]
            if counts != before:
                moved = now
            if now > told + TOLD_SECONDS:
                told = now
                print(f"  {now - began:.0f} s: " + ", ".join(f"{n} {s.count:,}" for n, s in stages.items()))
            if now > moved + STILL_SECONDS:
                raise SubjectFailed(f"nothing moved for {STILL_SECONDS:.0f} s at {counts} of {rows}")

    def _sample(self, role: str, pid: int) -> None:
        if self._profile:
            self._samplers.append(sampler := Sampler(f"million-{role}", PROFILED_SECONDS))
            sampler.start(pid)

    def _checked(self, connection: Connection, in_force: dict[str, int], result: Result) -> Check:
        check = self._expected.check(connection, in_force)
        found = result.verified
        is_clean = found["exit_code"] == 0 and bool(found.get("clean")) and found.get("waiting") == 0
        compared = sum(c["compared"] for c in found.get("checks", []))
        counts = {**check.counts, "verify_compared": compared, "verify_clean": int(is_clean)}
        return Check(check.passed and is_clean and compared > 0, counts, check.hash, check.expected_hash)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def data(given: Path | None, rows: int) -> tuple[Path, str]:
    """The file to be ingested, made anew, and which transactions are in it."""
    STATE.mkdir(parents=True, exist_ok=True)
    path = STATE / "million.parquet"
    if given is None:
        generate(path, rows)
        return path, f"generated: {rows:,} transactions in the handbook's format"
    first_rows(given, path, rows)
    return path, f"real: the first {rows:,} rows of {given.name}"


def main() -> int:
    parser = arguments(__doc__, records=TARGET_ROWS)
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        default=os.environ.get(FILE_VARIABLE),
        help="the handbook's Parquet file",
    )
    chosen = parser.parse_args()
    path, which = data(chosen.file and Path(chosen.file), chosen.records)
    expected = Expected.of(path)
    ours = Figure(OURS, "s")
    parts = {
        name: Figure(name, "s")
        for name in ("file to ledger", "verify", "ingest", "processor", "sink", "checkpoint")
    }
    with alone():
        for n in range(chosen.slices):
            try:
                with services(chosen.port_base) as settings:
                    result = Run(settings, path, expected, profile=chosen.profile)()
            except SubjectFailed as failure:
                print(f"run {n + 1}/{chosen.slices}: {failure}")
                for figure in (ours, *parts.values()):
                    figure.failed.append(str(failure))
                continue
            _note(ours, parts, result, expected.rows)
            print(
                f"run {n + 1}/{chosen.slices}: {result.total_s:.1f} s, to the ledger {result.ledger_s:.1f},"
                f" verify {result.verify_s:.1f}; {'ok' if result.check.passed else result.check}"
            )
    about = f"seconds from file to verified ledger, median of {chosen.slices}; {which}"
    code = report("million", about, [ours, *parts.values()], data=which, target_s=TARGET_SECONDS)
    if ours.value is not None and expected.rows == TARGET_ROWS:
        print(f"target {TARGET_SECONDS:.0f} s: {'reached' if ours.value <= TARGET_SECONDS else 'missed'}")
    return code


def _note(ours: Figure, parts: dict[str, Figure], result: Result, rows: int) -> None:
    """Add a run's figures: of a stage when it was done, its busy seconds and its peak."""
    took = {"file to ledger": result.ledger_s, "verify": result.verify_s}
    busy = 0.0
    for name, stage in result.stages.items():
        part = parts[name]
        part.runs.append(took.get(name, stage.seconds))
        part.checks.append(result.check)
        if stage.usage is not None:
            busy += stage.cpu_seconds
            part.more = {"cpu_s": stage.cpu_seconds, "peak_mb": stage.usage.peak_bytes / 1e6}
    parts["file to ledger"].runs.append(result.ledger_s)
    parts["file to ledger"].checks.append(result.check)
    parts["file to ledger"].more = {"rows_per_s": rows / result.ledger_s}
    ours.runs.append(result.total_s)
    ours.checks.append(result.check)
    ours.more = {"rows_per_s": rows / result.total_s, "cpu_s": busy}


if __name__ == "__main__":
    sys.exit(main())
