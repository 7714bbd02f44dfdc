"""Apache Kafka as one KRaft node, from the jars that `make setup` resolved with Maven."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infra.services import ServiceError, probe
from infra.services.component import Component, program
from infra.services.probe import ProbeError
from infra.settings import (
    PORT_KAFKA,
    PORT_KAFKA_CONTROLLER,
    PORT_KAFKA_INTERNAL,
    SECURED,
    SettingError,
)

HERE = Path(__file__).parent

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
REAUTHENTICATE_MS = 10 * 60_000
"""How long a connection outlives the password that it was opened with."""


class Kafka(Component):
    """Broker and controller in one process.

    Secured (docs/adr/0053-secure-kafka.md), clients come in by name and password over TLS; the broker, its
    controller and `millrace up` know one another by the broker's certificate, on listeners of their own.
    """

    name = "kafka"

    @property
    def ports(self) -> tuple[int, ...]:
        plain = self.settings.port(PORT_KAFKA), self.settings.port(PORT_KAFKA_CONTROLLER)
        return (*plain, self.settings.port(PORT_KAFKA_INTERNAL)) if self.settings.secure else plain

    def prepare(self) -> None:
        if self.settings.secure:
            from infra.services.kafka_certificates import ensure_certificates

            ensure_certificates(self.settings)
            # From now on: without the mark a later `up` would start the same topics open to everybody.
            self.settings.secret_path(SECURED).touch(mode=0o600)
        config = self.write("server.properties", self._properties())
        if not (self.folder / "data" / "meta.properties").exists():
            # A format that was interrupted leaves a folder that StorageTool refuses.
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            # Never with "-" in front, which one id in 64 has: StorageTool would take it for an option.
            cluster_id = "M" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
            done = subprocess.run(
                [
                    *self._java("-Xmx256m"),
                    "kafka.tools.StorageTool",
                    "format",
                    # In one word: an id may begin with a dash, which would be taken for an option.
                    f"--cluster-id={cluster_id}",
                    "-c",
                    str(config),
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise ServiceError(
                    f"kafka could not format {self.folder / 'data'}: {(done.stderr or done.stdout).strip()}; "
                    "free or repair that folder, then run `millrace up` again"
                )

    def command(self) -> Sequence[str]:
        return [
            *self._java(*self.settings.text("kafka_jvm").split(), *self.classes()),
            "-XX:+ExitOnOutOfMemoryError",
            "kafka.Kafka",
            str(self.folder / "server.properties"),
        ]

    def probe(self) -> str:
        try:
            return probe.kafka(replace(self.settings.kafka, servers=self.address()))
        except SettingError as error:
            raise ProbeError(str(error)) from None

    def answers(self) -> None:
        """Nobody need have a password yet."""
        if self.settings.secure:
            from infra.services.kafka_principals import root

            probe.kafka(root(self.settings))
        else:
            self.probe()

    def complete(self) -> None:
        """Users and ACLs, for the pipelines as they are declared now."""
        if not self.settings.secure:
            return
        from confluent_kafka import KafkaException

        from infra.services.kafka_principals import enforce
        from schemas.pipelines import PIPELINES

        try:
            enforce(self.settings, PIPELINES)
        except KafkaException as error:
            raise ProbeError(f"users and ACLs cannot be set: {error}") from None

    def check_running(self) -> None:
        """A broker that was started open stays so until it is stopped."""
        if self.settings.secure and not self.settings.secret_path(SECURED).exists():
            raise ServiceError(
                "kafka runs open to everybody; run `millrace down`, then `millrace up --secure` again"
            )

    def libraries(self) -> Path:
        """The broker's own jar, its dependencies beside it; raises `ServiceError` with the remedy."""
        folder = Path(self.settings.text("cache")) / "kafka-libs"
        found = sorted(folder.glob("kafka_2.13-*.jar"))
        if not found:
            raise ServiceError(f"kafka's jars are not in {folder}; run `make setup`")
        return found[-1]

    def archive(self) -> Path:
        """Where `infra.services.class_archive` puts the classes of these jars."""
        return self.libraries().with_name("classes.jsa")

    def classes(self) -> Sequence[str]:
        """The JVM's options about its class archive."""
        archive = self.archive()
        # Asked for without being there, it would be an error; made by another Java, it is passed over.
        return (
            (f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off")
            if archive.exists()
            else ()
        )

    def _java(self, *options: str) -> list[str]:
        home = os.environ.get("JAVA_HOME")
        java = (
            f"{home}/bin/java"
            if home and os.access(f"{home}/bin/java", os.X_OK)
            else program("java", "Java 17")
        )
        return [
            java,
            *options,
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            f"-Dmillrace.logs={self.settings.home_path / 'logs'}",
            "-cp",
            f"{self.libraries().parent}/*",
        ]

    def _properties(self) -> str:
        controller = self.ports[1]
        # The quorum's voters stand here, not in the formatted log (`format --standalone`): an instance
        # that is moved to another port base still finds its controller.
        return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
{self._secured() if self.settings.secure else self._open()}\
log.dirs={self.folder / "data"}
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
"""

    def _open(self) -> str:
        """Plain text for everybody on this machine."""
        client, controller = self.ports
        return f"""\
listeners=CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{client}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
"""

    def _secured(self) -> str:
        """TLS everywhere; what no ACL allows is denied, except to who holds the broker's certificate."""
        from infra.services.kafka_certificates import BROKER, authority_path, certificate_path

        client, controller, internal = self.ports
        return f"""\
listeners=CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal}
listener.security.protocol.map=CLIENT:SASL_SSL,INTERNAL:SSL,CONTROLLER:SSL
inter.broker.listener.name=INTERNAL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.client.scram-sha-512.sasl.jaas.config={SCRAM}
connections.max.reauth.ms={REAUTHENTICATE_MS}
ssl.enabled.protocols=TLSv1.3
ssl.keystore.type=PEM
ssl.keystore.location={certificate_path(self.settings)}
ssl.truststore.type=PEM
ssl.truststore.location={authority_path(self.settings)}
listener.name.internal.ssl.client.auth=required
listener.name.controller.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^CN=({BROKER})$/$1/,DEFAULT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:{BROKER}
"""
