"""Detached processes and their pid files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.services.processes import Detached, identify


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours to end."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_process_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    """A started process lives on when its starter has ended, in a session of its own, and can be stopped."""
    script = (
        "from pathlib import Path; from infra.services.processes import Detached;"
        f"folder = Path({str(tmp_path)!r});"
        "print(Detached(folder / 'p.pid').start(['sleep', '60'], folder / 'log'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    process = Detached(tmp_path / "p.pid")
    assert process.pid() == int(done.stdout)
    assert os.getsid(int(done.stdout)) == int(done.stdout)
    assert process.stop(signal.SIGTERM, timeout_s=10)
    assert identify(int(done.stdout)) is None
    assert not process.pid_file.exists()


def test_recycled_pid_is_not_killed(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    """A pid file whose number another process has now means "not running", and nothing is signalled."""
    identity = identify(bystander.pid)
    assert identity is not None
    process = Detached(tmp_path / "p.pid")
    for change in ({"started_ticks": identity.started_ticks - 1}, {"boot_id": "an earlier boot"}):
        process.pid_file.write_text(json.dumps({**identity.__dict__, **change}))
        assert process.pid() is None
        process.stop(signal.SIGKILL, timeout_s=1)
        assert bystander.poll() is None
        assert not process.pid_file.exists()


def test_ended_process_is_not_running(tmp_path: Path) -> None:
    """A process that ended by itself is not running, also while its starter lives."""
    process = Detached(tmp_path / "p.pid")
    pid = process.start(["sh", "-c", "echo said; exit 3"], tmp_path / "log")
    while identify(pid):
        pass
    assert process.pid() is None
    assert (tmp_path / "log").read_text() == "said\n"


@pytest.mark.parametrize("content", ["", "{", "17", '{"pid": 1}', "[]"])
def test_torn_pid_file_names_no_process(tmp_path: Path, content: str) -> None:
    """A pid file that was cut short is as good as none."""
    process = Detached(tmp_path / "p.pid")
    process.pid_file.write_text(content)
    assert process.pid() is None


def test_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    """`stop` ends a process that ignores its signal, and says that it had to."""
    process = Detached(tmp_path / "p.pid")
    pid = process.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], tmp_path / "log"
    )
    while not (tmp_path / "log").read_text():
        pass
    assert not process.stop(signal.SIGTERM, timeout_s=0.3)
    assert identify(pid) is None
