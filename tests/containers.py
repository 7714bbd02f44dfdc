"""The test session's services where Docker answers: testcontainers starts what docker-compose.yml has."""

from __future__ import annotations

import re
import shutil
import time
from contextlib import ExitStack
from typing import Any, Literal

import docker
import yaml
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from infra.services import Progress, ServiceError, ServiceStatus
from infra.services.credentials import ensure_secret
from infra.services.docker import COMPOSE_FILE, START_TIMEOUT_S, DockerServices
from infra.services.probe import ProbeError
from infra.settings import Settings

NAMES = ("kafka", "registry", "postgres", "redis", "mosquitto")
"""In this order: the registry keeps its state in Kafka."""

LABEL = "millrace.test"


class ContainerServices:
    """`Services` of one test session, on the instance's own ports; nothing of it outlives `down`."""

    kind: Literal["docker"] = "docker"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.services = DockerServices(settings)
        self.started = ExitStack()

    def up(self, progress: Progress) -> None:
        """See `Services.up`."""
        ensure_secret(self.settings, "postgres")
        # Ryuk is one more image to pull, and holds the daemon's socket; `down` does its work by our label.
        testcontainers_config.ryuk_disabled = True
        network = self.started.enter_context(
            Network(docker_network_kw={"labels": {LABEL: self.services.project}})
        )
        declared = self._declared()
        for name in NAMES:
            container = self._container(declared[name]).with_network(network).with_network_aliases(name)
            self.started.enter_context(container)
            self._await(name)
            progress(f"{name} is ready in container {container.get_container_id()[:12]}")

    def down(self, purge: bool, progress: Progress) -> None:
        """See `Services.down`; always purges. Also removes what a killed session left."""
        self.started.close()
        client = docker.from_env()
        mine = {"label": f"{LABEL}={self.services.project}"}
        for container in client.containers.list(all=True, filters=mine):
            container.remove(force=True, v=True)
        for network in client.networks.list(filters=mine):
            network.remove()
        client.close()
        for name in ("secrets", "audit", "ledger"):
            shutil.rmtree(self.settings.home_path / name, ignore_errors=True)

    def status(self) -> list[ServiceStatus]:
        """See `Services.status`; raises `ProbeError` for one that does not answer."""
        return [ServiceStatus(name, "running", "", self.services.ask(name)) for name in NAMES]

    def _declared(self) -> dict[str, Any]:
        """The services of docker-compose.yml, its variables replaced as compose does."""
        values = self.services.environ()

        def value(found: re.Match[str]) -> str:
            return "$" if found[0] == "$$" else values.get(found["name"]) or found["default"]

        text = re.sub(r"\$\$|\$\{(?P<name>\w+):[-?](?P<default>[^}]*)\}", value, COMPOSE_FILE.read_text())
        services: dict[str, Any] = yaml.safe_load(text)["services"]
        return services

    def _container(self, declared: dict[str, Any]) -> DockerContainer:
        container = DockerContainer(declared["image"]).with_envs(**declared.get("environment", {}))
        if "command" in declared:
            container.with_command(declared["command"])
        # testcontainers knows numbers alone, which are published on every address of this machine.
        published: dict[str, Any] = container.ports
        for mapping in declared["ports"]:
            address, port, inside = mapping.split(":")
            published[inside] = (address, int(port))
        for volume in declared.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):  # a named volume's data is for one session alone
                container.with_volume_mapping(COMPOSE_FILE.parent / source, target, *mode)
        labels = {LABEL: self.services.project}
        return container.with_kwargs(labels=labels, shm_size=declared.get("shm_size"))

    def _await(self, name: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.services.ask(name)
                return
            except ProbeError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"{name} did not answer within {START_TIMEOUT_S:.0f} s ({error}); see `docker ps -a`"
                    ) from None
                time.sleep(0.2)
