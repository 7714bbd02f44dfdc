"""The supervisor with real, tiny child processes and a real daemon that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra import supervisor
from infra.forkserver import Birth, ForkServer, lock_holder
from infra.settings import PORT_API, SETTINGS, SettingError, Settings
from infra.supervisor import ProcessState, State, specs
from schemas.pipelines import PIPELINES

ROOT = Path(__file__).parents[2]
SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

DAEMON = textwrap.dedent("""
    import signal, sys
    from pathlib import Path
    from infra import supervisor
    from infra.supervisor import ProcessSpec, Supervisor

    home = Path(sys.argv[1])
    specs = [
        ProcessSpec(*name.split("-"), f"program_{name.replace('-', '_')}", port=1) for name in sys.argv[3:]
    ]
    prepare = ProcessSpec("prepare", "", sys.argv[2]) if sys.argv[2] else None
    one = Supervisor(home, specs, prepare=prepare, deadline_s=1.0)
    signal.signal(signal.SIGTERM, lambda *_: one.request_stop())
    signal.signal(signal.SIGHUP, lambda *_: one.retry())
    with supervisor.supervisor_lock(home) as free:
        if not free:
            sys.exit(9)
        one.run()
""")


class Daemon:
    """A supervisor daemon over named programs, in a state folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, prepare: str = "", **programs: str) -> subprocess.Popen[bytes]:
        folder = self.home / "programs"
        folder.mkdir(exist_ok=True)
        for name, code in (programs | {"prepare": prepare}).items():
            (folder / f"program_{name}.py").write_text(code)
        names = [name.replace("_", "-") for name in programs]
        popen = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(self.home), "program_prepare" if prepare else "", *names],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        )
        self.started.append(popen)
        return popen

    def processes(self) -> dict[str, ProcessState]:
        report = supervisor.read_report(self.home)
        return {p.name: p for p in report.processes} if report else {}

    def until(
        self, holds: Callable[[dict[str, ProcessState]], bool], deadline_s: float = 15
    ) -> dict[str, ProcessState]:
        """Wait until the state file says so."""
        end = time.monotonic() + deadline_s
        while not holds(found := self.processes()):
            assert time.monotonic() < end, f"still {found}"
            time.sleep(0.05)
        return found


def running(*names: str) -> Callable[[dict[str, ProcessState]], bool]:
    return lambda found: all(n in found and found[n].state is State.RUNNING for n in names)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    one = Daemon(tmp_path)
    yield one
    for popen in one.started:
        popen.kill()
        popen.wait()
    for process in supervisor.living(tmp_path).values():
        process.kill()


def test_a_killed_child_is_started_again(daemon: Daemon) -> None:
    """kill -9 of a process: a new one runs, and the state file counts the restart and names the signal."""
    daemon.start(sink_fraud=SLEEPER, api_all=SLEEPER)
    before = daemon.until(running("sink-fraud", "api-all"))
    victim = before["sink-fraud"].pid
    assert victim
    os.kill(victim, signal.SIGKILL)
    after = daemon.until(lambda p: p["sink-fraud"].restarts == 1 and p["sink-fraud"].state is State.RUNNING)
    assert after["sink-fraud"].pid != victim
    assert after["sink-fraud"].last_exit == -signal.SIGKILL
    assert after["api-all"] == before["api-all"]


def test_a_killed_supervisor_loses_and_doubles_nothing(daemon: Daemon) -> None:
    """kill -9 of the supervisor: its successor adopts what lives and restarts what died between."""
    first = daemon.start(sink_fraud=SLEEPER, processor_fraud=SLEEPER, api_all=SLEEPER)
    before = daemon.until(running("sink-fraud", "processor-fraud", "api-all"))
    first.kill()
    first.wait()
    dead = before["processor-fraud"].pid
    assert dead
    os.kill(dead, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(dead)] if psutil.pid_exists(dead) else [], timeout=0.2)
    # What a kill between the birth of a child and the writing of the state file leaves behind:
    (daemon.home / "run" / "processes.json").unlink()
    daemon.start(sink_fraud=SLEEPER, processor_fraud=SLEEPER, api_all=SLEEPER)
    after = daemon.until(running("sink-fraud", "processor-fraud", "api-all"))
    assert after["sink-fraud"].pid == before["sink-fraud"].pid
    assert after["api-all"].pid == before["api-all"].pid
    assert after["processor-fraud"].pid != dead
    assert {n: p.pid for n, p in supervisor.living(daemon.home).items()} == {
        n: p.pid for n, p in after.items()
    }
    # An adopted process is watched as well.
    adopted = after["sink-fraud"].pid
    assert adopted
    os.kill(adopted, signal.SIGKILL)
    daemon.until(lambda p: p["sink-fraud"].pid not in (None, adopted))


