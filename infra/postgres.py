"""Connections to Postgres, its error classes, and the migrations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import psycopg
from psycopg import sql

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x6D696C6C  # "mill": one migrator at a time

Connection = psycopg.Connection[tuple[object, ...]]

DatabaseUrl = str | Callable[[], str]
"""Where the database is, or what says it now: the next connection may need another password."""


class MigrationError(RuntimeError):
    """The database and the migrations on disk disagree; the message says which and what to do."""


class Failure(Enum):
    """What an error of Postgres means for the batch that met it."""

    INVALID = "a record breaks a rule of the database: dead letter it, its neighbours land"
    MISSING_PARTITION = "no partition for the row's time: create it, try again"
    TRANSIENT = "the database cannot now: pause, back off, try again; no record is at fault"
    UNLISTED = "unknown: stop, rather than guess"


# By single SQLSTATE, not by class: within class 22 and 23 some mean a bad record and some a bad program.
_INVALID = {
    "22001",  # string_data_right_truncation
    "22003",  # numeric_value_out_of_range
    "22007",  # invalid_datetime_format
    "22008",  # datetime_field_overflow
    "22021",  # character_not_in_repertoire (NUL in text)
    "22023",  # invalid_parameter_value
    "22030",  # duplicate_json_object_key_value
    "22032",  # invalid_json_text
    "22P02",  # invalid_text_representation
    "22P03",  # invalid_binary_representation
    "22P05",  # untranslatable_character
    "23502",  # not_null_violation
    "23503",  # foreign_key_violation
    "23505",  # unique_violation (beyond the declared key: two rows claim one identity)
    "23514",  # check_violation
    "23P01",  # exclusion_violation
    "54000",  # program_limit_exceeded: an oversized index key
}
_TRANSIENT = {
    "53000", "53100", "53200", "53300",  # resources: disk full, memory, too many connections
    "40001", "40003", "40P01",  # serialization, unknown completion, deadlock
    "55P03",  # lock_not_available
    "57014", "57P01", "57P02", "57P03", "57P05",  # cancelled, shutdown, crash, starting up
    "58000", "58030",  # system error, I/O error
    "25006",  # read-only: a failover is under way
}  # fmt: skip


def classify(error: psycopg.Error) -> Failure:
    """What `error` means, by its SQLSTATE. A lost connection carries none and is transient."""
    state = error.sqlstate
    if state is None:
        return Failure.TRANSIENT if isinstance(error, psycopg.OperationalError) else Failure.UNLISTED
    if state == "23514" and "no partition of relation" in str(error):
        return Failure.MISSING_PARTITION
    if state in _TRANSIENT or state.startswith("08"):
        return Failure.TRANSIENT
    if state in _INVALID:
        return Failure.INVALID
    return Failure.UNLISTED


def connect(database_url: DatabaseUrl, application: str = "millrace") -> Connection:
    """A connection outside any transaction. Raises `psycopg.OperationalError` where there is no database."""
    return psycopg.connect(
        database_url if isinstance(database_url, str) else database_url(),
        autocommit=True,
        application_name=application,
        connect_timeout=5,
        # A database that vanished without a word is noticed within about 20 s instead of hours.
        keepalives_idle=5,
        keepalives_interval=5,
        keepalives_count=3,
    )


def let_in(database_url: str, passwords: Mapping[str, str]) -> None:
    """Give roles, which the migrations have made, their passwords."""
    with connect(database_url, "millrace-migrate") as connection:
        for role, password in passwords.items():
            set_password(connection, role, password)


def set_password(connection: Connection, role: str, password: str) -> None:
    """Let `role` log in with this password, which itself is not sent: a server that logs statements keeps
    its verifier alone."""
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
    connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), verifier.decode())
    )


def migrate(database_url: str, progress: Callable[[str], None] = lambda _: None) -> list[str]:
    """Bring the database up to date; returns the names of the migrations applied now.

    Each file runs once, in the order of the names, in a transaction of its own. Raises `MigrationError`
    where a file that was applied has changed since.
    """
    from infra.generations import unfolded  # it needs the connections of this module

    applied_now: list[str] = []
    with connect(database_url, "millrace-migrate") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, sha256 text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = {str(n): d for n, d in connection.execute("SELECT name, sha256 FROM migrations")}
        for path in sorted(MIGRATIONS.glob("[0-9]*.sql")):
            body = path.read_bytes()
            digest = hashlib.sha256(body).hexdigest()
            if path.name in known:
                if known[path.name] != digest:
                    raise MigrationError(
                        f"migration {path.name} was changed after it was applied; undo the change and write a"
                        " new migration (in development: `millrace down --purge` starts afresh)"
                    )
                continue
            progress(f"migrating {path.name}")
            # A migration changes a table by its name, also where that name is by now a generation's view.
            with connection.transaction(), unfolded(connection):
                connection.execute(body)
                connection.execute(
                    "INSERT INTO migrations (name, sha256) VALUES (%s, %s)", (path.name, digest)
                )
            applied_now.append(path.name)
    return applied_now
