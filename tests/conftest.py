"""What every test may use: an environment of its own, and one running instance of the real services."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.services import choose
from infra.settings import SETTINGS, Settings

HOME = Path(__file__).parents[1] / ".millrace" / "test"

PORT_BASE = os.environ.get("MILLRACE_TEST_PORT_BASE", "31000")
"""Below the ephemeral ports (32768 upwards), where any outgoing connection may sit on one of ours."""

KEPT = {"MILLRACE_SERVICES", "MILLRACE_CACHE", "MILLRACE_KAFKA_JVM"}
"""How the services run may be chosen by the calling shell; where they are may not."""


def pytest_configure() -> None:
    """Points this process, and all that it starts, to the test instance and to nothing else."""
    for setting in SETTINGS.values():
        if setting.variable not in KEPT:
            os.environ.pop(setting.variable, None)
    for variable in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[variable]
    os.environ["MILLRACE_HOME"] = str(HOME)
    os.environ["MILLRACE_PORT_BASE"] = PORT_BASE


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """The settings of an instance whose broker and databases run, empty at the start of the session."""
    settings = Settings.load()
    instance = choose(settings)
    instance.down(purge=True, progress=print)  # what a killed session left
    instance.up(progress=print)
    yield settings
    instance.down(purge=True, progress=print)
