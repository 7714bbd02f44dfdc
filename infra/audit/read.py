"""Reading the audit log: entries by filter, the newest first, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from infra.moments import moment
from infra.postgres import Connection


@dataclass(frozen=True, slots=True)
class Told:
    """An entry as it is shown."""

    chain: str
    sequence: int
    at: datetime
    subject: str
    tenant: str
    proof: str
    action: str
    object: str
    outcome: str
    details: dict[str, Any]

    @property
    def place(self) -> str:
        """Where it stands, for the page after it."""
        return f"{self.at.isoformat()}/{self.chain}/{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which entries: what is empty or None is no condition."""

    subject: str = ""
    action: str = ""
    """Whole, or its beginning, as `dlq`."""
    outcome: str = ""
    match: str = ""
    """Part of object or details."""
    since: datetime | None = None
    until: datetime | None = None
    own: bool = False
    """Also what the log tells of itself."""


_ENTRIES = (
    "SELECT chain::text, sequence, at, subject, tenant, proof, action, object, outcome, details"
    " FROM audit.entries"
    " WHERE (%(subject)s = '' OR subject = %(subject)s)"
    " AND (%(action)s = '' OR action = %(action)s OR starts_with(action, %(action)s || '.'))"
    " AND (%(outcome)s = '' OR outcome = %(outcome)s)"
    " AND (%(match)s = '' OR strpos(lower(object || ' ' || details::text), lower(%(match)s)) > 0)"
    " AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)"
    " AND (%(until)s::timestamptz IS NULL OR at < %(until)s)"
    " AND (%(own)s OR NOT starts_with(action, 'audit.'))"
    " AND (%(place_at)s::timestamptz IS NULL OR (at, entries.chain::text, sequence) <"
    "  (%(place_at)s::timestamptz, %(place_chain)s::text, %(place_sequence)s::bigint))"
    " ORDER BY at DESC, entries.chain::text DESC, sequence DESC LIMIT %(limit)s"
)


def entries(connection: Connection, wanted: Wanted, limit: int, after: str = "") -> list[Told]:
    """The newest entries that meet the conditions, or those after the `place` of one.

    Raises `MomentError` where that place has no time.
    """
    values: dict[str, Any] = {name: getattr(wanted, name) for name in wanted.__slots__}
    # Read here: whatever looks like a time, Postgres may still refuse.
    at, chain, sequence = after.split("/") if after else ("", "", "0")
    values |= {"place_at": moment(at) if at else None, "place_chain": chain, "place_sequence": int(sequence)}
    with connection.cursor(row_factory=class_row(Told)) as cursor:
        return cursor.execute(_ENTRIES, {**values, "limit": limit}).fetchall()
