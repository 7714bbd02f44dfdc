"""Endpoints and what people do with them: add, rotate, disable, enable, send again, test."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from psycopg.rows import dict_row

from connectors.outward.guard import Forbidden, Guard
from connectors.outward.mail import MailError, Server
from connectors.outward.signing import Kind, Secret, Vault
from infra.identity.receivers import new_token, token_hash
from infra.postgres import Connection
from infra.settings import Settings

DECISIONS = ("APPROVE", "REVIEW", "DECLINE")
URL_MOST = 2000
FAN_OUT_ROWS = 5_000
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


class EndpointError(ValueError):
    """What was asked for cannot be; the message names it, the reason and the remedy."""


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
        _one(connection, endpoint_id)
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


def disable(connection: Connection, endpoint_id: str, reason: str) -> None:
    """Send nothing more to it; what is decided meanwhile is queued. Raises `EndpointError`."""
    _one(connection, endpoint_id)
    connection.execute(
        "UPDATE outward_endpoints SET status = 'disabled', reason = %s WHERE endpoint_id = %s",
        (reason, endpoint_id),
    )


def enable(connection: Connection, endpoint_id: str) -> None:
    """Go on, at once and where it stopped. Raises `EndpointError`."""
    with connection.transaction():
        _one(connection, endpoint_id)
        connection.execute(
            "UPDATE outward_endpoints SET status = 'active', reason = NULL, failures = 0, retry_at = NULL"
            " WHERE endpoint_id = %s",
            (endpoint_id,),
        )
        connection.execute("UPDATE outward_lanes SET due_at = now() WHERE endpoint_id = %s", (endpoint_id,))
        # How long it has failed counts from here.
        connection.execute(
            "UPDATE outward_deliveries SET first_attempt_at = NULL"
            " WHERE endpoint_id = %s AND status = 'pending'",
            (endpoint_id,),
        )


def remove(connection: Connection, endpoint_id: str) -> None:
    """Forget it with its deliveries. Raises `EndpointError`."""
    _one(connection, endpoint_id)
    connection.execute("DELETE FROM outward_endpoints WHERE endpoint_id = %s", (endpoint_id,))


def replay(
    connection: Connection,
    endpoint_id: str,
    first: int | datetime,
    last: int | datetime | None,
) -> int:
    """Queue the outbox's rows from `first` to `last` (cursors or times, inclusive) once more, under their own
    ids, behind what waits already. Returns how many. Raises `EndpointError`."""
    with connection.transaction():
        _one(connection, endpoint_id)
        start = _sequence(connection, first, -1) - 1
        end = 2**62 if last is None else _sequence(connection, last, 1)
        before = _pending(connection, endpoint_id)
        while True:
            row = connection.execute(
                "SELECT outward_enqueue(%s, 'replay', %s, %s, %s)", (endpoint_id, start, end, FAN_OUT_ROWS)
            ).fetchone()
            if row is None or row[0] is None:
                return _pending(connection, endpoint_id) - before
            start = int(str(row[0]))


def send_test(connection: Connection, endpoint_id: str) -> int:
    """Queue a test message; returns its delivery. Raises `EndpointError`."""
    with connection.transaction():
        _one(connection, endpoint_id)
        row = connection.execute(
            "INSERT INTO outward_deliveries (endpoint_id, lane, message_id, origin)"
            " VALUES (%s, '', 'test_' || %s, 'test') RETURNING delivery_id",
            (endpoint_id, secrets.token_hex(12)),
        ).fetchone()
        connection.execute(
            "INSERT INTO outward_lanes AS l (endpoint_id, lane, pending) VALUES (%s, '', 1)"
            " ON CONFLICT (endpoint_id, lane) DO UPDATE SET pending = l.pending + 1, due_at = now()",
            (endpoint_id,),
        )
    assert row is not None
    return int(str(row[0]))


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Every endpoint with what waits for it."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT endpoint_id, kind, tenant, merchant_id, target, decisions, risk_min, about, status,"
            " reason, failures, retry_at, last_success_at, created_at,"
            " coalesce((SELECT sum(pending) FROM outward_lanes l"
            "  WHERE l.endpoint_id = e.endpoint_id), 0)::bigint AS pending"
            " FROM outward_endpoints e ORDER BY created_at, endpoint_id"
        )
        return cursor.fetchall()


def deliveries(
    connection: Connection, endpoint_id: str, limit: int, status: str | None = None
) -> list[dict[str, Any]]:
    """The newest deliveries of an endpoint. Raises `EndpointError`."""
    _one(connection, endpoint_id)
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT d.delivery_id, d.sequence, d.message_id, d.lane, d.origin, d.status, d.attempts,"
            " d.last_attempt_at, d.last_status, d.last_error, d.last_answer, d.last_ms, d.created_at,"
            " o.event_id, o.decision, o.risk FROM outward_deliveries d LEFT JOIN outbox o USING (sequence)"
            " WHERE d.endpoint_id = %s AND (%s::text IS NULL OR d.status = %s)"
            " ORDER BY d.delivery_id DESC LIMIT %s",
            (endpoint_id, status, status, limit),
        )
        return cursor.fetchall()


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


def _one(connection: Connection, endpoint_id: str) -> None:
    if (
        connection.execute("SELECT FROM outward_endpoints WHERE endpoint_id = %s", (endpoint_id,)).fetchone()
        is None
    ):
        raise EndpointError(f"there is no endpoint {endpoint_id!r}; `millrace webhooks list` names them")


def _pending(connection: Connection, endpoint_id: str) -> int:
    row = connection.execute(
        "SELECT coalesce(sum(pending), 0) FROM outward_lanes WHERE endpoint_id = %s", (endpoint_id,)
    ).fetchone()
    return int(str(row[0])) if row else 0


def _sequence(connection: Connection, at: int | datetime, side: int) -> int:
    """A cursor as it is; for a time the first (side -1) row since, or the last (1) one until then."""
    if isinstance(at, int):
        return at
    query = (
        "SELECT coalesce(min(sequence), 9223372036854775806) FROM outbox WHERE created_at >= %s"
        if side < 0
        else "SELECT coalesce(max(sequence), 0) FROM outbox WHERE created_at <= %s"
    )
    row = connection.execute(query.encode(), (at,)).fetchone()
    assert row is not None
    return int(str(row[0]))
