"""Refresh tokens: opaque, good for one use, traced to the login that they follow from (RFC 9700, 4.14)."""

from __future__ import annotations

import hashlib
import secrets
import uuid

from infra.identity.subjects import NotAuthenticated
from infra.postgres import Connection

LIFE_SECONDS = 14 * 24 * 3600
"""From one use to the next at most."""
TOKEN_BYTES = 32
KEPT_SECONDS = 24 * 3600
"""How long an expired one is remembered: until then its reuse is noticed."""


def start(connection: Connection, subject: str) -> str:
    """The first token of a login."""
    return _issue(connection, subject, uuid.uuid4())


def use(connection: Connection, token: str, grace_s: float = 0.0) -> tuple[str, str | None]:
    """The subject of this token, and the token that takes its place. Raises `NotAuthenticated`.

    A token that comes a second time was stolen, from us or by us: nobody can tell, so that the login and
    all that followed from it ends. Only a browser's tabs share one token and may use it at the same time:
    within `grace_s` of its use it still tells whose it is, and gets no second heir.
    """
    stolen = heir = None
    with connection.transaction():
        row = connection.execute(
            "SELECT family, subject, used_at IS NOT NULL, revoked_at IS NOT NULL, expires_at <= now(),"
            " coalesce(used_at > clock_timestamp() - make_interval(secs => %s), false)"
            " FROM identity.refresh_tokens WHERE hash = %s FOR UPDATE",
            (grace_s, _hash(token)),
        ).fetchone()
        if row is None:
            raise NotAuthenticated("the refresh token is not known")
        family, subject, used, revoked, expired, just_now = row
        if used and not revoked and not (just_now and grace_s):
            stolen = f"a refresh token of {subject} came a second time; its login is ended"
            connection.execute(
                "UPDATE identity.refresh_tokens SET revoked_at = now()"
                " WHERE family = %s AND revoked_at IS NULL",
                (family,),
            )
        elif revoked or expired:
            raise NotAuthenticated(f"the refresh token of {subject} has {'expired' if expired else 'ended'}")
        elif not used:
            connection.execute(
                "UPDATE identity.refresh_tokens SET used_at = now() WHERE hash = %s", (_hash(token),)
            )
            heir = _issue(connection, str(subject), uuid.UUID(str(family)))
    if stolen is not None:  # after the transaction: what was revoked must stay so
        raise NotAuthenticated(stolen)
    return str(subject), heir


def end(connection: Connection, token: str) -> None:
    """End the login that this token follows from; one that is not known is none."""
    connection.execute(
        "UPDATE identity.refresh_tokens SET revoked_at = now() WHERE revoked_at IS NULL AND family ="
        " (SELECT family FROM identity.refresh_tokens WHERE hash = %s)",
        (_hash(token),),
    )


def forget_expired(connection: Connection) -> int:
    """Delete tokens that expired some time ago; returns how many."""
    return connection.execute(
        "DELETE FROM identity.refresh_tokens WHERE expires_at < now() - make_interval(secs => %s)",
        (KEPT_SECONDS,),
    ).rowcount


def _issue(connection: Connection, subject: str, family: uuid.UUID) -> str:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    connection.execute(
        "INSERT INTO identity.refresh_tokens (hash, family, subject, expires_at)"
        " VALUES (%s, %s, %s, now() + make_interval(secs => %s))",
        (_hash(token), family, subject, LIFE_SECONDS),
    )
    return token


def _hash(token: str) -> bytes:
    # Of 256 random bits: nothing slow is needed, there is no dictionary of them.
    return hashlib.sha256(token.encode()).digest()
