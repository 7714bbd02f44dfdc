"""Is the ledger what was written? Recomputes every chain, and compares it with the heads that were signed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.pq import TransactionStatus

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.ledger import erasure
from infra.ledger.chain import (
    as_hashed,
    chain_name,
    columns_of,
    digest_of,
    fields_of,
    hash_of,
    number,
    seal_of,
    without_frame,
)
from infra.postgres import Connection
from schemas.declare import Table


class Kind(StrEnum):
    """What is wrong."""

    ALTERED = "altered"
    MOVED = "moved"
    MISSING = "missing"
    TWICE = "twice"
    REWRITTEN = "rewritten"
    CUT = "cut"
    UNCHAINED = "unchained"
    UNKNOWN = "unknown"
    ERASED = "erased"
    HEADS = "heads"
    GUARD = "guard"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong first in a chain, or with heads, erasures, or what protects the table."""

    kind: Kind
    chain: str | None
    sequence: int | None
    event_id: str | None
    """The first offending row, where it is there to be named."""
    sentence: str


@dataclass(slots=True)
class Account:
    """What was walked, and what was found."""

    table: str
    chains: int = 0
    rows: int = 0
    before: int = 0
    """Rows of before the chains began."""
    erased: int = 0
    heads: int = 0
    uncovered: int = 0
    """Rows at the ends of chains that no signed head covers."""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class Row(NamedTuple):
    """A row of the table, as the walk needs it."""

    partition: int
    sequence: int | None
    hash: bytes | None
    seal: bytes | None
    key: bytes | None
    offset: int
    event_id: str
    personal: bytes
    rest: bytes

    def fits(self, before: bytes, sequence: int) -> bool:
        """Whether it is what was written at this place behind this hash."""
        if self.seal is None or self.hash is None:
            return False
        if self.key is not None and seal_of(self.key, self.personal) != self.seal:
            return False
        return hash_of(before, sequence, self.seal, self.rest) == self.hash

    @property
    def erased(self) -> str | None:
        """The erasure that its card names."""
        (card, *_), _ = fields_of(self.personal, 1)
        text = (card or b"").decode("utf-8", "replace")
        return text.removeprefix(erasure.ERASED) if text.startswith(erasure.ERASED) else None


_WALKED = (
    "source_partition",
    "chain_sequence",
    "chain_hash",
    "seal",
    "seal_key",
    "source_offset",
    "event_id",
)
_GUARD = (
    "SELECT c.relname::text FROM pg_class c JOIN pg_trigger t ON t.tgrelid = c.oid"
    " WHERE (c.oid = to_regclass(%(t)s) OR c.oid IN (SELECT inhrelid FROM pg_inherits"
    "  WHERE inhparent = to_regclass(%(t)s)))"
    " AND t.tgname = %(t)s || '_append_only' AND t.tgenabled IN ('O', 'A')"
)
_GUARDED = (
    "SELECT c.relname::text FROM pg_class c WHERE c.oid = to_regclass(%(t)s)"
    " OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass(%(t)s)) ORDER BY 1"
)
# Of single columns the owner may change what an erasure blanks, by the trigger's leave.
_GRANTED = (
    "SELECT DISTINCT CASE grantee WHEN 0 THEN 'public' ELSE grantee::regrole::text END FROM ("
    "  SELECT g.grantee, g.privilege_type FROM pg_class c, aclexplode(c.relacl) g"
    "  WHERE c.oid = to_regclass(%(t)s)"
    "  UNION ALL SELECT g.grantee, g.privilege_type"
    "  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid, aclexplode(a.attacl) g"
    "  WHERE c.oid = to_regclass(%(t)s) AND g.grantee <> c.relowner) AS granted"
    " WHERE privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE') ORDER BY 1"
)


def verify(connection: Connection, heads: Heads, table: Table) -> Account:
    """Walk the ledger. Raises psycopg.Error where it cannot be read, LookupError where it has no chain."""
    began = time.monotonic()
    account = Account(table.name)
    # Before the table: a head is signed after its rows are committed, so what it tells of is there.
    signed, bad = heads.read()
    for line in bad:
        sentence = f"{heads.path.name}: line {line.line} {line.reason}"
        account.findings.append(Finding(Kind.HEADS, line.chain, None, None, sentence))
    account.heads = sum(map(len, signed.values()))
    # Within somebody's transaction it sees what that one sees.
    alone = connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction():
        if alone:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        account.findings += _guards(connection, table)
        chains = {
            int(str(partition)): int(str(begins))
            for partition, begins in connection.execute(
                "SELECT partition, begins FROM ledger_chains WHERE table_name = %s", (table.name,)
            )
        }
        _begun(table, signed, chains)
        erased: dict[str, list[bytes]] = {}
        seen: set[str] = set()
        found: list[tuple[int, Finding]] = []
        for partition, rows in groupby(rows_of(connection, table), key=lambda row: row.partition):
            begins = chains.get(partition)
            chain = chain_name(table.name, partition, begins or 0)
            seen.add(chain)
            finding = _walk(account, chain, begins, rows, signed.get(chain, []), erased)
            if finding is not None:
                found.append((partition, finding))
        account.findings += [_look_again(connection, table, partition, f) for partition, f in found]
        for chain in sorted(signed.keys() - seen - {erasure.CHAIN}):
            if chain.startswith(f"{table.name}/") and signed[chain][-1].sequence:
                account.findings.append(_cut(chain, 1, signed[chain][-1]))
        account.findings += _erasures(connection, signed.get(erasure.CHAIN, []), erased)
    account.seconds = time.monotonic() - began
    return account


