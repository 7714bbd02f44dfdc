"""Services that a case may kill or fill the disks of: one instance for all cases, apart from other tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.codec import Codec
from infra.postgres import migrate
from infra.services.native import NativeServices
from infra.services.postgres import Postgres
from infra.settings import PORT_REGISTRY, Settings
from tests.conftest import HOME, PORT_BASE, await_answer

DISK_BYTES = 1 << 30


def pytest_report_header() -> str:
    return f"MILLRACE_FAULTS_SEED={os.environ.get('MILLRACE_FAULTS_SEED', '1')}"


@pytest.fixture(scope="session")
def seed() -> int:
    """What all randomness of the cases comes from; the same seed repeats them."""
    return int(os.environ.get("MILLRACE_FAULTS_SEED", "1"))


@dataclass
class Services:
    """Kafka and Postgres, each on a small file system of its own."""

    settings: Settings
    codec: Codec
    native: NativeServices

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a service's process and wait until it is gone."""
        component = next(c for c in self.native.components if c.name == name)
        process = self.native.process(component)
        pid = process.pid()
        assert pid is not None
        os.kill(pid, number)
        end = time.monotonic() + 30
        while process.pid() is not None:
            assert time.monotonic() < end
            time.sleep(0.02)

    def heal(self) -> None:
        """Start what does not run, as whoever watches the services would."""
        self.native.up(progress=lambda line: None)

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """Fill the disk under `kafka` or `postgres` to the last byte; free again at the end."""
        filler = self.disks()[name] / "filler"
        with filler.open("wb") as file:
            step = 1 << 20
            while step >= 512:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), step)
                    file.seek(step, os.SEEK_CUR)
                except OSError:
                    step //= 2
        try:
            yield
        finally:
            filler.unlink()

    def disks(self) -> dict[str, Path]:
        """Where the two file systems are mounted."""
        return {
            "kafka": self.settings.home_path / "kafka" / "data",
            "postgres": Postgres(self.settings).cluster,
        }


@pytest.fixture(scope="session")
def faulty() -> Iterator[Services]:
    """The instance, running, with its registry; nothing of it is left at the end."""
    settings = Settings(
        {
            **os.environ,
            "MILLRACE_HOME": str(HOME.parent / "test-faults"),
            "MILLRACE_PORT_BASE": str(int(PORT_BASE) + 300),
            "MILLRACE_SERVICES": "native",
        }
    )
    assert os.geteuid() == 0, "the fault cases mount file systems of their own; run `make faults` as root"
    services = Services(settings, Codec(settings.schema_registry_url), NativeServices(settings))
    registry = None
    try:
        _clear(services)
        services.heal()
        services.native.down(purge=False, progress=lambda line: None)
        for at in services.disks().values():
            _move_to_own_disk(at)
        services.heal()
        state = str(settings.home_path / "registry")
        argv = ("--port", str(settings.port(PORT_REGISTRY)), "--state-dir", state)
        registry = subprocess.Popen((sys.executable, "-m", "schemas.registry", *argv))
        await_answer(f"{settings.schema_registry_url}/subjects")
        migrate(settings.database_url)
        with closing(services.codec):
            yield services
    finally:
        if registry is not None:
            registry.terminate()
            registry.wait(10)
        _clear(services)


def _move_to_own_disk(at: Path) -> None:
    aside = at.with_name(at.name + "-aside")
    at.rename(aside)
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "millrace-faults", at], check=True)
    shutil.copystat(aside, at)
    os.chown(at, aside.stat().st_uid, aside.stat().st_gid)
    subprocess.run(["cp", "-a", f"{aside}/.", at], check=True)
    shutil.rmtree(aside)


def _clear(services: Services) -> None:
    services.native.down(purge=True, progress=lambda line: None)
    for at in services.disks().values():
        while os.path.ismount(at):
            subprocess.run(["umount", at], check=True)
    shutil.rmtree(services.settings.home_path, ignore_errors=True)
