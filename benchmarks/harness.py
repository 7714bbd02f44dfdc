"""What all benchmarks share: services of their own, peers in environments of their own, slices, table, file.

Subjects run in turn, each as a process of its own for a fixed slice of time, so that whatever else the
machine does meets all of them; the median of the slices counts, and only together with its check.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaException
from rich.console import Console
from rich.table import Table

from infra.broker import admin
from infra.postgres import migrate
from infra.services.kafka import Kafka
from infra.services.native import NativeServices
from infra.services.postgres import Postgres
from infra.services.probe import ProbeError
from infra.services.probe import registry as registry_answers
from infra.settings import PORT_REGISTRY, SETTINGS, Settings

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
STATE = ROOT / ".millrace" / "bench"
OURS, LIMIT = "millrace", "limit"

POLL_SECONDS = 0.2
WARM_UP_SECONDS = 2.0
"""Output of a subject's first moments is not counted: caches fill, partitions are still being assigned."""
START_SECONDS = 120.0
END_SECONDS = 30.0


class SubjectFailed(RuntimeError):
    """A subject ended or stood still before its slice was over; the message has its last words."""


@dataclass(frozen=True)
class Check:
    """What a checker found: counts, the hash of what is there and of what should be."""

    passed: bool
    counts: dict[str, int]
    hash: str
    expected_hash: str


@dataclass(frozen=True)
class Measured:
    """What a subject did between the end of its warm-up and the end of its slice, or of its input."""

    units: int
    seconds: float
    cpu_seconds: float
    """Of its own processes: neither the broker's nor the database's."""
    peak_bytes: int


@dataclass(frozen=True)
class Run:
    """One slice of one subject, with what its checker says of it."""

    measured: Measured
    check: Check

    @property
    def rate(self) -> float:
        return self.measured.units / self.measured.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.measured.units / max(self.measured.cpu_seconds, 0.01)


def arguments(description: str | None, records: int) -> argparse.ArgumentParser:
    """The command line that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--slices", type=int, default=3, help="slices of each subject")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a slice")
    parser.add_argument("--records", type=int, default=records, help="size of the input")
    parser.add_argument("--only", default="", help="subjects to run, comma separated; all where left out")
    parser.add_argument("--profile", action="store_true", help="sample our own process with py-spy meanwhile")
    parser.add_argument(
        "--port-base", type=int, default=int(os.environ.get("MILLRACE_BENCH_PORT_BASE", "27000"))
    )
    return parser


# Services


def _settings(port_base: int) -> Settings:
    kept = {SETTINGS["cache"].variable, SETTINGS["kafka_jvm"].variable}
    ours = {setting.variable for setting in SETTINGS.values()} - kept
    environ = {k: v for k, v in os.environ.items() if k not in ours}
    home = {"MILLRACE_HOME": str(STATE / "home"), "MILLRACE_PORT_BASE": str(port_base)}
    return Settings({**environ, **home})


@contextmanager
def alone() -> Iterator[None]:
    """No other benchmark of this checkout meanwhile; a SIGTERM ends this one with all that it has started."""
    STATE.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another benchmark runs in {STATE}; wait until it is done")
        yield


@contextmanager
def registry(port_base: int) -> Iterator[Settings]:
    """A registry of this benchmark alone, empty, until the end of the block."""
    settings = _settings(port_base)
    state = settings.home_path / "registry"
    shutil.rmtree(state, ignore_errors=True)
    port = str(settings.port(PORT_REGISTRY))
    command = [sys.executable, "-m", "schemas.registry", "--port", port, "--state-dir", str(state)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        _await(lambda: registry_answers(settings.schema_registry_url))
        yield settings
    finally:
        process.terminate()
        process.wait(END_SECONDS)


@contextmanager
def services(port_base: int) -> Iterator[Settings]:
    """Broker, database and registry of this benchmark alone, empty, until the end of the block."""
    settings = _settings(port_base)
    native = NativeServices(settings, [Kafka(settings), Postgres(settings)])
    native.down(purge=True, progress=print)  # what a killed benchmark left
    shutil.rmtree(settings.home_path, ignore_errors=True)
    try:
        native.up(progress=print)
        migrate(settings.database_url)
        with registry(port_base):
            yield settings
    finally:
        native.down(purge=True, progress=print)
        shutil.rmtree(settings.home_path, ignore_errors=True)


def _await(probe: Callable[[], object]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            probe()
            return
        except ProbeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def delete_topics(settings: Settings, names: Iterable[str]) -> None:
    """Delete topics, so that the disk holds one slice's output at a time."""
    client = admin(settings.kafka)
    for deleted in client.delete_topics(list(names), operation_timeout=30).values():
        with suppress(KafkaException):
            deleted.result()


# Peers


