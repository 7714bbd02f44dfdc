"""Detached processes that outlive the command which started them, each known by its pid file.

A pid alone does not name a process: numbers are used again. The pid file therefore also holds the boot id
and the process's start time, and nothing is signalled unless both still match.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """One process of this boot; equal identities are the same process."""

    pid: int
    started_ticks: int
    boot_id: str


def identify(pid: int) -> Identity | None:
    """The living process that has `pid` now; None where there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in parentheses and may itself hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Identity(pid, int(fields[19]), boot_id)


@dataclass(frozen=True)
class Detached:
    """The process that `pid_file` stands for."""

    pid_file: Path

    def pid(self) -> int | None:
        """Its pid while exactly that process lives, otherwise None."""
        identity = self._recorded()
        return identity.pid if identity and identify(identity.pid) == identity else None

    def start(
        self,
        command: Sequence[str],
        log: Path,
        *,
        user: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> int:
        """Starts `command` in a session of its own, its output appended to `log`, and records it.

        `user` needs root. Raises `OSError` if the program cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",  # a folder that the user may enter, and that may be deleted later
                env=environ,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        # Whoever starts and then waits for long (a test, the demo) must not keep zombies.
        threading.Thread(target=process.wait, daemon=True).start()
        identity = identify(process.pid)
        if identity:
            part = self.pid_file.with_suffix(".part")
            part.write_text(json.dumps(identity.__dict__))
            part.replace(self.pid_file)
        return process.pid

    def stop(self, number: signal.Signals, timeout_s: float) -> bool:
        """Signals the process and waits; kills it after `timeout_s`. False if it had to be killed."""
        gentle = True
        deadline = time.monotonic() + timeout_s
        self._signal(number)
        while self.pid() is not None:
            if gentle and time.monotonic() > deadline:
                gentle = False
                self._signal(signal.SIGKILL)
            time.sleep(0.02)
        self.pid_file.unlink(missing_ok=True)
        return gentle

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def _recorded(self) -> Identity | None:
        try:
            return Identity(**json.loads(self.pid_file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            # A torn or foreign file names no process; it is overwritten by the next start.
            return None
