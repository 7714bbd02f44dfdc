"""API keys: `mk_<prefix>_<secret>`. The prefix is shown and finds the row; of the secret there is a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from infra.identity.principal import Principal
from infra.identity.subjects import NotAuthenticated, SubjectError, find
from infra.postgres import Connection
from schemas.roles import scopes_of

FORM = re.compile(r"mk_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
PREFIX_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
DAYS_MAX = 366


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is listed."""

    prefix: str
    subject: str
    name: str
    grants: list[str]
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


def create(connection: Connection, subject: str, name: str, grants: Sequence[str], days: int) -> str:
    """Make a key of a subject; returns it, once. Raises `SubjectError`, `GrantError`."""
    if not 1 <= days <= DAYS_MAX:
        raise SubjectError(f"days is {days}; give 1 to {DAYS_MAX}, and make a new key before it expires")
    if not name.strip():
        raise SubjectError("name is empty; say what the key is for")
    beyond = scopes_of(grants) - scopes_of(find(connection, subject).grants)
    if beyond:
        raise SubjectError(
            f"grants: {subject} itself may not {', '.join(sorted(beyond))}; grant it that first"
        )
    prefix = "".join(secrets.choice(PREFIX_CHARACTERS) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    connection.execute(
        "INSERT INTO identity.api_keys (prefix, secret_hash, subject, name, grants, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, now() + make_interval(days => %s))",
        (prefix, _hash(secret), subject, name.strip(), list(grants), days),
    )
    return f"mk_{prefix}_{secret}"


def principal_of(connection: Connection, key: str) -> Principal:
    """Whose key this is, with what it may at most. Raises `NotAuthenticated`."""
    form = FORM.fullmatch(key)
    if form is None:
        raise NotAuthenticated("that has not the form of an API key")
    row = connection.execute(
        "SELECT secret_hash, subject, grants, expires_at <= now(), revoked_at IS NOT NULL"
        " FROM identity.api_keys WHERE prefix = %s",
        (form[1],),
    ).fetchone()
    stored, subject, grants, expired, revoked = row or (b"", "", [], False, False)
    assert isinstance(stored, bytes) and isinstance(grants, list)
    if not hmac.compare_digest(stored, _hash(form[2])) or row is None:
        raise NotAuthenticated(f"there is no API key {form[1]}, or it has another secret")
    if expired or revoked:
        raise NotAuthenticated(f"API key {form[1]} {'was revoked' if revoked else 'has expired'}")
    return find(connection, str(subject)).principal(f"key:{form[1]}", [str(g) for g in grants])


def revoke(connection: Connection, prefix: str) -> None:
    """End a key at once. Raises `SubjectError` where there is none."""
    if not connection.execute(
        "UPDATE identity.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE prefix = %s", (prefix,)
    ).rowcount:
        raise SubjectError(f"there is no API key {prefix!r}; `millrace keys list` shows all")


def every(connection: Connection) -> list[ApiKey]:
    """All keys, the newest first."""
    with connection.cursor(row_factory=class_row(ApiKey)) as cursor:
        return cursor.execute(
            "SELECT prefix, subject, name, grants, created_at, expires_at, revoked_at"
            " FROM identity.api_keys ORDER BY created_at DESC, prefix"
        ).fetchall()


def _hash(secret: str) -> bytes:
    # Of 256 random bits: nothing slow is needed, there is no dictionary of them.
    return hashlib.sha256(secret.encode()).digest()
