"""What the hashes of a chained table are.

A row's bytes are those of Postgres' binary COPY, each value with its length before it (-1: null): first the
personal columns, then all others but the chain's own, in the order in which they were added to the table.
From both the trailing nulls are left out, so that a column which was added later, and is null in old rows,
changes no old hash. An empty array is one of one dimension without elements; see `as_hashed`.

    seal = SHA-256("millrace-seal-1\\n" + seal_key + personal)
    hash = SHA-256("millrace-ledger-1\\n" + hash before + sequence (8 bytes) + seal + rest)

Before the first row stand zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from infra.audit.entry import GENESIS
from infra.postgres import Connection
from schemas.declare import Table

CHAIN_COLUMNS = ("chain_sequence", "chain_hash", "seal", "seal_key")
KEY_BYTES = 16
_SEAL = b"millrace-seal-1\n"
_ROW = b"millrace-ledger-1\n"
_LENGTH = {n: n.to_bytes(4, "big") for n in (8, 16, 32)}

Pieces = tuple[bytes, bytes]
"""A row's personal columns, and the others, as binary COPY has them."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """How far the chain of a source partition has come. `begins`: the first offset that belongs to it."""

    begins: int
    sequence: int = 0
    hash: bytes = GENESIS


def chain_name(table: str, partition: int, begins: int) -> str:
    """As the signed heads name it."""
    return f"{table}/{partition}@{begins}"


def seal_of(key: bytes, personal: bytes) -> bytes:
    """What the chain knows of the personal columns."""
    return sha256(_SEAL + key + personal.rstrip(b"\xff")).digest()


def hash_of(before: bytes, sequence: int, seal: bytes, rest: bytes) -> bytes:
    """A row's hash. (A null is four bytes of 255; what ends a value so is told from nulls by its length.)"""
    return sha256(_ROW + before + sequence.to_bytes(8, "big") + seal + rest.rstrip(b"\xff")).digest()


def link(rows: Iterable[Pieces], count: int, columns: int, head: ChainHead) -> tuple[list[bytes], ChainHead]:
    """Chain `count` rows of so many columns behind `head`: as binary COPY wants them, with their chain's
    columns at the end, and the new head."""
    keys = os.urandom(KEY_BYTES * count)
    before, sequence = head.hash, head.sequence
    fields = (columns + len(CHAIN_COLUMNS)).to_bytes(2, "big")
    l8, l16, l32 = _LENGTH[8], _LENGTH[16], _LENGTH[32]
    made: list[bytes] = []
    for at, (personal, rest) in enumerate(rows):
        sequence += 1
        key = keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]
        number = sequence.to_bytes(8, "big")
        seal = sha256(_SEAL + key + personal.rstrip(b"\xff")).digest()
        before = sha256(_ROW + before + number + seal + rest.rstrip(b"\xff")).digest()
        made.append(b"".join((fields, personal, rest, l8, number, l32, before, l32, seal, l16, key)))
    return made, ChainHead(head.begins, sequence, before)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a chained table in the order of its hashes."""

    personal: tuple[str, ...]
    rest: tuple[str, ...]
    """All others but the chain's own."""
    arrays: frozenset[int]
    """Which of `rest` are arrays."""


def columns_of(connection: Connection, table: Table) -> Columns:
    """Raises LookupError where the table has no chain."""
    found = {
        str(name): bool(array)
        for name, array in connection.execute(
            "SELECT attname, typcategory = 'A' FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid"
            " WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (table.name,),
        )
    }
    missing = [name for name in CHAIN_COLUMNS if name not in found]
    if missing:
        raise LookupError(f"table {table.name} has no column {missing[0]}; a chained table needs it")
    rest = tuple(name for name in found if name not in (*CHAIN_COLUMNS, *table.personal))
    return Columns(table.personal, rest, frozenset(n for n, name in enumerate(rest) if found[name]))


def as_hashed(rest: bytes, arrays: frozenset[int]) -> bytes:
    """What Postgres sends, with empty arrays as the sink writes them: Postgres drops their dimension."""
    start = copied = 0
    parts: list[bytes] = []
    for n in range(max(arrays, default=-1) + 1):
        length = int.from_bytes(rest[start : start + 4], "big", signed=True)
        end = start + 4 + max(length, 0)
        if n in arrays and rest[start : start + 8] == _EMPTY:
            parts += (rest[copied:start], _EMPTY_HASHED, rest[start + 12 : end], _EMPTY_END)
            copied = end
        start = end
    return b"".join((*parts, rest[copied:])) if parts else rest


_EMPTY = (12).to_bytes(4, "big") + bytes(4)
"""Length and number of dimensions; flags and the elements' type follow."""
_EMPTY_HASHED = (20).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(4)
_EMPTY_END = bytes(4) + (1).to_bytes(4, "big")


def fields_of(row: bytes, count: int, start: int = 0) -> tuple[list[bytes | None], int]:
    """The first `count` values of a row from `start` on, and where the next one begins."""
    values: list[bytes | None] = []
    for _ in range(count):
        length = int.from_bytes(row[start : start + 4], "big", signed=True)
        start += 4
        if length < 0:
            values.append(None)
        else:
            values.append(row[start : start + length])
            start += length
    return values, start


def number(value: bytes | None) -> int | None:
    """A whole number of binary COPY."""
    return None if value is None else int.from_bytes(value, "big", signed=True)


SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What binary COPY begins with."""
TRAILER = b"\xff\xff"


def without_frame(data: bytes) -> bytes | None:
    """A row as COPY TO sends it, after its number of columns; None for the end."""
    if data.startswith(SIGNATURE):
        data = data[len(SIGNATURE) :]
    return None if data in (TRAILER, b"") else data[2:]


def digest_of(hashes: Sequence[bytes]) -> bytes:
    """What an erasure tells of its rows."""
    return sha256(b"millrace-erased-rows-1\n" + b"".join(sorted(hashes))).digest()
