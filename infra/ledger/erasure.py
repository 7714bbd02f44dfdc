"""Personal data leaves the ledger: the rows' keys are destroyed with the values, and the rows stay.

Each erasure is an entry of a chain whose head is signed with it. So a row whose personal columns were blanked
by anybody else is told from one that was erased.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.ledger.chain import digest_of
from infra.ledger.heads import now
from infra.postgres import Connection
from schemas.declare import Table

CHAIN = "ledger/erasures"
ERASED = "erased:"
_LOCK = 0x65726173
_FORMAT = b"millrace-erasure-1\n"
_COLUMNS = "sequence, table_name, ref, tenant, reason, at, by, rows, digest, hash"


class ErasureError(ValueError):
    """What was asked for cannot be; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """One entry of the chain of erasures."""

    sequence: int
    table: str
    ref: str
    tenant: str
    reason: str
    at: datetime
    by: str
    rows: int
    digest: bytes
    hash: bytes

    def after(self, before: bytes) -> bytes:
        """The hash that it should have behind the entry whose hash is `before`."""
        told = (
            self.sequence, self.table, self.ref, self.tenant, self.reason,
            int(self.at.timestamp() * 1_000_000), self.by, self.rows, self.digest.hex(),
        )  # fmt: skip
        parts = [str(value).encode() for value in told]
        return sha256(_FORMAT + before + b"".join(b"%d:%b," % (len(p), p) for p in parts)).digest()


def read(connection: Connection) -> list[Erasure]:
    """All erasures, in order."""
    rows: Sequence[Any] = connection.execute(
        f"SELECT {_COLUMNS} FROM ledger_erasures ORDER BY sequence".encode()  # noqa: S608 -- our own names
    ).fetchall()
    names = [field.name for field in fields(Erasure)]
    return [Erasure(**dict(zip(names, row, strict=True))) for row in rows]


def erase(
    connection: Connection, heads: Heads, table: Table, tenant: str, card: str, reason: str, by: str
) -> Erasure:
    """Erase a card from the ledger's rows, and sign that it was. Raises `ErasureError`."""
    if not reason.strip():
        raise ErasureError("say why: the reason stands in the record of the erasure")
    if unsigned(connection, heads):
        raise ErasureError("an earlier erasure is not signed; look at it, then `millrace ledger countersign`")
    ref = secrets.token_hex(8)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute("SELECT set_config('millrace.erasure', %s, true)", (ref,))
        erased = connection.execute(
            f"UPDATE {table.name} SET card_id = %s, customer_id = NULL, seal_key = NULL"  # noqa: S608
            " WHERE tenant = %s AND card_id = %s RETURNING chain_hash".encode(),
            (ERASED + ref, tenant, card),
        ).fetchall()
        if not erased:
            raise ErasureError(f"tenant {tenant!r} has no card {card!r} in {table.name}")
        before = read(connection)
        row = connection.execute("SELECT now()").fetchone()
        assert row is not None and isinstance(row[0], datetime)
        hashes = [bytes(h) for (h,) in erased if h is not None]  # type: ignore[call-overload]
        made = Erasure(
            len(before) + 1, table.name, ref, tenant, reason, row[0], by,
            len(hashes), digest_of(hashes), b"",
        )  # fmt: skip
        digest = made.after(before[-1].hash if before else GENESIS)
        connection.execute(
            f"INSERT INTO ledger_erasures ({_COLUMNS})"  # noqa: S608
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)".encode(),
            (
                made.sequence, made.table, made.ref, made.tenant, made.reason, made.at, made.by,
                made.rows, made.digest, digest,
            ),
        )  # fmt: skip
    sign(connection, heads)
    return replace(made, hash=digest)


def unsigned(connection: Connection, heads: Heads) -> list[Erasure]:
    """Erasures behind the last signed head."""
    told = heads.read()[0].get(CHAIN, [])
    signed = told[-1].sequence if told else 0
    return [erasure for erasure in read(connection) if erasure.sequence > signed]


def sign(connection: Connection, heads: Heads) -> int:
    """Sign what is not signed yet; returns how many erasures that were."""
    waiting = unsigned(connection, heads)
    if waiting:
        told = heads.read()[0].get(CHAIN, [])
        n = told[-1].n if told else 0
        if not told:
            heads.append(Head(CHAIN, 0, GENESIS.hex(), n := 1, now()))
        last = waiting[-1]
        heads.append(Head(CHAIN, last.sequence, last.hash.hex(), n + 1, now()))
    return len(waiting)
