"""Endpoints: added with their keys, given new ones, removed. Their deliveries are `infra.deliveries`'s."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from connectors.outward.guard import Forbidden, Guard
from connectors.outward.mail import MailError, Server
from connectors.outward.signing import Kind, Secret, Vault
from infra.deliveries import EndpointError, require
from infra.identity.receivers import new_token, token_hash
from infra.postgres import Connection
from infra.settings import Settings

DECISIONS = ("APPROVE", "REVIEW", "DECLINE")
URL_MOST = 2000
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Added:
    """A new endpoint and what its receiver needs; neither is ever shown again."""

    endpoint_id: str
    keys: tuple[str, ...]
    """`whsec_…`, and `whpk_…` where asked for; a mailbox has none."""
    token: str | None
    """For `GET /v1/webhooks/{endpoint}/events`."""


def check_target(settings: Settings, target: str) -> str:
    """The kind of a target. Raises `EndpointError`."""
    if target.startswith("mailto:"):
        if not _MAILBOX.fullmatch(target.removeprefix("mailto:")):
            raise EndpointError(f"{target!r} is no mailbox; write mailto:somebody@example.com")
        try:
            Server.of(settings.text("smtp_url"))
        except MailError as error:
            raise EndpointError(str(error)) from None
        return "email"
    try:
        parts = urlsplit(target)
        port = parts.port
    except ValueError as error:
        raise EndpointError(f"{target!r} is no URL ({error})") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not _PRINTABLE.fullmatch(target):
        raise EndpointError(f"{target!r} is no https URL; write https://host/path or mailto:somebody@…")
    if len(target) > URL_MOST or parts.username or parts.password or parts.fragment:
        raise EndpointError(
            f"the URL may have no user, password or fragment and at most {URL_MOST} characters"
        )
    tls = parts.scheme == "https"
    try:
        Guard.of(settings.text("webhook_allow")).resolve_now(
            unquote(parts.hostname), port or (443 if tls else 80), tls=tls
        )
    except Forbidden as error:
        raise EndpointError(str(error)) from None
    except OSError as error:
        raise EndpointError(f"{parts.hostname} cannot be resolved ({error})") from None
    return "webhook"


def add(
    settings: Settings,
    connection: Connection,
    vault: Vault,
    target: str,
    *,
    tenant: str = "default",
    merchant: str | None = None,
    decisions: Sequence[str] = DECISIONS,
    risk_min: float = 0.0,
    about: str = "",
    asymmetric: bool = False,
) -> Added:
    """Add an endpoint, which is told of what is decided from now on. Raises `EndpointError`."""
    kind = check_target(settings, target)
    unknown = [d for d in decisions if d not in DECISIONS]
    if unknown or not decisions:
        raise EndpointError(f"decisions: {', '.join(unknown) or 'none'}; name some of {', '.join(DECISIONS)}")
    if not 0 <= risk_min <= 1:
        raise EndpointError(f"risk_min is {risk_min}; give 0 to 1")
    endpoint_id = "ep_" + secrets.token_hex(10)
    token = new_token() if kind == "webhook" else None
    kinds: tuple[Kind, ...] = () if kind == "email" else ("v1", "v1a") if asymmetric else ("v1",)
    made = [Secret.new(one) for one in kinds]
    with connection.transaction():
        connection.execute(
            "INSERT INTO outward_endpoints (endpoint_id, kind, tenant, merchant_id, target, decisions,"
            " risk_min, about, token_sha256, since_sequence)"
            " SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, coalesce(max(sequence), 0) FROM outbox",
            (
                endpoint_id,
                kind,
                tenant,
                merchant,
                target,
                list(decisions),
                risk_min,
                about,
                token_hash(token) if token else None,
            ),
        )
        for secret in made:
            _keep(connection, vault, endpoint_id, secret)
    return Added(endpoint_id, tuple(secret.shown for secret in made), token)


def rotate(connection: Connection, vault: Vault, endpoint_id: str, overlap_s: float) -> tuple[str, ...]:
    """New secrets of the same kinds; the old ones sign along for `overlap_s`. Raises `EndpointError`."""
    with connection.transaction():
        require(connection, endpoint_id)
        kinds: list[Kind] = [
            kind  # type: ignore[misc]
            for (kind,) in connection.execute(
                "SELECT kind FROM outward_secrets WHERE endpoint_id = %s GROUP BY kind ORDER BY kind",
                (endpoint_id,),
            )
        ]
        if not kinds:
            raise EndpointError(f"{endpoint_id} is a mailbox and signs nothing")
        connection.execute(
            "UPDATE outward_secrets SET expires_at = now() + make_interval(secs => %s)"
            " WHERE endpoint_id = %s AND expires_at IS NULL",
            (overlap_s, endpoint_id),
        )
        connection.execute(
            "DELETE FROM outward_secrets WHERE endpoint_id = %s AND expires_at <= now()", (endpoint_id,)
        )
        made = [Secret.new(kind) for kind in kinds]
        for secret in made:
            _keep(connection, vault, endpoint_id, secret)
    return tuple(secret.shown for secret in made)


def remove(connection: Connection, endpoint_id: str) -> None:
    """Forget it with its deliveries. Raises `EndpointError`."""
    require(connection, endpoint_id)
    connection.execute("DELETE FROM outward_endpoints WHERE endpoint_id = %s", (endpoint_id,))


def _keep(connection: Connection, vault: Vault, endpoint_id: str, secret: Secret) -> None:
    connection.execute(
        "INSERT INTO outward_secrets (endpoint_id, kind, sealed, public_key) VALUES (%s, %s, %s, %s)",
        (
            endpoint_id,
            secret.kind,
            vault.seal(secret, endpoint_id),
            secret.shown if secret.kind == "v1a" else None,
        ),
    )
