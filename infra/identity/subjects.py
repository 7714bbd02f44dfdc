"""People and programs: who there is, what they are granted, and whether a password is theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from infra.identity import passwords
from infra.identity.principal import Kind, Principal
from infra.postgres import Connection
from schemas.roles import OBJECTS, Refusal, scopes_of

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{1,63}")
FREE_FAILURES = 4
"""Wrong passwords that cost nothing; from the next on each doubles the time that the subject is locked."""
LOCKED_FIRST_S, LOCKED_MOST_S = 30, 3600


class NotAuthenticated(PermissionError):
    """Somebody did not prove who they are. The message is for the log: who asks learns no more than that."""


class SubjectError(Refusal):
    """A subject that cannot be made or changed so; the message gives field, reason and remedy."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A row of `identity.subjects`, without its secret."""

    subject: str
    kind: Kind
    tenant: str
    grants: list[str]
    objects: dict[str, list[str]]
    version: int
    disabled_at: datetime | None
    locked_until: datetime | None
    created_at: datetime

    def principal(self, proof: str, at_most: Sequence[str] | None = None) -> Principal:
        """It as the asker of a request. `at_most`: the grants of an API key, which cannot exceed its own."""
        if self.disabled_at is not None:
            raise NotAuthenticated(f"{self.subject} was disabled")
        scopes = scopes_of(self.grants)
        if at_most is not None:
            scopes &= scopes_of(at_most)
        objects = {kind: frozenset(ids) for kind, ids in self.objects.items()}
        return Principal(self.subject, self.kind, self.tenant, scopes, objects, proof)


_SELECT = (
    "SELECT subject, kind, tenant, grants, objects, version, disabled_at, locked_until, created_at"
    " FROM identity.subjects"
)