def test_a_killed_fork_server_takes_nobody_with_it(daemon: Daemon) -> None:
    """kill -9 of the fork server: its children live on, and the next start comes from a new one."""
    one = daemon.start(sink_fraud=SLEEPER, api_all=SLEEPER)
    before = daemon.until(running("sink-fraud", "api-all"))
    children = psutil.Process(one.pid).children()
    (server,) = [p for p in children if "infra.forkserver" in p.cmdline()]
    assert {p.pid for p in children} == {server.pid, before["sink-fraud"].pid, before["api-all"].pid}
    server.kill()
    dead = before["sink-fraud"].pid
    assert dead
    os.kill(dead, signal.SIGKILL)
    after = daemon.until(lambda p: p["sink-fraud"].restarts == 1 and p["sink-fraud"].state is State.RUNNING)
    assert after["api-all"] == before["api-all"]
    assert after["sink-fraud"].last_exit == -signal.SIGKILL
    titles = {" ".join(p.cmdline()).strip() for p in psutil.Process(one.pid).children() if p != server}
    assert titles > {"millrace api-all", "millrace sink-fraud"}


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """A second process of a name is not born while the first lives, whoever asks; what cannot be imported
    says so in its own log."""
    (tmp_path / "forever.py").write_text(SLEEPER)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def birth(name: str, module: str) -> Birth:
        return Birth(name, module, (), {}, str(tmp_path / f"{name}.log"), str(tmp_path / f"{name}.lock"))

    with (tmp_path / "server.log").open("wb") as output:
        first, second = (ForkServer(["nowhere"], environ, output) for _ in range(2))
    try:
        pid = first.start(birth("one", "forever"))
        assert pid is not None
        assert lock_holder(tmp_path / "one.lock") == pid
        assert second.start(birth("one", "forever")) is None
        other = second.start(birth("two", "nowhere"))
        assert other is not None
        wait(lambda: "No module named nowhere" in (tmp_path / "two.log").read_text())
        assert first.loaded()
        assert "nowhere cannot be imported" in (tmp_path / "server.log").read_text()
        os.kill(pid, signal.SIGKILL)
        wait(lambda: lock_holder(tmp_path / "one.lock") is None)
        again = second.start(birth("one", "forever"))
        assert again is not None
        os.kill(again, signal.SIGKILL)
    finally:
        first.close()
        second.close()


def wait(holds: Callable[[], bool], deadline_s: float = 15) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_only_one_supervisor_at_a_time(daemon: Daemon) -> None:
    """A second supervisor of the same state folder leaves at once and touches nothing."""
    first = daemon.start(sink_fraud=SLEEPER)
    before = daemon.until(running("sink-fraud"))
    assert supervisor.supervisor_pid(daemon.home) == first.pid
    second = daemon.start(sink_fraud=SLEEPER)
    assert second.wait(timeout=10) == 9
    assert daemon.processes() == before


@pytest.mark.parametrize(("code", "state"), [(3, State.FENCED), (4, State.REFUSED)])
def test_a_process_that_must_rest_is_not_started_again(daemon: Daemon, code: int, state: State) -> None:
    """Exit codes 3 and 4 are shown and stay, until an operator asks for another try."""
    popen = daemon.start(processor_fleet=f"import sys; sys.exit({code})")
    daemon.until(lambda p: p.get("processor-fleet") is not None and p["processor-fleet"].state is state)
    time.sleep(3 * supervisor.BACKOFF_FIRST_S)
    found = daemon.processes()["processor-fleet"]
    assert (found.restarts, found.last_exit, found.pid) == (0, code, None)
    popen.send_signal(signal.SIGHUP)
    daemon.until(lambda p: p["processor-fleet"].restarts == 1 and p["processor-fleet"].state is state)


