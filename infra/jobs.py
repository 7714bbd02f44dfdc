"""Commands of `millrace` started without a terminal: what they print and how they end are files.

So any process can show them, and they outlive the one that started them. A job is a folder
`<home>/jobs/<name>/<n>` with `job.json`, `out`, `err` and, once it has ended, `rc`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from infra.audit.shell import acting_for
from infra.identity.principal import Principal
from infra.settings import Settings

MOST_KEPT = 20
"""Of each name; older ones are deleted when a new one starts."""
MOST_BYTES = 1 << 20
"""How much of an output is read, from its end."""
_RUN = '"$@" >"$0/out" 2>"$0/err"; code=$?; echo $code >"$0/rc.part"; mv "$0/rc.part" "$0/rc"'


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command as it was started. `name` groups what must not run twice at once, as `replay-7`."""

    name: str
    number: int
    arguments: tuple[str, ...]
    started_by: str
    started_at: datetime
    pid: int
    born: float
    folder: Path

    @property
    def command(self) -> str:
        """As one would type it."""
        return " ".join(("millrace", *self.arguments))

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, and -1 where it was killed."""
        try:
            return int((self.folder / "rc").read_text())
        except (FileNotFoundError, ValueError):
            return None if self._alive else -1

    @property
    def running(self) -> bool:
        return self.code is None

    @property
    def output(self) -> str:
        """What it printed, from the end."""
        return _tail(self.folder / "out")

    @property
    def told(self) -> list[str]:
        """Lines for people: progress, and why it failed."""
        return _tail(self.folder / "err").splitlines()

    def stop(self) -> None:
        """Ask it to end: SIGTERM to all its processes."""
        if self.running:
            try:
                os.killpg(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass

    @property
    def _alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.born) < 2.0
        except psutil.Error:
            return False


class JobRuns(RuntimeError):
    """A job of this name runs already; the message says which."""


def start(settings: Settings, name: str, arguments: Sequence[str], by: Principal) -> Job:
    """Start `millrace ARGUMENTS` in a session of its own, told in the audit log as what `by` does.

    Raises `JobRuns`.
    """
    before = listed(settings, name)
    if before and before[0].running:
        raise JobRuns(f"`{before[0].command}` runs; wait for its end")
    for old in before[MOST_KEPT - 1 :]:
        _delete(old.folder)
    number = before[0].number + 1 if before else 1
    folder = _folder(settings, name) / str(number)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise JobRuns(f"somebody else has just started {name}; look at it first") from None
    process = subprocess.Popen(
        ("/bin/sh", "-c", _RUN, str(folder), sys.executable, "-m", "infra.cli", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**_environ(settings), **acting_for(by)},
        start_new_session=True,
    )
    _reap_later(process)
    job = Job(
        name=name,
        number=number,
        arguments=tuple(arguments),
        started_by=by.subject,
        started_at=datetime.now(UTC),
        pid=process.pid,
        born=time.time(),
        folder=folder,
    )
    stored = {k: v for k, v in asdict(job).items() if k != "folder"}
    partial = folder / "job.part"
    partial.write_text(json.dumps(stored, default=datetime.isoformat))
    partial.replace(folder / "job.json")
    return job


def run(
    settings: Settings, arguments: Sequence[str], given: str, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run `millrace ARGUMENTS`, which is short, with text on its stdin. Raises `TimeoutExpired`."""
    command = (sys.executable, "-m", "infra.cli", *arguments)
    return subprocess.run(
        command,
        env=_environ(settings, own=True),
        input=given,
        text=True,
        capture_output=True,
        timeout=seconds,
    )


def listed(settings: Settings, name: str) -> list[Job]:
    """The jobs of a name, the newest first."""
    folder = _folder(settings, name)
    numbers = sorted((int(p.parent.name) for p in folder.glob("[0-9]*/job.json")), reverse=True)
    return [job for n in numbers if (job := _read(folder / str(n))) is not None]


def _environ(settings: Settings, *, own: bool = False) -> dict[str, str]:
    """`own`: to a secured broker the command is the process that starts it, and not the operator."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, settings.environ.get("PYTHONPATH"))))
    environ = (settings if own else settings.as_operator()).environ
    return {**environ, "PYTHONPATH": path, "MILLRACE_HOME": str(settings.home_path)}


def _read(folder: Path) -> Job | None:
    try:
        stored = json.loads((folder / "job.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    started_at = datetime.fromisoformat(stored["started_at"])
    return Job(
        **{**stored, "arguments": tuple(stored["arguments"]), "started_at": started_at, "folder": folder}
    )


def _folder(settings: Settings, name: str) -> Path:
    return settings.home_path / "jobs" / name


def _delete(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _reap_later(process: subprocess.Popen[bytes]) -> None:
    """Wait for the child in a thread: unreaped it would stay a zombie for as long as its parent lives."""
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MOST_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
