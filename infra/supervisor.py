"""Keeps the processes of an instance alive: a daemon of its own, which may itself be killed at any time.

Its children are forked from a process that has imported everything once (`infra.forkserver`), write to
their own log files and each hold a lock by which they are found again, so a new supervisor takes over what
the old one left running and starts nothing twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from http.client import HTTPException
from pathlib import Path

import psutil

from infra import exit_codes, tls
from infra.forkserver import Birth, ForkServer, adopt_orphans, lock_holder
from infra.settings import PORT_METRICS_FIRST, PORT_REGISTRY, PORT_SUPERVISOR, SETTINGS, Settings
from infra.telemetry.health import Health, serve
from infra.telemetry.metrics import DECLARED_PARTITIONS, PROCESS_RESTARTS
from schemas.declare import Pipelines
from schemas.grants import principal

log = logging.getLogger(__name__)

STOP_ORDER = ("connector", "processor", "sink", "api", "registry")

POLL_S = 0.2
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 30.0
PREPARE_AGAIN_S = 3.0
STEADY_AFTER_S = 60.0
STOP_DEADLINE_S = 12.0
"""A little more than the gateway needs to answer the requests under way."""
LOG_MOST_BYTES = 20_000_000
LOCK = ".lock"


class SupervisorError(RuntimeError):
    """The supervisor did not start or stop; the message says why and what to do."""


class State(StrEnum):
    """What a supervised process is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    BACKOFF = "backoff"
    FENCED = "fenced"
    REFUSED = "refused"
    OVER_LIMIT = "limit"
    STOPPED = "stopped"


RESTING = {
    exit_codes.FENCED: State.FENCED,
    exit_codes.POSITION: State.REFUSED,
    exit_codes.OVER_LIMIT: State.OVER_LIMIT,
}
"""Exit codes after which a process is not started again, until `millrace up` asks for it."""


@dataclass(frozen=True)
class ProcessSpec:
    """A process to keep alive: `python -m module arguments`. `port` is where it serves /metrics and /health:
    its own where it is an HTTP service. `ready_url` answers 200 once the others may start (only the registry
    has one). `imports` are the modules that it will want. `instance` tells several of one kind apart."""

    role: str
    pipeline: str
    module: str
    arguments: tuple[str, ...] = ()
    port: int = 0
    ready_url: str | None = None
    imports: tuple[str, ...] = ()
    instance: int = 0

    @property
    def name(self) -> str:
        return _name(self.role, self.pipeline, self.instance)


def _name(role: str, pipeline: str, instance: int) -> str:
    return "-".join(part for part in (role, pipeline, str(instance or "")) if part)


PREPARE = ProcessSpec(
    "prepare",
    "",
    "infra.prepare",
    imports=("infra.broker", "infra.codec", "infra.postgres", "schemas.pipelines"),
)


def specs(settings: Settings, pipelines: Pipelines, *, native: bool) -> tuple[ProcessSpec, ...]:
    """Every process of the instance, the registry first.

    With `native` services the registry is a process of ours, unless the settings name another one.
    """
    registry_url = settings.schema_registry_url
    wanted: list[ProcessSpec] = []
    if native and registry_url == SETTINGS["schema_registry_url"].default(settings):
        port = settings.port(PORT_REGISTRY)
        arguments = ("--port", str(port), "--state-dir", str(settings.home_path / "registry"))
        ready_url = f"{registry_url}/subjects"
        wanted.append(ProcessSpec("registry", "all", "schemas.registry", arguments, port, ready_url))
    for role, module in (("sink", "sinks"), ("processor", "streams")):
        for p in pipelines:
            if p.processors or role == "sink":
                imports = (f"{module}.runtime", f"{module}.{p.name}")
                wanted.append(ProcessSpec(role, p.name, module, (p.name,), imports=imports))
    http = ("infra.web", "connectors.gateway", *(f"connectors.{p.name}.http" for p in pipelines))
    gateway = ProcessSpec("connector", "gateway", "connectors", ("gateway",), imports=http)
    wanted += _each(gateway, settings.http_ports("gateway"))
    mqtt = ("connectors.fleet.mqtt",)
    wanted.append(ProcessSpec("connector", "mqtt", "connectors", ("mqtt",), imports=mqtt))
    if any(t.tick_ms is not None for p in pipelines for t in p.topics):
        ticks = ("connectors.ticks",)
        wanted.append(ProcessSpec("connector", "ticks", "connectors", ("ticks",), imports=ticks))
    if any(processor.effects for p in pipelines for processor in p.processors):
        outward = ("connectors.outward.deliverer",)
        wanted.append(ProcessSpec("connector", "webhooks", "connectors", ("webhooks",), imports=outward))
    routes = ("api.app", *(f"api.{p.name}" for p in pipelines))
    wanted += _each(ProcessSpec("api", "all", "api", imports=routes), settings.http_ports("api"))
    first = settings.port(PORT_METRICS_FIRST)
    return tuple(spec if spec.port else replace(spec, port=first + n) for n, spec in enumerate(wanted))


