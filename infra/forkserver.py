"""A process that has imported everything once, and forks the platform's processes from there.

Each would otherwise spend seconds of processor time on the same imports, at every start and after every
kill; forked ones run at once and share the pages. (The idea: Python's `multiprocessing.forkserver`. That one
takes its children for dead when it is itself killed, and a supervisor would then start them twice.)

Requests and answers are lines of JSON on its stdin and stdout. Children are grandchildren by birth: when
the middle one ends, the nearest subreaper, that is the supervisor, becomes their parent and learns their
exit codes. It ends when its stdin does; its children live on.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import setproctitle

from infra.arrow import without_pandas

log = logging.getLogger(__name__)

ANSWER_S = 5.0
_SET_CHILD_SUBREAPER = 36
"""prctl(2)."""


def adopt_orphans() -> None:
    """Become the parent of what the fork server's children leave behind (`PR_SET_CHILD_SUBREAPER`)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def lock_holder(path: Path) -> int | None:
    """The pid of who holds the record lock on a file, or None. Asks without taking the lock itself:
    a process that starts at this moment would take the question for another owner."""
    try:
        with path.open("rb") as handle:
            asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(handle, fcntl.F_GETLK, asked)
    except FileNotFoundError:
        return None
    kind, _, _, _, pid = struct.unpack("hhqqi", answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


@dataclass(frozen=True)
class Birth:
    """What a child becomes: `python -m module arguments`, with `environ` added, its output in `log`.

    It holds the record lock on `lock` until it dies, whoever asks for it then: one at a time has a name.
    """

    name: str
    module: str
    arguments: Sequence[str]
    environ: Mapping[str, str]
    log: str
    lock: str


class ForkServer:
    """The server as its supervisor sees it. `modules` are imported before it says that it is `loaded`."""

    def __init__(self, modules: Sequence[str], environ: Mapping[str, str], output: IO[bytes] | int) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-m", "infra.forkserver", *modules),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            # Room for a title is taken from argv alone: /proc/PID/environ goes on telling the truth.
            env={**environ, "SPT_NOENV": "1"},
        )
        self._read = b""
        self._loaded = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def loaded(self) -> bool:
        """Whether all modules are imported. Never waits."""
        if not self._loaded:
            self._loaded = self._line(0.0) is not None
        return self._loaded

    def start(self, birth: Birth) -> int | None:
        """The pid of a new process, or None if another one holds the name.

        Raises `OSError` where the server does not answer; it is ended then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(birth.__dict__).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._line(ANSWER_S)
            while answer is not None and "loaded" in answer:
                self._loaded = True
                answer = self._line(ANSWER_S)
        except OSError:
            self.close()
            raise
        if answer is None:
            self.close()
            raise OSError(f"the fork server did not start {birth.name} within {ANSWER_S:.0f} s")
        return answer["pid"]

    def close(self) -> None:
        """End the server. What it has started lives on."""
        self._process.kill()
        self._process.communicate()

    def _line(self, seconds: float) -> dict[str, int | None] | None:
        """The next line of the server, or None if there is none within `seconds`."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise OSError("the fork server has ended")
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, int | None] = json.loads(line)
        return found


def serve(modules: Sequence[str]) -> None:
    """Answer requests until stdin ends, importing `modules` in between."""
    without_pandas()
    waiting = list(modules)
    loaded = False
    while True:
        if loaded or select.select([0], [], [], 0)[0]:
            request = _read_line(0)
            if not request:
                return
            _fork(Birth(**json.loads(request)))
        elif waiting:
            _load(waiting.pop(0))
        else:
            if threading.active_count() > 1:
                log.error("no child will have the threads of an import: %s", threading.enumerate())
            # What is there now is nobody's garbage: a collection in a child must not copy every page.
            gc.collect()
            gc.freeze()
            loaded = True
            _write(1, {"loaded": 1})


def _load(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit):
        # Who needs it says so itself, in its own log and with its own exit code.
        log.exception("%s cannot be imported", module)


def _fork(birth: Birth) -> None:
    born, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork():
            os._exit(0)
        os.close(born)
        _become(birth, tell)
    os.close(tell)
    answer = _read_line(born)  # nothing where it died before it had its lock
    os.close(born)
    # Only then: the supervisor is the parent by now, and will learn the exit code.
    os.waitpid(middle, 0)
    os.write(1, answer or b'{"pid": null}\n')


def _become(birth: Birth, tell: int) -> NoReturn:
    """What the child does, until the interpreter ends as it would after `python -m module`."""
    lock = os.open(birth.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os._exit(1)
    os.setsid()
    output = os.open(birth.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)
    _write(tell, {"pid": os.getpid()})
    os.close(tell)
    # First the title: it finds its place by an environment that nobody has changed yet.
    setproctitle.setproctitle(f"millrace {birth.name}")
    os.environ.update(birth.environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger().handlers.clear()
    sys.argv = [birth.module, *birth.arguments]
    runpy.run_module(birth.module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _read_line(descriptor: int) -> bytes:
    """One line, or nothing at the end of the input."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


def _write(descriptor: int, document: Mapping[str, int | None]) -> None:
    os.write(descriptor, json.dumps(document).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve(sys.argv[1:])
