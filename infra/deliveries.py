"""Who is told of decisions, and what becomes of each delivery: listed, stopped, gone on with, sent again."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from infra.postgres import Connection

FAN_OUT_ROWS = 5_000
STATUSES = ("pending", "delivered", "dropped")


class EndpointError(ValueError):
    """What was asked for cannot be; the message names it, the reason and the remedy."""


def disable(connection: Connection, endpoint_id: str, reason: str) -> None:
    """Send nothing more to it; what is decided meanwhile is queued. Raises `EndpointError`."""
    require(connection, endpoint_id)
    connection.execute(
        "UPDATE outward_endpoints SET status = 'disabled', reason = %s WHERE endpoint_id = %s",
        (reason, endpoint_id),
    )


def enable(connection: Connection, endpoint_id: str) -> None:
    """Go on, at once and where it stopped. Raises `EndpointError`."""
    with connection.transaction():
        require(connection, endpoint_id)
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


def replay(
    connection: Connection,
    endpoint_id: str,
    first: int | datetime,
    last: int | datetime | None,
) -> int:
    """Queue the outbox's rows from `first` to `last` (cursors or times, inclusive) once more, under their own
    ids, behind what waits already. Returns how many. Raises `EndpointError`."""
    with connection.transaction():
        require(connection, endpoint_id)
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
        require(connection, endpoint_id)
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
    require(connection, endpoint_id)
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


def of_decision(
    connection: Connection, tenant: str, event_id: str, occurred_at: datetime
) -> list[dict[str, Any]]:
    """Who was told of a decision, and what became of each delivery, in their order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT d.endpoint_id, d.origin, d.status, d.attempts, d.last_attempt_at, d.last_status,"
            " d.last_error FROM outbox o JOIN outward_deliveries d USING (sequence)"
            " WHERE o.tenant = %s AND o.event_id = %s AND o.occurred_at = %s ORDER BY d.delivery_id",
            (tenant, event_id, occurred_at),
        )
        return cursor.fetchall()


def require(connection: Connection, endpoint_id: str) -> None:
    """Raises `EndpointError` where there is no such endpoint."""
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
