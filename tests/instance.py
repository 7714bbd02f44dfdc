"""An instance of the whole platform beside the tests' services, driven through the command line alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from infra.settings import SETTINGS, Settings
from tests.conftest import HOME, PORT_BASE

_ADDRESSES = {SETTINGS[n].variable for n in SETTINGS if n.endswith(("_url", "_servers"))}


def millrace(settings: Settings, *arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
    """A run of the command in the instance's environment, of at most so many seconds."""
    command = [sys.executable, "-m", "infra.cli", *arguments]
    return subprocess.run(command, env=settings.environ, text=True, capture_output=True, timeout=seconds)


def processes(settings: Settings) -> list[dict[str, Any]]:
    """What `millrace ps` lists."""
    listed: list[dict[str, Any]] = json.loads(millrace(settings, "ps", "--json").stdout)
    return listed


@contextmanager
def running(name: str, offset: int, *options: str) -> Iterator[Settings]:
    """A fresh instance with all processes ready, `offset` ports above the tests'; purged at the end.

    `options` are those of `millrace up`.
    """
    environ = {
        **{k: v for k, v in os.environ.items() if k not in _ADDRESSES},
        "MILLRACE_HOME": str(HOME.parent / f"test-{name}"),
        "MILLRACE_PORT_BASE": str(int(PORT_BASE) + offset),
    }
    settings = Settings(environ)
    millrace(settings, "down", "--purge")  # what a killed session left
    try:
        up = millrace(settings, "up", *options)
        assert up.returncode == 0, up.stderr
        yield settings
    finally:
        down = millrace(settings, "down", "--purge")
    assert down.returncode == 0, down.stderr
