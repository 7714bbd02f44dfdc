"""A log on a real database, with a file of heads and keys of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.audit.heads import Heads
from infra.audit.log import AuditLog
from infra.identity.keyring import KeyRing
from infra.identity.principal import Principal
from infra.postgres import Connection, connect
from infra.prepare import prepare_database
from infra.settings import Settings

ANNA = Principal("anna", "person", "acme", frozenset({"ops:write"}), {}, "token:1")


@pytest.fixture(scope="module")
def writer_url(database: Settings) -> str:
    """The database for role millrace_audit."""
    prepare_database(database)
    return database.database_audit_url


@pytest.fixture(scope="module")
def owner(database: Settings) -> Iterator[Connection]:
    """A connection of the database's owner, who is a superuser."""
    with connect(database.database_url) as made:
        yield made


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    """An empty file of heads, and a key."""
    keys = KeyRing(tmp_path / "keys")
    keys.add()
    return Heads(tmp_path / "heads.jsonl", keys)


@pytest.fixture
def log(writer_url: str, heads: Heads, owner: Connection) -> Iterator[AuditLog]:
    """A log without entries, closed at the end."""
    empty(owner)
    made = AuditLog(writer_url, heads, "tests")
    yield made
    made.close()


def empty(owner: Connection) -> None:
    """Take all entries out, as only the owner can."""
    with owner.transaction():
        owner.execute("ALTER TABLE audit.entries DISABLE TRIGGER append_only")
        owner.execute("TRUNCATE audit.entries")
        owner.execute("ALTER TABLE audit.entries ENABLE ALWAYS TRIGGER append_only")


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it has not come to hold"
        time.sleep(0.01)


def stored(owner: Connection, action: str | None = None) -> int:
    """How many entries are stored, of this action or of all."""
    row = owner.execute(
        "SELECT count(*) FROM audit.entries WHERE %(a)s::text IS NULL OR action = %(a)s", {"a": action}
    ).fetchone()
    assert row is not None and isinstance(row[0], int)
    return row[0]
