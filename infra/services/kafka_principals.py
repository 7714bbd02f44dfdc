"""The broker's users and ACLs, made to be exactly what `schemas.grants` says.

As the principal of the broker's own certificate, on the listener that only certificates open.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from infra.broker import ADMIN_SECONDS, admin
from infra.kafka_access import KafkaAccess
from infra.services import ServiceError
from infra.services.credentials import ensure_secret
from infra.services.kafka_certificates import authority_path, certificate_path
from infra.settings import PORT_KAFKA_INTERNAL, SETTINGS, Settings
from schemas.declare import Pipelines
from schemas.grants import Grant, grants, principals

SECRET = "kafka-"  # noqa: S105 - only how the names of these secrets begin
MECHANISM = ScramMechanism.SCRAM_SHA_512
ITERATIONS = 4096
"""Kafka's least: passwords of 192 random bits need no stretching."""

_WHATEVER: Any = None
_EVERY = AclBindingFilter(
    ResourceType.ANY,
    _WHATEVER,
    ResourcePatternType.ANY,
    _WHATEVER,
    _WHATEVER,
    AclOperation.ANY,
    AclPermissionType.ANY,
)


def root(settings: Settings) -> KafkaAccess:
    """The native broker as its own principal, which may do everything."""
    return KafkaAccess.by_certificate(
        f"127.0.0.1:{settings.port(PORT_KAFKA_INTERNAL)}",
        certificate_path(settings),
        authority_path(settings),
    )


def enforce(settings: Settings, pipelines: Pipelines) -> None:
    """Make users and ACLs what the table says, and nothing else. Repeating it changes nothing.

    Raises `KafkaException`.
    """
    client = admin(root(settings))
    table = grants(pipelines)
    _enforce_users(client, {p: ensure_secret(settings, SECRET + p) for p in principals(pipelines)})
    _enforce_acls(client, table)


def rotate(settings: Settings, pipelines: Pipelines, principal: str) -> None:
    """Give a principal a new password. Whoever connects with the old one is refused from now on.

    Repeating a call that was interrupted completes it. Raises `ServiceError`.
    """
    variable, name = SETTINGS["kafka_password"].variable, SECRET + principal
    if not settings.secure:
        raise ServiceError("this instance has no names at the broker; they come with `millrace up --secure`")
    if principal not in principals(pipelines):
        raise ServiceError(
            f"there is no secret {name!r} to rotate; there are"
            f" {', '.join(SECRET + p for p in principals(pipelines))}"
        )
    if variable in settings.environ:
        raise ServiceError(
            f"{variable} is set, and with it a password; unset it, or change it where it comes from"
        )
    # Kept beside the one in force until the broker has taken it.
    password = ensure_secret(settings, f"{name}.next")
    try:
        _set_passwords(admin(root(settings)), {principal: password})
    except KafkaException as error:
        raise ServiceError(f"the broker does not let us in: {error}; look at `millrace status`") from error
    settings.secret_path(f"{name}.next").replace(settings.secret_path(name))


def binding(grant: Grant) -> AclBinding:
    """The ACL of a grant. From any address: the listener's is loopback alone."""
    return AclBinding(
        ResourceType[grant.resource.name],
        grant.name,
        ResourcePatternType.PREFIXED if grant.prefix else ResourcePatternType.LITERAL,
        f"User:{grant.principal}",
        "*",
        AclOperation[grant.operation.name],
        AclPermissionType.ALLOW,
    )


def _enforce_users(client: AdminClient, passwords: dict[str, str]) -> None:
    described: Any = client.describe_user_scram_credentials(request_timeout=ADMIN_SECONDS)
    strangers = [user for user in described.result(timeout=ADMIN_SECONDS) if user not in passwords]
    if strangers:
        _wait(
            client.alter_user_scram_credentials(
                [UserScramCredentialDeletion(user, MECHANISM) for user in strangers]
            ).values()
        )
    _set_passwords(client, passwords)


def _set_passwords(client: AdminClient, passwords: dict[str, str]) -> None:
    info = ScramCredentialInfo(MECHANISM, ITERATIONS)
    _wait(
        client.alter_user_scram_credentials(
            [UserScramCredentialUpsertion(user, info, p.encode()) for user, p in passwords.items()],
            request_timeout=ADMIN_SECONDS,
        ).values()
    )


def _enforce_acls(client: AdminClient, table: Iterable[Grant]) -> None:
    wanted = {binding(grant) for grant in table}
    there = set(client.describe_acls(_EVERY, request_timeout=ADMIN_SECONDS).result(timeout=ADMIN_SECONDS))
    if missing := sorted(wanted - there):
        _wait(client.create_acls(missing, request_timeout=ADMIN_SECONDS).values())
    if surplus := sorted(there - wanted):
        _wait(client.delete_acls([_only(b) for b in surplus], request_timeout=ADMIN_SECONDS).values())


def _only(one: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        one.restype,
        one.name,
        one.resource_pattern_type,
        one.principal,
        one.host,
        one.operation,
        one.permission_type,
    )


def _wait(futures: Iterable[Future[Any]]) -> None:
    for future in list(futures):
        future.result(timeout=ADMIN_SECONDS)
