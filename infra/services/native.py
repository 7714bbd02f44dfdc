"""The real components as processes of this machine: Kafka, PostgreSQL, Redis and Mosquitto on loopback."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from infra.services import Progress, ServiceError, ServiceStatus
from infra.services.component import Component
from infra.services.kafka import Kafka
from infra.services.mosquitto import Mosquitto
from infra.services.postgres import Postgres
from infra.services.probe import ProbeError
from infra.services.processes import Detached
from infra.services.redis import RedisServer
from infra.settings import Settings

T = TypeVar("T")

COMPONENTS: tuple[type[Component], ...] = (Kafka, Postgres, RedisServer, Mosquitto)


class NativeServices:
    """`Services` without Docker; each component is detached and outlives the command."""

    kind: Literal["native"] = "native"

    def __init__(self, settings: Settings, components: Sequence[Component] | None = None) -> None:
        self.settings = settings
        self.components = components or [component(settings) for component in COMPONENTS]

    def up(self, progress: Progress) -> None:
        """See `Services.up`. Components start in parallel; one that fails leaves the others running."""
        with self._one_at_a_time():
            self._each(lambda component: self._start(component, progress))

    def down(self, purge: bool, progress: Progress) -> None:
        """See `Services.down`."""
        if not self.settings.home_path.exists():
            return
        with self._one_at_a_time():
            self._each(lambda component: self._stop(component, progress))
            if purge:
                for component in self.components:
                    component.purge()
                for name in ("secrets", "logs", "audit", "ledger"):
                    shutil.rmtree(self.settings.home_path / name, ignore_errors=True)
        if purge:
            shutil.rmtree(self.settings.home_path / "run", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.settings.home_path.rmdir()

    def status(self) -> list[ServiceStatus]:
        """See `Services.status`."""
        return self._each(self._status)

    def process(self, component: Component) -> Detached:
        """The component's process, running or not."""
        return Detached(self.settings.home_path / "run" / f"{component.name}.pid")

    def _status(self, component: Component) -> ServiceStatus:
        pid = self.process(component).pid()
        if pid is None:
            return ServiceStatus(component.name, "stopped", component.address(), "not running")
        try:
            return ServiceStatus(component.name, "running", component.address(), component.probe(), pid)
        except ProbeError as error:
            return ServiceStatus(component.name, "failing", component.address(), str(error), pid)

    def _start(self, component: Component, progress: Progress) -> None:
        process = self.process(component)
        began = time.monotonic()
        if process.pid() is None:
            self._check_ports(component)
            component.prepare()
            progress(f"starting {component.name} on {component.address()}")
            log = self.settings.home_path / "logs" / f"{component.name}.log"
            process.start(component.command(), log, user=component.user(), environ=component.environ())
        else:
            component.check_running()
            with contextlib.suppress(ProbeError):
                component.probe()
                component.complete()
                return
        self._await(component, process)
        progress(f"{component.name} is ready after {time.monotonic() - began:.1f} s")

    def _await(self, component: Component, process: Detached) -> None:
        log = self.settings.home_path / "logs" / f"{component.name}.log"
        deadline = time.monotonic() + component.start_timeout_s
        reason = "has not been asked yet"
        while time.monotonic() < deadline:
            if process.pid() is None:
                raise ServiceError(f"{component.name} ended while starting: {_last_words(log)}; see {log}")
            try:
                component.answers()
                component.complete()
                return
            except ProbeError as error:
                reason = str(error)
                time.sleep(0.1)
        raise ServiceError(
            f"{component.name} did not answer within {component.start_timeout_s:.0f} s ({reason}); "
            f"see {log}, then run `millrace down` and `millrace up`"
        )

    def _stop(self, component: Component, progress: Progress) -> None:
        process = self.process(component)
        if process.pid() is not None:
            progress(f"stopping {component.name}")
        if not process.stop(component.stop_signal, component.stop_timeout_s):
            progress(f"{component.name} did not stop within {component.stop_timeout_s:.0f} s and was killed")

    def _check_ports(self, component: Component) -> None:
        for port in component.ports:
            with socket.socket() as trial:
                # Without this, connections of the last run that are still closing look like an owner.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind(("127.0.0.1", port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                    base = self.settings.number("port_base")
                    raise ServiceError(
                        f"{component.name} needs port {port}, which {_owner(port)} uses; stop that, "
                        f"or choose other ports, for example MILLRACE_PORT_BASE={base + 1000}"
                    ) from None

    def _each(self, act: Callable[[Component], T]) -> list[T]:
        with ThreadPoolExecutor(len(self.components)) as pool:
            return [
                future.result() for future in [pool.submit(act, component) for component in self.components]
            ]

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Two commands at once would both find nothing running and start everything twice."""
        run = self.settings.home_path / "run"
        run.mkdir(parents=True, exist_ok=True)
        with (run / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _owner(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    words = " ".join([line.strip() for line in lines if line.strip()][-3:])
    return words[-400:] or "it wrote no log"
