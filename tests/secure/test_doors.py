"""Who is let in at a secured broker's listeners, and that the table is in force there. Short."""

from __future__ import annotations

import socket
import ssl
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, UserScramCredentialUpsertion

from infra.broker import LIBRDKAFKA, admin
from infra.kafka_access import KafkaAccess
from infra.services import ServiceError
from infra.services.kafka import Kafka
from infra.services.kafka_certificates import authority_path, certificate_path, ensure_certificates
from infra.services.kafka_principals import MECHANISM, binding, enforce, root, rotate
from infra.services.native import NativeServices
from infra.settings import PORT_KAFKA_CONTROLLER, PORT_KAFKA_INTERNAL, Settings
from schemas.grants import Operation, Resource, allowed, grants, principals
from schemas.pipelines import PIPELINES
from tests.secure import cells
from tests.secure.conftest import DECLARED, access

pytestmark = pytest.mark.short_secure

ASK_SECONDS = 4.0


def refusals(one: KafkaAccess) -> set[int]:
    """The errors that a client meets which is let in nowhere; empty where it is let in."""
    met: set[int] = set()
    client = AdminClient({**one.config(), "error_cb": lambda error: met.add(error.code())}, logger=LIBRDKAFKA)
    end = time.monotonic() + ASK_SECONDS
    while time.monotonic() < end and not met & {KafkaError._AUTHENTICATION, KafkaError._SSL}:
        try:
            client.list_topics(timeout=0.5)
            return set()
        except KafkaException as error:
            met.add(cells.code_of(error))
        client.poll(0.2)
    return met


def test_the_door_opens_to_name_and_password_alone(secured: Settings, elsewhere: KafkaAccess) -> None:
    """Plain text, a wrong password, an unknown name and another broker's authority are all refused."""
    servers, password = elsewhere.servers, secured.secret("kafka-operator")
    authority = authority_path(secured)
    assert refusals(secured.kafka) == set()
    assert refusals(elsewhere)
    wrong = KafkaAccess.as_user(servers, "operator", password + "x", authority)
    unknown = KafkaAccess.as_user(servers, "stranger", password, authority)
    for one in (wrong, unknown):
        assert KafkaError._AUTHENTICATION in refusals(one)


def test_a_broker_that_nobody_vouches_for_gets_no_password(
    secured: Settings, elsewhere: KafkaAccess, tmp_path: Path
) -> None:
    """A client that trusts another authority breaks off, and so does one that trusts this machine's."""
    other = Settings({"MILLRACE_HOME": str(tmp_path), "MILLRACE_SECURE": "1"})
    ensure_certificates(other, datetime.now(UTC))
    password = secured.secret("kafka-operator")
    for authority in (authority_path(other), None):
        one = KafkaAccess.as_user(elsewhere.servers, "operator", password, authority)
        assert KafkaError._SSL in refusals(one)


@pytest.mark.parametrize("offset", [PORT_KAFKA_INTERNAL, PORT_KAFKA_CONTROLLER])
def test_the_inner_listeners_open_to_the_brokers_certificate_alone(
    secured: Settings, tmp_path: Path, offset: int
) -> None:
    """Without a certificate, or with one of another authority, nobody speaks to them there."""
    other = Settings({"MILLRACE_HOME": str(tmp_path), "MILLRACE_SECURE": "1"})
    ensure_certificates(other, datetime.now(UTC))
    assert handshake(secured, offset, certificate_path(secured)) is None
    assert handshake(secured, offset, None) is not None
    assert handshake(secured, offset, certificate_path(other)) is not None


def handshake(settings: Settings, offset: int, certificate: Path | None) -> str | None:
    """None where the connection stays open for a second, otherwise why it was ended."""
    context = ssl.create_default_context(cafile=str(authority_path(settings)))
    if certificate is not None:
        context.load_cert_chain(certificate)
    with (
        socket.create_connection(("127.0.0.1", settings.port(offset)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.settimeout(1.0)
        try:
            # In TLS 1.3 the server judges the certificate after the client's handshake is done.
            return "closed" if connection.recv(1) == b"" else "answered unasked"
        except TimeoutError:
            return None
        except (ssl.SSLError, ConnectionError) as error:
            return str(error)


def test_secrets_are_their_owners_alone(secured: Settings) -> None:
    """Keys and passwords: mode 0600 in a folder of mode 0700; the broker's configuration holds neither."""
    folder = secured.home_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert len(files) >= len(principals(PIPELINES)) + 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    configuration = (secured.home_path / "kafka" / "server.properties").read_text()
    assert "PRIVATE KEY" not in configuration and "password" not in configuration


def test_each_principal_may_only_what_the_table_says(secured: Settings) -> None:
    """One topic of each kind, described by everyone: the whole matrix is `make test-secure`."""
    table = grants(PIPELINES)
    for principal in principals(PIPELINES):
        found = cells.describe(access(secured, principal), DECLARED)
        assert {t for t, code in found.items() if code is None} == {
            t for t in DECLARED if allowed(table, principal, Operation.DESCRIBE, Resource.TOPIC, t)
        }
    sink = cells.write(access(secured, "sink-fraud"), ["card-transactions", "card-decisions-dlq"])
    refused = KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert sink == {"card-transactions": refused, "card-decisions-dlq": None}
    assert cells.read(access(secured, "connector-gateway"), ["card-transactions"]) == {
        "card-transactions": refused
    }


def test_what_the_table_does_not_say_is_taken_away(secured: Settings) -> None:
    """An ACL and a user that somebody added are gone after the next `up`; what was there still holds."""
    client = admin(root(secured))
    info = ScramCredentialInfo(MECHANISM, 4096)
    for future in (
        *client.create_acls([cells.all_topics("api")]).values(),
        *client.alter_user_scram_credentials([UserScramCredentialUpsertion("intruder", info, b"x")]).values(),
    ):
        future.result(timeout=30)
    NativeServices(secured, [Kafka(secured)]).up(print)
    there = client.describe_acls(cells.EVERY_ACL).result(timeout=30)
    assert set(there) == {binding(g) for g in grants(PIPELINES)}
    users = client.describe_user_scram_credentials().result(timeout=30)  # type: ignore[union-attr]
    assert set(users) == set(principals(PIPELINES))


def test_a_rotated_password_shuts_the_old_one_out(secured: Settings) -> None:
    """The new password opens, the old one does not; an interrupted rotation is completed by the next."""
    before = access(secured, "api")
    rotate(secured, PIPELINES, "api")
    after = access(secured, "api")
    assert refusals(after) == set()
    assert KafkaError._AUTHENTICATION in refusals(before)
    # Killed between the broker's yes and the file's renaming: the next one finds the password it had chosen.
    chosen = secured.secret_path("kafka-api.next")
    chosen.write_text("chosen before it was killed\n")
    rotate(secured, PIPELINES, "api")
    assert secured.secret("kafka-api") == "chosen before it was killed" and not chosen.exists()
    assert refusals(access(secured, "api")) == set()
    with pytest.raises(ServiceError, match="kafka-sink-fraud"):
        rotate(secured, PIPELINES, "nobody")
    enforce(secured, PIPELINES)
    assert refusals(replace(access(secured, "api"), servers=before.servers)) == set()
