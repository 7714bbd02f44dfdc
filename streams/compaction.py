"""Snapshots of state that are made beside its owner: from the stored chunks, by a process of its own.

Made by the owner itself, a snapshot would hold up every record for as long as it takes. This process loads
what is stored and stores the same state in one piece; meanwhile the owner decides on, and adds its deltas
behind it. Each processor that needs one starts one, and it ends with the processor.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress

import psycopg

from infra.checkpoints import Checkpoints, TopicPartition
from infra.postgres import Connection, connect
from infra.settings import Settings
from streams.decide import State
from streams.restore import restore

NICENESS = 5
"""Records come first."""
END_SECONDS = 10.0
RETRY_SECONDS = 30.0


class CompactionFailed(RuntimeError):
    """No snapshot was made, and nothing was changed; the message gives the reason."""


def compact(
    connection: Connection, checkpoints: Checkpoints, at: TopicPartition, new_state: Callable[[], State]
) -> int:
    """Store a partition's chunks as one snapshot; returns its bytes. Raises `CompactionFailed`."""

    def rewritten(chunks: Iterator[bytes]) -> list[bytes]:
        state = new_state()
        restore(state, chunks)
        return list(state.snapshot())

    size = checkpoints.compact(connection, at, rewritten)
    if size is None:
        raise CompactionFailed(f"{at} has no state, or was taken over meanwhile")
    return size


class Compactor:
    """The owner's side: asks for one snapshot at a time and never waits for it. Used from one thread."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command, self._environ = command, environ
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._not_before = 0.0

    @property
    def free(self) -> bool:
        """Whether `ask` may be called."""
        return not self._asked and time.monotonic() >= self._not_before

    def ask(self, at: TopicPartition) -> None:
        """Begin a snapshot of a partition."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, env=dict(self._environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        self._asked = True
        try:
            self._process.stdin.write(json.dumps([at.topic, at.partition]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: `answer` says so

    def answer(self) -> int | None:
        """The size of the snapshot that was asked for, in bytes; None while there is none yet.

        Raises `CompactionFailed`.
        """
        if not self._asked or self._process is None:
            return None
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], 0)[0]:
            return None
        line = out.readline()
        self._asked = False
        said = json.loads(line) if line.endswith(b"\n") else {"failed": "its process has died"}
        if "failed" in said:
            self._not_before = time.monotonic() + RETRY_SECONDS
            raise CompactionFailed(said["failed"])
        return int(said["bytes"])

    def close(self) -> None:
        """End the process, after the snapshot that is under way."""
        if self._process is None:
            return
        process, self._process = self._process, None
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what was asked of a dead one
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve(settings: Settings, processor: str, new_state: Callable[[], State]) -> None:
    """Make the snapshots that are asked for on standard input, until it ends."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to the whole terminal; the owner ends us
    checkpoints = Checkpoints(processor)
    for line in sys.stdin:
        try:
            with closing(connect(settings.database_url, f"{processor}-compaction")) as connection:
                size = compact(connection, checkpoints, TopicPartition(*json.loads(line)), new_state)
            answer: dict[str, object] = {"bytes": size}
        except (CompactionFailed, psycopg.Error) as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)  # noqa: T201 -- to the owner


def command(pipeline: str, processor: str) -> list[str]:
    """What serves a declared processor."""
    return [sys.executable, "-m", "streams.compaction", pipeline, processor]


if __name__ == "__main__":
    _logics = importlib.import_module(f"streams.{sys.argv[1]}").PROCESSORS
    serve(Settings.load(), sys.argv[2], _logics[sys.argv[2]]().new_state)