def python_of(peer: str) -> str:
    """The interpreter of a peer's own environment, made from its pinned requirements where they changed."""
    requirements = PEERS / peer / "requirements.txt"
    folder = STATE / "env" / peer
    stamp = folder / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {peer} into {folder.relative_to(ROOT)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--disable-pip-version-check", "-r", str(requirements)], check=True)
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


def job(settings: Settings, tag: str, **more: Any) -> dict[str, Any]:
    """What every subject is told: its names' tag, the broker, and an empty folder of its own; and `more`."""
    state = settings.home_path / "subjects" / tag
    state.mkdir(parents=True)
    return {"tag": tag, "bootstrap": settings.kafka_bootstrap_servers, "state": str(state), **more}


def job_environ(settings: Settings, told: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a subject's process: its job as JSON, and our settings for our own."""
    return {**settings.environ, "PYTHONPATH": str(ROOT), "BENCH_JOB": json.dumps(told), "PYTHONHASHSEED": "0"}


# A slice


class Usage:
    """CPU seconds and peak resident memory of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[int, float] = {}
        self.peak_bytes = 0

    def look(self) -> float:
        """Take note; returns the CPU seconds so far, those of ended children as of the last look."""
        resident = 0
        with suppress(psutil.Error):
            for process in (self._root, *self._root.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                    resident += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, resident)
        return sum(self._cpu.values())


class Running:
    """A subject's process with a log of its own; it ends, with all it started, at the end of the block."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._name, self._command, self._environ = name, command, environ
        self._log = STATE / "logs" / f"{name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)

    def start(self) -> Running:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=dict(self._environ),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def end(self) -> None:
        """End it well, or else by force."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL, to its session: nothing of a peer that does not listen goes on beside the next one."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Running:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def require(self) -> None:
        """Raises `SubjectFailed` where it has ended."""
        if (code := self._process.poll()) is not None:
            raise self.failed(f"ended with code {code}")

    def failed(self, what: str) -> SubjectFailed:
        """What is wrong with it, with its last words."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        words = " | ".join(lines[-5:])[-800:] or "it said nothing"
        return SubjectFailed(f"{self._name} {what}: {words} (see {self._log})")


@dataclass
class Slice:
    """A subject's process at work; `progress` counts what it has brought about so far."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    progress: Callable[[], int]
    total: int
    seconds: float
    while_measured: Callable[[int], None] | None = None
    """Called once with the process's id when the warm-up is over; may block as long as the slice lasts."""
    prologue: int = 0
    """So much must have been brought about before anything is counted: state that is to be there."""

    def run(self) -> Measured:
        """Start it, measure it, end it. Raises `SubjectFailed`."""
        with Running(self.name, self.command, self.environ) as running:
            return self._measure(running)

    def _measure(self, running: Running) -> Measured:
        usage = Usage(running.pid)
        began = time.monotonic()
        warm_at = started_at = 0.0
        units_before, cpu_before, seen = 0, 0.0, 0
        latest: Measured | None = None
        while True:
            time.sleep(POLL_SECONDS)
            units, now, cpu = self.progress(), time.monotonic(), usage.look()
            if units < self.total:
                running.require()
            # Counting begins and ends as output appears: what comes in bursts is not cut in the middle.
            moved, seen = units != seen, units
            if not warm_at:
                if units:
                    warm_at = now + WARM_UP_SECONDS
                elif now - began > START_SECONDS:
                    raise running.failed(f"brought nothing about in {START_SECONDS:.0f} s")
            elif not started_at:
                if units >= self.total:
                    raise SubjectFailed(
                        f"{self.name} was done within its warm-up; give --records a larger number"
                    )
                # A quarter: the fastest would be done before.
                warm = moved and (now >= warm_at or units >= self.total // 4)
                if units >= self.prologue and (warm or now >= warm_at + self.seconds):
                    started_at, units_before, cpu_before = now, units, cpu
                    usage.peak_bytes = 0
                    if self.while_measured is not None:
                        self.while_measured(running.pid)
            else:
                if moved:
                    latest = Measured(
                        units - units_before, now - started_at, cpu - cpu_before, usage.peak_bytes
                    )
                if units >= self.total or now - started_at >= self.seconds:
                    if latest is None:
                        raise running.failed("stood still after its warm-up")
                    return latest


class Sampler:
    """py-spy on our own process during a slice: a flame graph, and functions by their own time."""

    def __init__(self, name: str, seconds: float) -> None:
        self._folder = STATE / "profiles"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._name, self._seconds = name, seconds
        self._samplers: list[subprocess.Popen[bytes]] = []

    def start(self, pid: int) -> None:
        """Sample the process in the background, for as long as its slice lasts."""
        for form, suffix in (("raw", "txt"), ("flamegraph", "svg")):
            sampler = subprocess.Popen(
                [
                    *(Path(sys.executable).with_name("py-spy"), "record", "--nonblocking"),
                    *("--pid", str(pid), "--format", form, "--rate", "50"),
                    *("--duration", str(max(1, int(self._seconds) - 1))),
                    *("--output", str(self._folder / f"{self._name}.{suffix}")),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._samplers.append(sampler)

    def show(self, count: int = 15) -> None:
        """Print functions with the share of the samples in which they themselves were at work."""
        for sampler in self._samplers:  # they write when their time is over or the process has ended
            sampler.wait(self._seconds + END_SECONDS)
        own: dict[str, int] = {}
        for line in (self._folder / f"{self._name}.txt").read_text().splitlines():
            stack, _, samples = line.rpartition(" ")
            function = stack.split(";")[-1].rpartition(":")[0]
            own[function] = own.get(function, 0) + int(samples)
        total = sum(own.values()) or 1
        for function, n in sorted(own.items(), key=lambda item: -item[1])[:count]:
            print(f"{n / total:6.1%}  {function}")


# All slices, and what they come to


def alternate(
    names: Sequence[str], only: str, slices: int, one: Callable[[str, int], Run]
) -> dict[str, list[Run | str]]:
    """Run the subjects in turn, `slices` times, each round in another order; a failure is its reason."""
    wanted = [name for name in names if not only or name in only.split(",")]
    runs: dict[str, list[Run | str]] = {name: [] for name in wanted}
    for n in range(slices):
        turn = n % len(wanted)
        for name in wanted[turn:] + wanted[:turn]:
            try:
                run = one(name, n)
                print(
                    f"{name} {n + 1}/{slices}: {run.rate:,.0f}/s, {'ok' if run.check.passed else run.check}"
                )
                runs[name].append(run)
            except SubjectFailed as failure:
                print(f"{name} {n + 1}/{slices}: {failure}")
                runs[name].append(str(failure))
    return runs


def report(benchmark: str, unit: str, runs: Mapping[str, Sequence[Run | str]]) -> int:
    """Print the table, write the file of the same; returns the exit code, 1 where a check failed."""
    subjects = [_subject(name, unit, some) for name, some in runs.items()]
    values = {s["name"]: s["value"] for s in subjects}
    table = Table(title=f"{benchmark}: {unit}, median of {max(map(len, runs.values()))}")
    for heading in ("subject", unit, "least to most", "per CPU second", "peak MB", "millrace is", "checked"):
        table.add_column(heading, justify="left" if heading in ("subject", "checked") else "right")
    for s in subjects:
        ours = values.get(_ours_of(s["name"])) or values.get(OURS)
        table.add_row(
            s["name"],
            _number(s["value"]),
            f"{_number(min(s['runs'], default=None))} to {_number(max(s['runs'], default=None))}",
            _number(s["per_cpu_second"]),
            _number(s["peak_mb"]),
            f"{ours / s['value']:.2f} ×" if ours and s["value"] else "–",
            "yes" if s["checked"] else "NO",
        )
    return publish(benchmark, table, subjects)


def publish(benchmark: str, table: Table, subjects: Sequence[Mapping[str, Any]], **more: Any) -> int:
    """Print the table and write the file, with `more` of the run; the exit code, 1 where a check failed."""
    Console(width=120).print(table)
    return save(benchmark, subjects, **more)


def save(benchmark: str, subjects: Sequence[Mapping[str, Any]], **more: Any) -> int:
    """Write the benchmark's file; returns the exit code, 1 where a check failed or nothing was measured."""
    STATE.mkdir(parents=True, exist_ok=True)
    path = STATE / f"{benchmark}.json"
    found = {"benchmark": benchmark, "machine": machine(), **more, "subjects": subjects}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return 0 if subjects and all(s["checked"] for s in subjects) else 1


def _ours_of(name: str) -> str:
    """Our subject of the same work: what follows the first word of a name says which."""
    return " ".join([OURS, *name.split(" ")[1:]])


def _subject(name: str, unit: str, some: Sequence[Run | str]) -> dict[str, Any]:
    done = [r for r in some if isinstance(r, Run)]
    return {
        "name": name,
        "value": statistics.median(r.rate for r in done) if done else None,
        "unit": unit,
        "runs": [r.rate for r in done],
        "checked": len(done) == len(some) and all(r.check.passed for r in done),
        "check": {"command": command_line(), "slices": _checks(some)},
        "per_cpu_second": statistics.median(r.per_cpu_second for r in done) if done else None,
        "peak_mb": max(r.measured.peak_bytes for r in done) / 1e6 if done else None,
    }


def command_line() -> str:
    """The command of this benchmark, whose checks are in its file."""
    specification = sys.modules["__main__"].__spec__
    return " ".join(["python -m", specification.name if specification else sys.argv[0], *sys.argv[1:]])


def _checks(some: Sequence[Run | str]) -> list[Any]:
    return [asdict(r.check) if isinstance(r, Run) else {"failed": r} for r in some]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "cpu": next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        ),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
