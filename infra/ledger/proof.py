"""Whether one row of a chained table is what was written: its chain, from it up to the next signed head."""

from __future__ import annotations

from dataclasses import dataclass

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.ledger.chain import chain_name
from infra.ledger.verify import rows_of
from infra.postgres import Connection
from schemas.declare import Table

WALK_MOST = 50_000
"""A head further away than so many rows is not walked to: ten seconds of the ledger are fewer."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a walk from a row on has shown.

    `chain` and `sequence`: the row's place. `hash`: as stored, in hex. `head`: the signed head that the walk
    led to; None where none is signed yet. `walked`: rows whose hashes were computed anew. `erased`: its
    personal data was, with the key of its seal. `finding`: what is wrong, in a sentence; None: nothing is.
    """

    chain: str
    sequence: int
    hash: str
    head: Head | None
    walked: int
    erased: bool
    finding: str | None


def prove(connection: Connection, table: Table, heads: Heads, partition: int, sequence: int) -> Proof:
    """Compute the chain anew from the row at this place up to the first signed head behind it.

    The whole of the ledger, and what protects it, is `infra.ledger.verify.verify`'s. Raises LookupError
    where there is no such row.
    """
    begins = connection.execute(
        "SELECT begins FROM ledger_chains WHERE table_name = %s AND partition = %s", (table.name, partition)
    ).fetchone()
    chain = chain_name(table.name, partition, int(str(begins[0])) if begins else 0)
    head = heads.covering(chain, sequence)
    last = sequence if head is None else min(head.sequence, sequence + WALK_MOST)
    before, walked, own, finding = GENESIS, 0, None, None
    rows = rows_of(connection, table, partition, (sequence - 1, last))
    for place, row in enumerate(rows, sequence - 1 if sequence > 1 else 1):
        if row.sequence == sequence:
            own = row
        if finding is None and row.sequence != place:
            finding = f"row {place} of {chain} is missing, or is there twice"
        if finding is None and place >= sequence:
            walked += 1
            if not row.fits(before, place):
                finding = f"row {place} of {chain} ({row.event_id}) is not the one that was written"
        before = row.hash or b""
    if own is None or own.hash is None:
        raise LookupError(f"{table.name} has no row {sequence} of partition {partition}")
    if finding is None and head is not None and head.sequence == last:
        finding = _against(head, before, walked, last - sequence + 1)
    return Proof(chain, sequence, own.hash.hex(), head, walked, own.key is None, finding)


def _against(head: Head, reached: bytes, walked: int, wanted: int) -> str | None:
    if walked < wanted:
        return f"{wanted - walked} rows up to the head signed {head.at} are cut off"
    if reached.hex() != head.hash:
        return f"the rows up to {head.sequence} were rewritten after their head was signed {head.at}"
    return None
