"""Mosquitto, the MQTT broker that trucks talk to."""

from __future__ import annotations

import os
from collections.abc import Sequence

from infra.services import probe
from infra.services.component import Component, program
from infra.settings import PORT_MQTT


class Mosquitto(Component):
    """One Mosquitto on loopback that keeps sessions and queued messages over a restart."""

    name = "mosquitto"

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.settings.port(PORT_MQTT),)

    def prepare(self) -> None:
        program("mosquitto", "Mosquitto")
        # Started by root it would change to its own account, which cannot write into the state folder.
        account = "user root\n" if os.geteuid() == 0 else ""
        self.write(
            "mosquitto.conf",
            f"""\
{account}listener {self.ports[0]} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {self.folder}/
autosave_interval 5
max_queued_messages 1000000
max_inflight_messages 1000
log_dest stdout
log_type error
log_type warning
log_type notice
connection_messages false
""",
        )

    def command(self) -> Sequence[str]:
        return [program("mosquitto", "Mosquitto"), "-c", str(self.folder / "mosquitto.conf")]

    def probe(self) -> str:
        return probe.mqtt(f"mqtt://{self.address()}")