def create(
    connection: Connection,
    subject: str,
    kind: Kind,
    tenant: str,
    password: str,
    grants: Sequence[str],
    objects: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Make a subject. Raises `SubjectError`, `WeakPassword`, `GrantError`."""
    if not NAME.fullmatch(subject):
        raise SubjectError(
            f"subject {subject!r} is no name; give 2 to 64 small letters, digits, or . _ @ - after the first"
        )
    if kind not in get_args(Kind):
        raise SubjectError(f"kind {kind!r} is unknown; give one of {', '.join(get_args(Kind))}")
    _check(tenant, grants, objects or {})
    try:
        connection.execute(
            "INSERT INTO identity.subjects (subject, kind, tenant, secret_hash, grants, objects)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (subject, kind, tenant, passwords.hashed(password), list(grants), _json(objects or {})),
        )
    except psycopg.errors.UniqueViolation as error:
        raise SubjectError(f"there is a subject {subject!r} already; change that one") from error


def change(
    connection: Connection,
    subject: str,
    *,
    password: str | None = None,
    grants: Sequence[str] | None = None,
    objects: Mapping[str, Sequence[str]] | None = None,
    disabled: bool | None = None,
) -> None:
    """Change what is given. A new password, or being disabled, ends every session of the subject: refresh
    tokens are revoked, and access tokens bear an old version.

    Raises `SubjectError`, `WeakPassword`, `GrantError`.
    """
    with connection.transaction():
        now = find(connection, subject)
        _check(
            now.tenant, now.grants if grants is None else grants, now.objects if objects is None else objects
        )
        connection.execute(
            "UPDATE identity.subjects SET secret_hash = coalesce(%(hash)s, secret_hash),"
            " failures = CASE WHEN %(hash)s::text IS NULL THEN failures ELSE 0 END,"
            " locked_until = CASE WHEN %(hash)s::text IS NULL THEN locked_until END,"
            " grants = coalesce(%(grants)s, grants), objects = coalesce(%(objects)s, objects),"
            " disabled_at = CASE WHEN %(disabled)s::boolean IS NULL THEN disabled_at"
            "  WHEN %(disabled)s THEN coalesce(disabled_at, now()) END,"
            " version = version + %(ends)s"
            " WHERE subject = %(subject)s",
            {
                "subject": subject,
                "hash": None if password is None else passwords.hashed(password),
                "grants": None if grants is None else list(grants),
                "objects": None if objects is None else _json(objects),
                "disabled": disabled,
                "ends": int(password is not None or bool(disabled)),
            },
        )
        if password is not None or disabled:
            connection.execute(
                "UPDATE identity.refresh_tokens SET revoked_at = now()"
                " WHERE subject = %s AND revoked_at IS NULL",
                (subject,),
            )


def objects_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """The objects that texts as `merchant=m-1,m-2` name; `merchant=` names none. Raises `SubjectError`."""
    found: dict[str, list[str]] = {}
    for text in texts:
        kind, equals, ids = text.partition("=")
        if not equals:
            raise SubjectError(f"objects: {text!r} is not kind=id,id")
        found.setdefault(kind.strip(), []).extend(i.strip() for i in ids.split(",") if i.strip())
    return found


def find(connection: Connection, subject: str) -> Subject:
    """The subject of this name. Raises `SubjectError`."""
    with connection.cursor(row_factory=class_row(Subject)) as cursor:
        found = cursor.execute(_SELECT + " WHERE subject = %s", (subject,)).fetchone()
    if found is None:
        raise SubjectError(f"there is no subject {subject!r}; `millrace users list` shows all")
    return found


def everyone(connection: Connection) -> list[Subject]:
    """All subjects, by name."""
    with connection.cursor(row_factory=class_row(Subject)) as cursor:
        return cursor.execute(_SELECT + " ORDER BY subject").fetchall()


def authenticate(connection: Connection, subject: str, password: str, kind: Kind) -> Subject:
    """The subject whose password this is. Raises `NotAuthenticated`.

    Takes as long for a name that nobody has. One attempt at a time for each subject: many at once would
    otherwise all be made before the first of them is counted.
    """
    with connection.transaction():
        row = connection.execute(
            "SELECT secret_hash, failures, coalesce(locked_until > now(), false) FROM identity.subjects"
            " WHERE subject = %s AND kind = %s FOR UPDATE",
            (subject, kind),
        ).fetchone()
        stored, failures, locked = row or (None, 0, False)
        right = passwords.matches(None if stored is None else str(stored), password)
        if row is not None and not locked:
            _count(connection, subject, right, int(str(failures)))
        if right and passwords.is_outdated(str(stored)):
            connection.execute(
                "UPDATE identity.subjects SET secret_hash = %s WHERE subject = %s",
                (passwords.hashed(password), subject),
            )
    # After the transaction: what was counted must stay counted.
    if locked or not right:
        raise NotAuthenticated(f"{subject!r} is locked" if locked else f"not the password of {subject!r}")
    found = find(connection, subject)
    if found.disabled_at is not None:
        raise NotAuthenticated(f"{subject} was disabled")
    return found


def _count(connection: Connection, subject: str, right: bool, failures: int) -> None:
    if right:
        connection.execute("UPDATE identity.subjects SET failures = 0 WHERE subject = %s", (subject,))
        return
    beyond = failures - FREE_FAILURES
    seconds = min(LOCKED_FIRST_S << min(beyond, 16), LOCKED_MOST_S) if beyond >= 0 else 0
    connection.execute(
        "UPDATE identity.subjects SET failures = failures + 1,"
        " locked_until = CASE WHEN %(s)s > 0 THEN now() + make_interval(secs => %(s)s) ELSE locked_until END"
        " WHERE subject = %(subject)s",
        {"s": seconds, "subject": subject},
    )


def _check(tenant: str, grants: Sequence[str], objects: Mapping[str, Sequence[str]]) -> None:
    if not tenant or not tenant.isprintable():
        raise SubjectError(f"tenant {tenant!r} is no name; give printable characters, at least one")
    scopes_of(grants)
    kinds = sorted(OBJECTS.values())
    for kind, ids in objects.items():
        if kind not in kinds:
            raise SubjectError(f"objects: there is no kind {kind!r}; give one of {', '.join(kinds)}")
        if isinstance(ids, str) or not all(isinstance(i, str) and i for i in ids):
            raise SubjectError(f"objects: {kind} must be a list of ids; give [] for none of them")


def _json(objects: Mapping[str, Sequence[Any]]) -> Jsonb:
    return Jsonb({kind: sorted(set(ids)) for kind, ids in objects.items()})
