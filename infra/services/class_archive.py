"""`python -m infra.services.class_archive`: Kafka's classes, read once and kept ready to map into memory.

A broker that maps them starts in about half the time (class data sharing, JEP 350). `make setup` runs this
once after it fetched the jars; a broker without the archive, or of another Java, starts as before.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.services.kafka import Kafka
from infra.services.native import NativeServices
from infra.settings import PORT_KAFKA, SETTINGS, Settings


class Archiving(Kafka):
    """A broker that leaves the archive behind when it stops."""

    def __init__(self, settings: Settings, archive: Path) -> None:
        super().__init__(settings)
        self._archive = archive

    def classes(self) -> Sequence[str]:
        return (f"-XX:ArchiveClassesAtExit={self._archive}",)


def main() -> None:
    """Start a broker of its own, stop it, and put its archive beside the jars."""
    settings = Settings.load()
    with tempfile.TemporaryDirectory() as home:
        names = {"home": home, "port_base": str(_free_ports() - PORT_KAFKA)}
        apart = Settings({**os.environ, **{SETTINGS[name].variable: value for name, value in names.items()}})
        wanted = Kafka(settings).archive()
        # Written elsewhere and renamed: another instance may be starting a broker from it now.
        part = wanted.with_name(f"{wanted.name}.{os.getpid()}")
        services = NativeServices(apart, [Archiving(apart, part)])
        services.up(lambda _: None)
        services.down(purge=False, progress=lambda _: None)
        with part.open("rb") as written:
            os.fsync(written.fileno())  # a truncated archive, unlike a strange one, would end the JVM
        part.replace(wanted)


def _free_ports() -> int:
    """The lower of two neighbouring ports that nobody uses."""
    for _ in range(100):
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port: int = low.getsockname()[1]
            try:
                high.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise OSError("found no two neighbouring free ports on 127.0.0.1")


if __name__ == "__main__":
    main()
