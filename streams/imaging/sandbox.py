"""Examining files in a child process with a limit of memory and of time.

The codecs are C libraries and the files come from anywhere. A file that crashes a codec, fills the memory
or never ends must cost its thumbnail or its place in the index, not the processor and all files behind it.
`main` is the child's.
"""

from __future__ import annotations

import os
import resource
import select
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import IO

import msgspec
import psutil

from streams.imaging.examine import Examined, Refused, examine

_LENGTH_BYTES = 8
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.1
_WALL_FACTOR = 6  # a child that sleeps uses no processor time and must end, too
_DECODER = msgspec.msgpack.Decoder(Examined | Refused)


class _Ended(Exception):
    """The child has ended, or was ended, before it answered."""


class SandboxFailed(RuntimeError):
    """The child cannot be started: a defect of the installation, not of a file."""


class Sandbox:
    """`examine` in a child process, which starts at the first file and again after one that ended it.

    A child may also be ended from outside, so the same bytes must end it twice before they are blamed:
    then their pixels are left alone, and if that does not help either, the file is refused.
    """

    def __init__(self, memory_bytes: int = 4 * 1024**3, seconds: float = 8.0) -> None:
        """`seconds` limits the child's own processor time for one file: a busy machine changes no answer."""
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None

    def examine(self, data: bytes) -> Examined | Refused:
        """As `streams.imaging.examine.examine`; may block for three times the limit of time."""
        limits = f"{self._memory_bytes // 1024**2} MiB of memory and {self._seconds:g} s of processor time"
        no_picture = f"the codec crashed on the pixel data or needed more than {limits}"
        for reason in (None, None, no_picture):
            try:
                return self._ask(data, reason)
            except _Ended:
                continue
        return Refused("file", f"reading it crashed or took more than {limits}; export it again and resend")

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            _end(self._child)
            self._child = None

    def _ask(self, data: bytes, no_picture: str | None) -> Examined | Refused:
        if self._child is None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        try:
            _send(child.stdin, (no_picture or "").encode())
            _send(child.stdin, data)
            answer: Examined | Refused = _DECODER.decode(
                _answer(child, self._seconds, self._seconds * _WALL_FACTOR)
            )
        except (_Ended, BrokenPipeError):
            self.close()
            raise _Ended from None
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from streams.imaging.sandbox import main; main()",
                str(self._memory_bytes),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            },
        )
        weakref.finalize(self, _end, child)
        assert child.stdout is not None
        # Importing the codecs is no file's fault: the limit of time begins when the child is ready.
        try:
            _answer(child, _START_SECONDS, _START_SECONDS)
        except _Ended:
            _end(child)
            raise SandboxFailed(
                f"the child that reads DICOM files does not start with {self._memory_bytes} bytes of memory; "
                "see its error above"
            ) from None
        return child


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not yet flushed to the child
                pass


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_LENGTH_BYTES, "big"))
    pipe.write(data)
    pipe.flush()


def _answer(child: subprocess.Popen[bytes], cpu_seconds: float, wall_seconds: float) -> bytes:
    """The child's next message. Raises `_Ended` where it dies, or exceeds one of the limits before."""
    assert child.stdout is not None
    descriptor, data, wanted = child.stdout.fileno(), bytearray(), _LENGTH_BYTES
    cpu_limit, deadline = _cpu_seconds(child) + cpu_seconds, time.monotonic() + wall_seconds
    while len(data) < wanted:
        if not select.select([descriptor], [], [], _LOOK_SECONDS)[0]:
            if _cpu_seconds(child) > cpu_limit or time.monotonic() > deadline:
                raise _Ended
            continue
        piece = os.read(descriptor, 1024 * 1024)
        if not piece:
            raise _Ended
        data += piece
        if wanted == _LENGTH_BYTES and len(data) >= _LENGTH_BYTES:
            wanted += int.from_bytes(data[:_LENGTH_BYTES], "big")
    return bytes(data[_LENGTH_BYTES:])


def _cpu_seconds(child: subprocess.Popen[bytes]) -> float:
    try:
        times = psutil.Process(child.pid).cpu_times()
    except psutil.NoSuchProcess:
        raise _Ended from None
    return float(times.user + times.system)


def _receive(pipe: IO[bytes]) -> bytes | None:
    length = pipe.read(_LENGTH_BYTES)
    return pipe.read(int.from_bytes(length, "big")) if len(length) == _LENGTH_BYTES else None


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say that all is imported, then answer until the parent closes its end."""
    _send(answers, b"ready")
    while (reason := _receive(requests)) is not None and (data := _receive(requests)) is not None:
        _send(answers, msgspec.msgpack.encode(examine(data, reason.decode() or None)))


def main() -> None:
    """The child: its one argument is the limit of memory in bytes."""
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # The answers keep the pipe; what a codec prints goes to the log.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
