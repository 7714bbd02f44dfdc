"""The services as containers, driven through `docker compose` and the `docker-compose.yml` at the top."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from infra.kafka_access import KafkaAccess
from infra.services import Progress, ServiceError, ServiceStatus, probe
from infra.services.credentials import ensure_secret
from infra.services.probe import ProbeError
from infra.settings import (
    PORT_GRAFANA,
    PORT_KAFKA,
    PORT_MQTT,
    PORT_POSTGRES,
    PORT_PROMETHEUS,
    PORT_REDIS,
    PORT_REGISTRY,
    SettingError,
    Settings,
)

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"

START_TIMEOUT_S = 300.0
"""From `compose up` until all answer; pulling images is not counted."""

# compose service -> (variable of its port, distance from the port base, question). No question: its health
# check alone decides.
CONTAINERS: dict[str, tuple[str, int, Callable[[str], str] | None]] = {
    "kafka": ("KAFKA_PORT", PORT_KAFKA, lambda address: probe.kafka(KafkaAccess(address))),
    "registry": ("REGISTRY_PORT", PORT_REGISTRY, lambda address: probe.registry(f"http://{address}")),
    "postgres": ("POSTGRES_PORT", PORT_POSTGRES, None),
    "redis": ("REDIS_PORT", PORT_REDIS, lambda address: probe.redis(f"redis://{address}/0")),
    "mosquitto": ("MQTT_PORT", PORT_MQTT, lambda address: probe.mqtt(f"mqtt://{address}")),
    "prometheus": (
        "PROMETHEUS_PORT",
        PORT_PROMETHEUS,
        lambda address: probe.http(f"http://{address}/-/ready"),
    ),
    "grafana": ("GRAFANA_PORT", PORT_GRAFANA, lambda address: probe.http(f"http://{address}/api/health")),
}


def compose_command() -> list[str] | None:
    """`docker compose`, or the older `docker-compose`; None where neither is installed."""
    if shutil.which("docker"):
        found = subprocess.run(["docker", "compose", "version"], capture_output=True)
        if found.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def daemon_answers() -> bool:
    """Whether a Docker daemon and compose can be used from here."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=10)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and compose_command() is not None


class DockerServices:
    """`Services` as one compose project per instance."""

    kind: Literal["docker"] = "docker"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Named after the state folder: two instances never share containers or volumes.
        self.project = "millrace-" + hashlib.sha256(str(settings.home_path).encode()).hexdigest()[:8]
        self.names = self.settings.text("docker_services").split()
        if unknown := set(self.names) - set(CONTAINERS):
            raise SettingError(
                f"MILLRACE_DOCKER_SERVICES names {', '.join(sorted(unknown))}, which docker-compose.yml "
                f"does not have; choose among {' '.join(CONTAINERS)}"
            )

    def up(self, progress: Progress) -> None:
        """See `Services.up`."""
        ensure_secret(self.settings, "postgres")
        # The supervisor's file comes into it; what compose has to create belongs to root.
        self.settings.prometheus_targets.mkdir(parents=True, exist_ok=True)
        progress(f"docker compose up, project {self.project} (the first time pulls images)")
        self._compose("up", "-d", "--remove-orphans", *self.names)
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = set(self.names)
        while waiting:
            for status in self.status():
                if status.name in waiting and status.state == "running":
                    waiting.discard(status.name)
                    progress(f"{status.name} is ready: {status.detail}")
                elif time.monotonic() > deadline and status.name in waiting:
                    raise ServiceError(
                        f"{status.name} did not answer within {START_TIMEOUT_S:.0f} s ({status.detail}); "
                        f"see `docker logs {status.container or status.name}`"
                    )
            time.sleep(0.5 if waiting else 0)

    def down(self, purge: bool, progress: Progress) -> None:
        """See `Services.down`; with `purge`, also removes the named volumes."""
        progress(f"docker compose down, project {self.project}")
        self._compose("down", "--remove-orphans", *(["--volumes"] if purge else []))
        if purge:
            for name in ("secrets", "logs", "audit", "ledger", "run"):
                shutil.rmtree(self.settings.home_path / name, ignore_errors=True)

    def status(self) -> list[ServiceStatus]:
        """See `Services.status`."""
        listed = run_docker(
            "ps",
            "--filter",
            f"label=com.docker.compose.project={self.project}",
            "--format",
            '{{.Label "com.docker.compose.service"}} {{.ID}}',
        )
        containers = dict(line.split() for line in listed.splitlines())
        return [self._status(name, containers.get(name)) for name in self.names]

    def ask(self, name: str) -> str:
        """What answers at a service's published port; raises `ProbeError`."""
        _, offset, ask = CONTAINERS[name]
        address = f"127.0.0.1:{self.settings.port(offset)}"
        return ask(address) if ask else self._ask_postgres(address)

    def environ(self) -> dict[str, str]:
        """What docker-compose.yml is read with: this instance's ports, password and folders."""
        return {
            # docker-compose 1 gives up on an answer after 60 s; a daemon that copies images (vfs) is slower.
            "COMPOSE_HTTP_TIMEOUT": f"{START_TIMEOUT_S:.0f}",
            **os.environ,
            **{variable: str(self.settings.port(offset)) for variable, offset, _ in CONTAINERS.values()},
            # `down` reads the file too, when there may be no secret yet.
            "POSTGRES_PASSWORD": self.settings.secret("postgres") or "none",
            "PROMETHEUS_TARGETS": str(self.settings.prometheus_targets),
        }

    def _status(self, name: str, container: str | None) -> ServiceStatus:
        address = f"127.0.0.1:{self.settings.port(CONTAINERS[name][1])}"
        if container is None:
            return ServiceStatus(name, "stopped", address, "no container")
        try:
            return ServiceStatus(name, "running", address, self.ask(name), container=container)
        except ProbeError as error:
            return ServiceStatus(name, "failing", address, str(error), container=container)

    def _ask_postgres(self, address: str) -> str:
        url = f"postgresql://millrace:{self.settings.secret('postgres')}@{address}/millrace"
        try:
            return probe.postgres(url)
        except ProbeError:
            probe.select_one(url)
        # It answers, so only the extension is missing: the image ships it, but creates it in no database.
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS postgis")
        return probe.postgres(url)

    def _compose(self, *arguments: str) -> str:
        command = compose_command()
        if command is None:
            raise ServiceError(
                "docker compose is not installed; install the package docker-compose, "
                "or set MILLRACE_SERVICES=native"
            )
        return _run(
            [*command, "-p", self.project, "-f", str(COMPOSE_FILE), *arguments],
            f"{' '.join(command)} {arguments[0]}",
            self.environ(),
        )


def run_docker(*arguments: str) -> str:
    """What a docker command prints; raises `ServiceError` with the reason."""
    return _run(["docker", *arguments], f"docker {arguments[0]}", dict(os.environ))


def _run(command: list[str], name: str, environ: dict[str, str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environ, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(str(getattr(error, "stderr", error)).split()[-60:])
        raise ServiceError(
            f"`{name}` failed: {reason}; repair that, or set MILLRACE_SERVICES=native to run without Docker"
        ) from None
