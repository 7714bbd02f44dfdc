"""Redis with its append-only file."""

from __future__ import annotations

from collections.abc import Sequence

from infra.services import probe
from infra.services.component import Component, program
from infra.settings import PORT_REDIS


class RedisServer(Component):
    """One Redis on loopback; durable to the last second."""

    name = "redis"

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.settings.port(PORT_REDIS),)

    def prepare(self) -> None:
        program("redis-server", "Redis")
        self.write(
            "redis.conf",
            f"""\
bind 127.0.0.1
port {self.ports[0]}
dir "{self.folder}"
appendonly yes
appendfsync everysec
save ""
""",
        )

    def command(self) -> Sequence[str]:
        return [program("redis-server", "Redis"), str(self.folder / "redis.conf")]

    def probe(self) -> str:
        return probe.redis(f"redis://{self.address()}/0")