def _each(spec: ProcessSpec, ports: Sequence[int]) -> Iterator[ProcessSpec]:
    """One process for each port."""
    return (replace(spec, port=port, instance=n) for n, port in enumerate(ports))


def write_targets(settings: Settings, specs: Iterable[ProcessSpec]) -> None:
    """Tell Prometheus who serves /metrics: `platform.json`, for its file_sd_configs.

    Role and pipeline, as `millrace ps` has them, become labels. (The registry has no metrics.)
    """
    serving = [(s.role, s.pipeline, s.port) for s in specs if s.role != "registry"]
    serving.append(("supervisor", "all", settings.port(PORT_SUPERVISOR)))
    targets = []
    for role, pipeline, port in serving:
        scheme = urllib.parse.urlsplit(tls.of_our_own(settings, port)[0]).scheme
        labels = {"role": role, "pipeline": pipeline, **({"__scheme__": scheme} if scheme == "https" else {})}
        targets.append({"targets": [f"127.0.0.1:{port}"], "labels": labels})
    path = settings.prometheus_targets / "platform.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(targets, indent=1))
    partial.replace(path)


def declare_partitions(pipelines: Pipelines) -> None:
    """Count the partitions that should have an owner, here, where it is known also of who does not run."""
    for pipeline in pipelines:
        for consumer, topic in pipeline.consumers:
            DECLARED_PARTITIONS.labels(consumer, topic.name).set(topic.partitions)


def credentials(settings: Settings, spec: ProcessSpec) -> dict[str, str]:
    """Who the process is to the broker, with the password of that name alone; nothing where it is open.

    Read when the process starts: one that is started again has the password of then.
    """
    if not settings.secure:
        return {}
    name = principal(spec.role, spec.pipeline)
    return {
        SETTINGS["kafka_user"].variable: name,
        SETTINGS["kafka_password"].variable: settings.secret(f"kafka-{name}"),
    }


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """What is known of a process: one entry of the state file. `since` is when the state was entered."""

    role: str
    pipeline: str
    port: int
    state: State = State.WAITING
    pid: int | None = None
    started: float | None = None
    restarts: int = 0
    last_exit: int | None = None
    since: str = ""
    instance: int = 0

    @property
    def name(self) -> str:
        return _name(self.role, self.pipeline, self.instance)


@dataclass(frozen=True)
class Report:
    """The state file's content. `phase` is what the supervisor does now; `pid` is its own."""

    pid: int
    phase: str
    processes: tuple[ProcessState, ...]


def run_folder(home: Path) -> Path:
    return home / "run"