def _begun(table: Table, signed: Mapping[str, Sequence[Head]], chains: dict[int, int]) -> None:
    """Where the chains begin by the heads, which are signed, and not by the table, which is not."""
    for chain in signed:
        name, _, place = chain.partition("/")
        partition, _, begins = place.partition("@")
        if name == table.name and partition.isdigit() and begins.isdigit():
            known = chains.setdefault(int(partition), int(begins))
            if chain_name(name, int(partition), known) not in signed:
                chains[int(partition)] = int(begins)


def rows_of(
    connection: Connection,
    table: Table,
    partition: int | None = None,
    places: tuple[int, int] | None = None,
) -> Iterator[Row]:
    """The table's rows by partition and place; those without a place last.

    Of one partition alone, and of it those from the first to the last of `places`.
    """
    columns = columns_of(connection, table)
    where = sql.SQL("TRUE") if partition is None else sql.SQL("source_partition = {}").format(partition)
    if places is not None:
        where = sql.SQL("{} AND chain_sequence BETWEEN {} AND {}").format(where, *places)
    query = sql.SQL(
        "COPY (SELECT {} FROM {} WHERE {}"
        " ORDER BY source_partition, chain_sequence NULLS LAST, source_offset) TO STDOUT (FORMAT BINARY)"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, (*_WALKED, *columns.personal, *columns.rest))),
        sql.Identifier(table.name),
        where,
    )
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for data in copy:
            row = without_frame(bytes(data))
            if row is None:
                continue
            found, start = fields_of(row, len(_WALKED))
            _, split = fields_of(row, len(columns.personal), start)
            at, sequence, digest, seal, key, offset, event_id = found
            yield Row(
                number(at) or 0,
                number(sequence),
                digest,
                seal,
                key,
                number(offset) or 0,
                (event_id or b"").decode("utf-8", "replace"),
                row[start:split],
                as_hashed(row[split:], columns.arrays),
            )


def _walk(
    account: Account,
    chain: str,
    begins: int | None,
    rows: Iterable[Row],
    heads: Sequence[Head],
    erased: dict[str, list[bytes]],
) -> Finding | None:
    """The first thing wrong with this chain."""
    account.chains += 1
    finding: Finding | None = None
    before, following = GENESIS, 1
    due = deque(head for head in heads if head.sequence > 0)
    for row in rows:
        account.rows += 1
        ref = row.erased
        if row.key is None and row.seal is not None:
            account.erased += 1
            erased.setdefault(ref or "", []).append(row.hash or b"")
        if finding is not None:
            continue  # counted only
        if row.sequence is None:
            if begins is not None and not 0 <= row.offset < begins:
                finding = Finding(
                    Kind.UNCHAINED, chain, None, row.event_id,
                    f"{chain}: the row of {row.event_id} (offset {row.offset}) is in no chain: the sink did"
                    " not write it",
                )  # fmt: skip
            account.before += 1
            continue
        finding = _row(chain, row, before, following)
        if finding is not None:
            continue
        before = row.hash or b""
        while due and due[0].sequence == following:
            head = due.popleft()
            if head.hash != before.hex():
                finding = _rewritten(chain, heads, head)
                break
        following += 1
    if finding is not None:
        return finding
    if not heads:
        if following == 1:
            return None
        return Finding(
            Kind.UNKNOWN,
            chain,
            1,
            None,
            f"{chain}: no signed head knows it; are heads and keys the right ones?",
        )
    if due:
        return _cut(chain, following, due[-1])
    account.uncovered += following - 1 - heads[-1].sequence
    return None


