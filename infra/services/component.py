"""What the native services have in common: a program, its ports, its folder, its question."""

from __future__ import annotations

import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.services import ServiceError
from infra.settings import Settings


def program(name: str, what: str) -> str:
    """The path of an installed program; raises `ServiceError` with the remedy."""
    # Debian keeps daemons in sbin, which is not on an ordinary user's PATH.
    path = shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    )
    if path is None:
        raise ServiceError(f"{what} is not installed ({name} is not on the PATH); run `make setup`")
    return path


class Component(ABC):
    """One native service. `NativeServices` calls prepare, command, answers until it no longer raises,
    then complete."""

    name: str
    stop_signal = signal.SIGTERM
    stop_timeout_s = 30.0
    start_timeout_s = 180.0
    """Generous: on a busy machine a first start takes half a minute; an end is told at once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.home_path / self.name

    @property
    @abstractmethod
    def ports(self) -> tuple[int, ...]:
        """The loopback ports it listens on; the first is the one that clients use."""

    @abstractmethod
    def prepare(self) -> None:
        """Writes its configuration, and its empty data at the first start. Repeating it changes nothing.

        Raises `ServiceError` if something it needs is missing.
        """

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Starts it in the foreground."""

    @abstractmethod
    def probe(self) -> str:
        """What answers; raises `ProbeError`. Asks our own process, wherever the settings' URLs point."""

    def answers(self) -> None:
        """Raises `ProbeError` until the process takes requests; `complete` may run from then on."""
        self.probe()

    def complete(self) -> None:
        """What is made inside the running service before `up` returns. Repeating it changes nothing."""
        return

    def check_running(self) -> None:
        """Raises `ServiceError` where the process that runs was started by other settings than ours."""
        return

    def user(self) -> str | None:
        """The account to run as; None for our own."""
        return None

    def environ(self) -> Mapping[str, str] | None:
        """The environment of the process; None for our own."""
        return None

    def purge(self) -> None:
        """Deletes its data; called only while it is stopped."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self.ports[0]}"

    def write(self, name: str, text: str) -> Path:
        """Writes a configuration file into the folder, creating it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_text(text)
        return path
