"""Is the audit log what was written? Walks every chain and compares it with the heads that were signed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any

from infra.audit.entry import GENESIS, Entry
from infra.audit.heads import Head, Heads
from infra.postgres import Connection

ROWS_AT_ONCE = 2_000
NOT_NAMED = ""

_COLUMNS = (
    "chain::text, sequence,"
    # A time that is no time (infinity) gives null, which no entry of ours has.
    " CASE WHEN isfinite(at) THEN (extract(epoch FROM at) * 1000000)::bigint END,"
    " subject, tenant, proof, action, object, outcome, details::text, hash"
)
_ALL = f"SELECT {_COLUMNS} FROM audit.entries ORDER BY audit.entries.chain, sequence"  # noqa: S608
_CHAIN = f"SELECT {_COLUMNS} FROM audit.entries WHERE audit.entries.chain = %s::uuid"  # noqa: S608
_GUARD = (
    "SELECT tgenabled = 'A' FROM pg_trigger"
    " WHERE tgrelid = 'audit.entries'::regclass AND tgname = 'append_only'"
)
_GRANTED = (
    "SELECT DISTINCT grantee::regrole::text FROM pg_class, aclexplode(relacl)"
    " WHERE oid = 'audit.entries'::regclass AND grantee <> relowner"
    "  AND privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE') ORDER BY 1"
)

Row = Sequence[Any]
"""An entry's columns, and its hash."""


class Kind(StrEnum):
    """What is wrong."""

    ALTERED = "altered"
    MOVED = "moved"
    MISSING = "missing"
    TWICE = "twice"
    REWRITTEN = "rewritten"
    CUT = "cut"
    BEYOND = "beyond"
    UNKNOWN = "unknown"
    HEADS = "heads"
    GUARD = "guard"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong first in a chain, or with the file of heads, or with what protects the table."""

    kind: Kind
    chain: str | None
    sequence: int | None
    """The first offending entry, where one can be named."""
    sentence: str


@dataclass(slots=True)
class Account:
    """What was walked, and what was found."""

    chains: int = 0
    entries: int = 0
    heads: int = 0
    uncovered: int = 0
    """Entries at the ends of chains that no signed head covers."""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def verify(connection: Connection, heads: Heads) -> Account:
    """Walk the log. Raises psycopg.Error where it cannot be read, as where the table is another one."""
    began = time.monotonic()
    account = Account()
    # Before the table: a head is signed after its entries are committed, so what it tells of is there.
    signed, bad = heads.read()
    for line in bad:
        account.findings.append(
            Finding(Kind.HEADS, line.chain, None, f"{heads.path.name}: line {line.line} {line.reason}")
        )
    account.findings += _guards(connection)
    account.heads = sum(map(len, signed.values()))
    seen: set[str] = set()
    with connection.transaction(), connection.cursor(name="audit_walk") as cursor:
        cursor.itersize = ROWS_AT_ONCE
        cursor.execute(_ALL)
        found: list[Finding | None] = []
        for chain, rows in groupby(cursor, key=lambda row: row[0] or NOT_NAMED):
            seen.add(chain)
            found.append(_walk(account, chain, rows, signed.get(chain, [])))
    account.findings += [_look_again(connection, f) for f in found if f is not None]
    for chain in signed.keys() - seen:
        last = signed[chain][-1]
        if last.sequence:
            account.findings.append(_cut(chain, 1, last))
    account.seconds = time.monotonic() - began
    return account


def _walk(account: Account, chain: str, rows: Iterable[Row], heads: Sequence[Head]) -> Finding | None:
    """The first thing wrong with this chain."""
    account.chains += 1
    finding: Finding | None = None
    if chain == NOT_NAMED:
        finding = Finding(Kind.UNKNOWN, None, None, "there are entries that name no chain")
    before, following = GENESIS, 1
    due = deque(head for head in heads if head.sequence > 0)
    for row in rows:
        account.entries += 1
        if finding is not None:
            continue  # counted only
        finding = _entry(chain, row, before, following)
        if finding is not None:
            continue
        before = bytes(row[-1])
        while due and due[0].sequence == following:
            head = due.popleft()
            if head.hash != before.hex():
                finding = _rewritten(chain, heads, head)
                break
        following += 1
    if finding is not None:
        return finding
    if not heads:
        return Finding(
            Kind.UNKNOWN,
            chain,
            1,
            f"chain {chain}: no signed head knows it, so none of our processes wrote it",
        )
    if due:
        return _cut(chain, following, due[-1])
    beyond = following - 1 - heads[-1].sequence
    if beyond and heads[-1].last:
        at = heads[-1].sequence + 1
        return Finding(
            Kind.BEYOND,
            chain,
            at,
            f"chain {chain}: entry {at} comes after the end that was signed {heads[-1].at}",
        )
    account.uncovered += beyond
    return None


def _entry(chain: str, row: Row, before: bytes, following: int) -> Finding | None:
    sequence = row[1]
    if sequence is None or sequence < following:
        return Finding(
            Kind.TWICE, chain, sequence, f"chain {chain}: entry {sequence} is there twice, or below 1"
        )
    if sequence > following:
        return Finding(Kind.MISSING, chain, following, f"chain {chain}: entry {following} is missing")
    if None in row or Entry(*row[:-1]).digest(before) != bytes(row[-1]):
        return Finding(
            Kind.ALTERED,
            chain,
            following,
            f"chain {chain}: entry {following} is not the one that was written",
        )
    return None


def _rewritten(chain: str, heads: Sequence[Head], head: Head) -> Finding:
    good = max((h.sequence for h in heads if h.n < head.n and h.sequence < head.sequence), default=0)
    return Finding(
        Kind.REWRITTEN,
        chain,
        good + 1,
        f"chain {chain}: of entries {good + 1} to {head.sequence} one or more were rewritten, with all hashes"
        f" after them; what was there was signed {head.at}",
    )


def _cut(chain: str, following: int, last: Head) -> Finding:
    return Finding(
        Kind.CUT,
        chain,
        following,
        f"chain {chain}: entries {following} to {last.sequence} are cut off; they were there when head"
        f" {last.n} was signed {last.at}",
    )


def _look_again(connection: Connection, finding: Finding) -> Finding:
    """Whether an entry that does not fit its place has only changed places with another."""
    if finding.kind is not Kind.ALTERED or finding.chain is None or finding.sequence is None:
        return finding
    rows: Sequence[Row] = connection.execute(_CHAIN, (finding.chain,)).fetchall()
    by_sequence = {row[1]: row for row in rows}
    before = GENESIS if finding.sequence == 1 else bytes(by_sequence[finding.sequence - 1][-1])
    for row in rows:
        if row[1] == finding.sequence or None in row:
            continue
        if Entry(*row[:-1])._replace(sequence=finding.sequence).digest(before) == bytes(row[-1]):
            return Finding(
                Kind.MOVED,
                finding.chain,
                finding.sequence,
                f"chain {finding.chain}: entry {finding.sequence} stands at {row[1]}, another in its place",
            )
    return finding


def _guards(connection: Connection) -> Iterable[Finding]:
    row = connection.execute(_GUARD).fetchone()
    if row is None or not row[0]:
        yield Finding(
            Kind.GUARD,
            None,
            None,
            "the trigger append_only of audit.entries is off; see infra/migrations/0060_audit.sql",
        )
    for (role,) in connection.execute(_GRANTED).fetchall():
        yield Finding(Kind.GUARD, None, None, f"role {role} may change audit.entries; revoke that")