def _row(chain: str, row: Row, before: bytes, following: int) -> Finding | None:
    assert row.sequence is not None
    if row.sequence < following:
        sentence = f"{chain}: row {row.sequence} is there twice ({row.event_id})"
        return Finding(Kind.TWICE, chain, row.sequence, row.event_id, sentence)
    if row.sequence > following:
        sentence = f"{chain}: row {following} is missing; the next one is {row.sequence} ({row.event_id})"
        return Finding(Kind.MISSING, chain, following, None, sentence)
    if not row.fits(before, following):
        sentence = f"{chain}: row {following} ({row.event_id}) is not the one that was written"
        return Finding(Kind.ALTERED, chain, following, row.event_id, sentence)
    return None


def _rewritten(chain: str, heads: Sequence[Head], head: Head) -> Finding:
    good = max((h.sequence for h in heads if h.n < head.n and h.sequence < head.sequence), default=0)
    return Finding(
        Kind.REWRITTEN, chain, good + 1, None,
        f"{chain}: of rows {good + 1} to {head.sequence} one or more were rewritten, with all hashes after"
        f" them; what was there was signed {head.at}",
    )  # fmt: skip


def _cut(chain: str, following: int, last: Head) -> Finding:
    return Finding(
        Kind.CUT, chain, following, None,
        f"{chain}: rows {following} to {last.sequence} are cut off; they were there when head {last.n} was"
        f" signed {last.at}",
    )  # fmt: skip


def _look_again(connection: Connection, table: Table, partition: int, finding: Finding) -> Finding:
    """Whether a row that does not fit its place has only changed places with another."""
    if finding.kind is not Kind.ALTERED or finding.sequence is None:
        return finding
    before = GENESIS
    rows = rows_of(connection, table, partition)
    for row in rows:
        if row.sequence == finding.sequence:
            break
        before = row.hash or b""
    for row in rows:
        if row.fits(before, finding.sequence):
            for _ in rows:
                pass  # COPY is read to its end
            sentence = (
                f"{finding.chain}: row {finding.sequence} ({row.event_id}) stands at {row.sequence}, and"
                f" {finding.event_id} in its place"
            )
            return Finding(Kind.MOVED, finding.chain, finding.sequence, row.event_id, sentence)
    return finding


def _erasures(
    connection: Connection, heads: Sequence[Head], erased: dict[str, list[bytes]]
) -> Iterator[Finding]:
    """Each erasure follows the one before and is signed; each row without a key belongs to one."""
    before, signed = GENESIS, {head.sequence: head.hash for head in heads}
    last = heads[-1].sequence if heads else 0
    found = erasure.read(connection)
    left = dict(erased)
    for n, entry in enumerate(found, 1):
        name = f"erasure {n} ({entry.ref})"
        if entry.sequence != n or entry.after(before) != entry.hash:
            yield Finding(Kind.ERASED, erasure.CHAIN, n, None, f"{name} is not the one that was written")
            return
        if n in signed and signed[n] != entry.hash.hex():
            yield Finding(Kind.ERASED, erasure.CHAIN, n, None, f"{name} was rewritten after it was signed")
            return
        if n > last:
            yield Finding(
                Kind.ERASED, erasure.CHAIN, n, None,
                f"{name} is not signed; if it is yours, run `millrace ledger countersign`",
            )  # fmt: skip
        rows = left.pop(entry.ref, [])
        if len(rows) != entry.rows or digest_of(rows) != entry.digest:
            yield Finding(
                Kind.ERASED, erasure.CHAIN, n, None,
                f"{name} tells of {entry.rows} rows, and {len(rows)} are blank in its name, or others:"
                " personal data was put back, or rows were blanked by somebody else",
            )  # fmt: skip
        before = entry.hash
    if last > len(found):
        yield Finding(
            Kind.ERASED, erasure.CHAIN, len(found) + 1, None,
            f"erasures {len(found) + 1} to {last} were signed and are gone: after a restore repeat them",
        )  # fmt: skip
    for ref, rows in left.items():
        yield Finding(
            Kind.ERASED, erasure.CHAIN, None, None,
            f"{len(rows)} rows have lost their seal's key, and no erasure {ref or 'at all'} tells of them",
        )  # fmt: skip


def _guards(connection: Connection, table: Table) -> Iterator[Finding]:
    held = {str(name) for (name,) in connection.execute(_GUARD, {"t": table.name}).fetchall()}
    for (name,) in connection.execute(_GUARDED, {"t": table.name}).fetchall():
        if name not in held:
            sentence = f"the trigger {table.name}_append_only of {name} is off or gone"
            yield Finding(Kind.GUARD, None, None, None, sentence)
    for (role,) in connection.execute(_GRANTED, {"t": table.name}).fetchall():
        sentence = f"role {role} may change or delete rows of {table.name}; revoke that"
        yield Finding(Kind.GUARD, None, None, None, sentence)
