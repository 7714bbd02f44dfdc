"""Processes of ours that a test starts, stops, kills and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).parents[3]


def until(holds: Callable[[], object], what: str, seconds: float = 40) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


class Process:
    """`python -m module …`, with its words in a file."""

    def __init__(self, module: str, environ: Mapping[str, str], log: Path) -> None:
        self._command = [sys.executable, "-m", *module.split()]
        self._environ = {**os.environ, **environ, "PYTHONPATH": str(ROOT)}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it where it does not run."""
        if self._process is None:
            with self._log.open("ab") as words:
                self._process = subprocess.Popen(
                    self._command, env=self._environ, cwd=ROOT, stdout=words, stderr=words
                )
        return self

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None


class Gateway(Process):
    """A gateway at a port of its own."""

    def __init__(self, environ: Mapping[str, str], log: Path, port: int, headers: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        super().__init__("connectors gateway", {**environ, "GATEWAY_URL": self.url}, log)
        self.headers = dict(headers)

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        super().start()
        until(self._answers, f"{self.url} answers")
        return self

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, trust_env=False, timeout=40)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/live", trust_env=False, timeout=2).status_code == 200
        except httpx.TransportError:
            return False