def test_restarts_are_spaced_out(daemon: Daemon) -> None:
    """A process that dies at once is tried after 0.5 s, then after 1 s, then after 2 s."""
    began = time.monotonic()
    daemon.start(sink_orders="raise SystemExit(1)")
    daemon.until(lambda p: "sink-orders" in p and p["sink-orders"].restarts == 2)
    assert time.monotonic() - began >= 1.5
    time.sleep(1)
    assert daemon.processes()["sink-orders"].restarts == 2


def test_stop_ends_every_process_those_that_write_first(daemon: Daemon, tmp_path: Path) -> None:
    """Stopping ends connectors before sinks, kills what does not listen, and leaves no process behind."""
    note = "import pathlib, signal, sys, time\n"
    note += "def bye(*_):\n    open({path!r}, 'a').write({name!r}); sys.exit(0)\n"
    note += "signal.signal(signal.SIGTERM, bye)\ntime.sleep(600)"
    path = str(tmp_path / "order")
    daemon.start(
        sink_fraud=note.format(path=path, name="sink "),
        api_all=STUBBORN,
        connector_gateway=note.format(path=path, name="connector "),
    )
    daemon.until(running("sink-fraud", "api-all", "connector-gateway"))
    time.sleep(0.5)  # until the children have set their handlers
    pids = [p.pid for p in daemon.processes().values()]
    supervisor.stop(Settings({SETTINGS["home"].variable: str(tmp_path)}))
    assert daemon.started[0].wait(timeout=5) == 0
    assert (tmp_path / "order").read_text() == "connector sink "
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)
    assert {p.state for p in daemon.processes().values()} == {State.STOPPED}


def test_stop_also_ends_what_a_killed_supervisor_left(daemon: Daemon, tmp_path: Path) -> None:
    """Without a supervisor, `stop` finds the processes by their locks and ends them."""
    first = daemon.start(sink_fraud=SLEEPER)
    daemon.until(running("sink-fraud"))
    first.kill()
    first.wait()
    assert supervisor.supervisor_pid(tmp_path) is None
    supervisor.stop(Settings({SETTINGS["home"].variable: str(tmp_path)}))
    assert supervisor.living(tmp_path) == {}


def test_nothing_starts_before_prepare_has_succeeded(daemon: Daemon, tmp_path: Path) -> None:
    """A failing prepare is repeated, and its processes wait for it."""
    prepare = (
        f"import pathlib, sys; p = pathlib.Path({str(tmp_path / 'tries')!r}); "
        "n = len(p.read_text()) if p.exists() else 0; p.write_text('x' * (n + 1)); sys.exit(n == 0)"
    )
    daemon.start(prepare, sink_fraud=SLEEPER)
    found = daemon.until(lambda p: bool(p))
    assert found["sink-fraud"].state is State.WAITING
    daemon.until(running("sink-fraud"))
    assert (tmp_path / "tries").read_text() == "xx"


def test_a_long_log_is_turned_over(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A log beyond its size is copied to .1 and goes on empty, though its writer keeps it open."""
    monkeypatch.setattr(supervisor, "LOG_MOST_BYTES", 10)
    path = tmp_path / "sink-fraud.log"
    with path.open("a") as writer:
        writer.write("before the turn\n")
        writer.flush()
        supervisor._rotate(path)
        writer.write("after\n")
    assert path.read_text() == "after\n"
    assert (tmp_path / "sink-fraud.log.1").read_text() == "before the turn\n"


def test_several_processes_of_a_service_have_ports_of_their_own() -> None:
    """Three APIs are three names at three ports, none of them the one that they share; a single one has that
    itself; how many there may be is said."""
    settings = Settings({"MILLRACE_API_PROCESSES": "3"})
    found = [s for s in specs(settings, PIPELINES, native=True) if s.role == "api"]
    assert [s.name for s in found] == ["api-all", "api-all-1", "api-all-2"]
    assert tuple(s.port for s in found) == settings.http_ports("api")
    every = specs(settings, PIPELINES, native=True)
    assert len({s.port for s in every} | {settings.port(PORT_API)}) == len(every) + 1
    (alone,) = (s for s in specs(Settings({}), PIPELINES, native=True) if s.role == "api")
    assert alone.port == settings.port(PORT_API)
    for count in ("0", "11"):
        with pytest.raises(SettingError, match="MILLRACE_GATEWAY_PROCESSES is"):
            specs(Settings({"MILLRACE_GATEWAY_PROCESSES": count}), PIPELINES, native=True)