def read_report(home: Path) -> Report | None:
    """What the supervisor of this state folder last wrote, or None before its first start."""
    try:
        found = json.loads((run_folder(home) / "processes.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    entries = (ProcessState(**{**p, "state": State(p["state"])}) for p in found["processes"])
    return Report(found["pid"], found["phase"], tuple(entries))


def living(home: Path) -> dict[str, psutil.Process]:
    """The processes of this state folder that are alive now, by name: who holds the lock of a name.

    A child takes it before anything else, so that one whose supervisor was killed before it could write the
    state file is found as well. What a child forks itself does not hold it.
    """
    found: dict[str, psutil.Process] = {}
    for path in run_folder(home).glob(f"*{LOCK}"):
        # Its own lock a supervisor must not even look at: closing the file would drop it.
        if path == _lock_path(home):
            continue
        process = _holder(path)
        if process is not None:
            found[path.name.removesuffix(LOCK)] = process
    return found


def _holder(lock: Path) -> psutil.Process | None:
    pid = lock_holder(lock)
    try:
        return psutil.Process(pid) if pid is not None else None
    except psutil.NoSuchProcess:
        return None


def _alive(process: psutil.Process) -> bool:
    """False for a zombie too: a child whose supervisor was killed may never be reaped."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def stop_all(processes: Mapping[str, psutil.Process], deadline_s: float = STOP_DEADLINE_S) -> None:
    """Stop processes, those that write first: SIGTERM, a deadline per role, then SIGKILL."""
    for role in STOP_ORDER:
        group = [p for name, p in processes.items() if name.split("-", 1)[0] == role]
        for process in group:
            with _gone_is_fine():
                process.terminate()
        _await_end(group, deadline_s)
        for process in group:
            if _alive(process):
                log.warning("did not stop within %.0f s, killed: pid %d", deadline_s, process.pid)
                with _gone_is_fine():
                    process.kill()
        _await_end(group, deadline_s)


def _await_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(_alive(p) for p in processes) and time.monotonic() < end:
        time.sleep(0.02)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        pass


@contextmanager
def supervisor_lock(home: Path) -> Iterator[bool]:
    """Hold the lock of the one supervisor of a state folder; yields False where another holds it.

    A record lock: the kernel knows its holder's pid (`supervisor_pid`) and drops it when that dies.
    """
    path = _lock_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def supervisor_pid(home: Path) -> int | None:
    """The pid of the living supervisor of a state folder, or None."""
    return lock_holder(_lock_path(home))


def _lock_path(home: Path, name: str = "supervisor") -> Path:
    return run_folder(home) / f"{name}{LOCK}"


@dataclass
class _Child:
    """A process in the supervisor's hands: what the state file says of it, and how it is watched."""

    spec: ProcessSpec
    state: ProcessState
    process: psutil.Process | None = None
    backoff_s: float = BACKOFF_FIRST_S
    next_start: float = 0.0


@dataclass
class Supervisor:
    """Starts the processes in order and keeps them alive until `request_stop`.

    `prepare` must have run with success before anything but the registry starts; it is tried again until
    it does. `credentials` are added to the environment of one process, and of no other.
    """

    home: Path
    specs: Sequence[ProcessSpec]
    prepare: ProcessSpec | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    credentials: Callable[[ProcessSpec], Mapping[str, str]] = lambda _: {}
    health: Health | None = None
    deadline_s: float = STOP_DEADLINE_S
    steady_after_s: float = STEADY_AFTER_S

    def __post_init__(self) -> None:
        self._phase = "starting"
        self._stopping = False
        self._retry = False
        self._written = ""
        self._children: dict[str, _Child] = {}
        self._exits: dict[int, int] = {}
        self._server: ForkServer | None = None

    def run(self) -> None:
        """Supervise until stopped, then stop every process in order. The caller holds the lock."""
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        run_folder(self.home).mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        self._adopt()
        try:
            gates = [c for c in self._children.values() if c.spec.ready_url]
            while not self._stopping and not all(map(_ready, gates)):
                self._round(gates, "starting the registry")
            self._run_prepare(gates)
            while not self._stopping:
                self._round(self._children.values(), "running")
        finally:
            self._phase = "stopping"
            self._write()
            if self._server is not None:
                self._server.close()
            stop_all(living(self.home), self.deadline_s)
            self._reap()
            for child in self._children.values():
                self._enter(child, State.STOPPED, pid=None, started=None)
            self._phase = "stopped"
            self._write()

    def request_stop(self) -> None:
        """Make `run` stop all processes and return. Safe in a signal handler."""
        self._stopping = True

    def retry(self) -> None:
        """Start again at once what rests (fenced, refused) or backs off. Safe in a signal handler."""
        self._retry = True

    def _adopt(self) -> None:
        """Take over what an earlier supervisor left running; stop what is no longer wanted."""
        report = read_report(self.home)
        before = {p.name: p for p in report.processes} if report else {}
        found = living(self.home)
        for spec in self.specs:
            known = before.get(spec.name)
            state = ProcessState(
                role=spec.role, pipeline=spec.pipeline, port=spec.port, instance=spec.instance
            )
            child = self._children[spec.name] = _Child(spec, state)
            self._enter(child, State.WAITING)
            if spec.name not in found:
                continue
            child.process = process = found.pop(spec.name)
            if known is not None and (known.pid, known.started) == (process.pid, process.create_time()):
                child.state = replace(known, state=State.RUNNING)
            else:
                self._enter(child, State.RUNNING, pid=process.pid, started=process.create_time())
            log.info("adopted %s, pid %d", spec.name, process.pid)
        stop_all(found, self.deadline_s)

    def _round(self, children: Iterable[_Child], phase: str) -> None:
        self._phase = phase
        self._retry, retry = False, self._retry
        for child in children:
            self._watch(child, retry=retry)
        self._reap()
        self._write()
        time.sleep(POLL_S)

    def _watch(self, child: _Child, *, retry: bool) -> None:
        now = time.monotonic()
        if child.state.state is State.RUNNING:
            ended, code = self._exited(child.process)
            if not ended:
                _rotate(self._log_path(child.spec.name))
                return
            lived_s = time.time() - (child.state.started or 0.0)
            if lived_s >= self.steady_after_s:
                child.backoff_s = BACKOFF_FIRST_S
            resting = RESTING.get(code) if code is not None else None
            log.warning(
                "%s ended, exit code %s after %.1f s; %s",
                child.spec.name,
                "unknown" if code is None else code,
                lived_s,
                f"not started again: {resting}" if resting else f"starts again in {child.backoff_s} s",
            )
            child.process = None
            child.next_start = now + child.backoff_s
            child.backoff_s = min(2 * child.backoff_s, BACKOFF_MOST_S)
            self._enter(child, resting or State.BACKOFF, pid=None, started=None, last_exit=code)
        elif not child.spec.ready_url and not self._loaded():
            return
        elif child.state.state is State.WAITING:
            self._start(child)
        elif retry or (child.state.state is State.BACKOFF and now >= child.next_start):
            if retry:
                child.backoff_s = BACKOFF_FIRST_S
            self._start(child, restarts=child.state.restarts + 1)

    def _start(self, child: _Child, restarts: int = 0) -> None:
        child.process = self._fork(child.spec)
        if restarts:
            PROCESS_RESTARTS.labels(child.spec.name).inc()
        if child.process is None:
            child.next_start = time.monotonic() + child.backoff_s
            self._enter(child, State.BACKOFF, restarts=restarts)
            return
        pid, started = child.process.pid, child.process.create_time()
        self._enter(child, State.RUNNING, pid=pid, started=started, restarts=restarts)
        self._write()

    def _fork(self, spec: ProcessSpec) -> psutil.Process | None:
        """A new process, or the one that already has the name; None where neither came to be."""
        output, lock = self._log_path(spec.name), _lock_path(self.home, spec.name)
        environ = {"MILLRACE_METRICS_PORT": str(spec.port)} if spec.port else {}
        environ |= self.credentials(spec)
        birth = Birth(spec.name, spec.module, spec.arguments, environ, str(output), str(lock))
        try:
            pid = self._fork_server().start(birth)
            self._exits.pop(pid or 0, None)  # of a former process with this pid
            return psutil.Process(pid) if pid is not None else _holder(lock)
        except (OSError, psutil.NoSuchProcess) as error:
            log.error("%s was not started: %s", spec.name, error)
            return None

    def _fork_server(self) -> ForkServer:
        if self._server is None or not self._server.alive:
            every = (self.prepare, *self.specs) if self.prepare else self.specs
            modules = [name for spec in every for name in spec.imports]
            with self._log_path("supervisor").open("ab") as output:
                self._server = ForkServer(modules, self.environ, output)
        return self._server

    def _loaded(self) -> bool:
        try:
            return self._fork_server().loaded()
        except OSError:
            return False  # it was killed meanwhile: the next look starts another one

    def _exited(self, process: psutil.Process | None) -> tuple[bool, int | None]:
        """Whether it has ended, and its exit code where that can be known (not of an adopted child)."""
        if process is not None and _alive(process):
            return False, None
        self._reap()
        return True, self._exits.pop(process.pid, None) if process is not None else None

    def _reap(self) -> None:
        """Take the exit codes of children that have ended, and of what they have left behind themselves."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._exits[pid] = os.waitstatus_to_exitcode(status)

    def _run_prepare(self, gates: Sequence[_Child]) -> None:
        """Run `prepare` until it succeeds, watching the registry meanwhile."""
        phase = "preparing"
        while self.prepare and not self._stopping:
            process = self._fork(self.prepare)
            ended, code = self._exited(process)
            while not self._stopping and not ended:
                self._round(gates, phase)
                ended, code = self._exited(process)
            if code == 0 or self._stopping:
                return
            log.error("prepare failed, exit code %s; see logs/prepare.log", code)
            phase = "preparing again: it failed, see logs/prepare.log"
            again = time.monotonic() + PREPARE_AGAIN_S
            while not self._stopping and time.monotonic() < again:
                self._round(gates, phase)

    def _log_path(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _enter(self, child: _Child, state: State, **changes: object) -> None:
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        child.state = replace(child.state, state=state, since=since, **changes)  # type: ignore[arg-type]
        if self.health is not None and state is State.RUNNING:
            self.health.ok(child.spec.name)
        elif self.health is not None:
            self.health.failing(child.spec.name, state)

    def _write(self) -> None:
        """Replace the state file in one step, if there is news: a reader never sees half of it."""
        report = Report(os.getpid(), self._phase, tuple(c.state for c in self._children.values()))
        text = json.dumps(asdict(report), indent=1)
        if text == self._written:
            return
        path = run_folder(self.home) / "processes.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)
        self._written = text


def _ready(child: _Child) -> bool:
    try:
        with urllib.request.urlopen(str(child.spec.ready_url), timeout=1) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, HTTPException):
        return False


def _rotate(path: Path) -> None:
    """Copy and truncate a log that has grown too long: its writer keeps the file open across our death."""
    try:
        if path.stat().st_size < LOG_MOST_BYTES:
            return
        shutil.copyfile(path, path.with_suffix(".log.1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return


def start(settings: Settings, *, native: bool) -> None:
    """Start the supervisor as a detached daemon, or ask a living one to retry what it had given up.

    Returns when it holds its lock. Raises `SupervisorError` if it ends at once.
    """
    home = settings.home_path
    pid = supervisor_pid(home)
    if pid is not None:
        os.kill(pid, signal.SIGHUP)
        return
    (home / "logs").mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).parent.parent)
    # What the operator may do at the broker, none of the processes may.
    own = {SETTINGS[name].variable for name in ("kafka_user", "kafka_password")} if settings.secure else set()
    environ = {
        **{name: value for name, value in settings.environ.items() if name not in own},
        SETTINGS["home"].variable: str(home),
        SETTINGS["services"].variable: "native" if native else "docker",
        "PYTHONPATH": os.pathsep.join(filter(None, (root, settings.environ.get("PYTHONPATH")))),
    }
    with (home / "logs" / "supervisor.log").open("ab") as output:
        popen = subprocess.Popen(
            (sys.executable, "-m", "infra.supervisor"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environ,
        )
    end = time.monotonic() + 15
    while supervisor_pid(home) is None:
        if popen.poll() is not None or time.monotonic() > end:
            raise SupervisorError(
                f"the supervisor did not start; its reason stands in {home / 'logs' / 'supervisor.log'}"
            )
        time.sleep(0.05)
    # The daemon outlives us on purpose; without this the interpreter warns of an unreaped child.
    popen.returncode = 0


def stop(settings: Settings, deadline_s: float = 5 * STOP_DEADLINE_S + 5) -> None:
    """Stop the supervisor and every process, also those that a killed supervisor has left behind.

    Raises `SupervisorError` if the supervisor does not end within `deadline_s`.
    """
    home = settings.home_path
    end = time.monotonic() + deadline_s
    asked: int | None = None
    while True:
        with supervisor_lock(home) as free:
            if free:
                stop_all(living(home))
                return
        pid = supervisor_pid(home)
        if pid is not None and pid != asked:
            os.kill(pid, signal.SIGTERM)
            asked = pid
        if time.monotonic() > end:
            raise SupervisorError(f"the supervisor, pid {asked}, did not stop; end it with kill -9 {asked}")
        time.sleep(0.1)


def main() -> int:
    """Supervise the instance that the environment describes, until SIGTERM."""
    from schemas.pipelines import PIPELINES

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = Settings.load()
    native = settings.text("services") != "docker"
    health = Health()
    wanted = specs(settings, PIPELINES, native=native)
    declare_partitions(PIPELINES)
    supervisor = Supervisor(
        settings.home_path,
        wanted,
        prepare=PREPARE,
        credentials=partial(credentials, settings),
        health=health,
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop())
    signal.signal(signal.SIGINT, lambda *_: supervisor.request_stop())
    signal.signal(signal.SIGHUP, lambda *_: supervisor.retry())
    with supervisor_lock(settings.home_path) as free:
        if free:
            write_targets(settings, wanted)
            server = serve(health, settings.port(PORT_SUPERVISOR))
            supervisor.run()
            server.close()
        else:
            log.info("another supervisor is alive; nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
