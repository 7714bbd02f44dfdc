"""The outbox: decisions that somebody outside subscribed to, written in the transaction of their rows.

By column, and nothing at all for what nobody wants. A row that was in its table already adds nothing; and a
replay has no outbox. See docs/adr/0061.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from infra.postgres import Connection
from infra.telemetry.metrics import OUTBOX_ROWS
from schemas.declare import Table
from sinks.blocks import Layout, ms

Cursor = psycopg.Cursor[Any]
Bools = npt.NDArray[np.bool_]

LOCK = 0x6F757462
"""The lock ("outb") that is held from the COPY to the commit: sequences become visible in their order."""

COLUMNS = ("tenant", "merchant_id", "event_id", "occurred_at", "decision", "risk")
_OIDS = (25, 25, 25, 1184, 25, 701)
_SCHEMA = pa.schema(
    [
        pa.field(name, {"occurred_at": pa.int64(), "risk": pa.float64()}.get(name, pa.string()))
        for name in COLUMNS
    ]
)
_COPY = f"COPY outbox ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)".encode()
_SUBSCRIPTIONS = "SELECT tenant, merchant_id, decisions, risk_min FROM outward_endpoints"
_REVISION = "SELECT revision FROM outward_revision"


@dataclass(frozen=True)
class Told:
    """Which table's rows are told outside. Its events have the fields of `COLUMNS`."""

    table: Table


@dataclass(slots=True)
class Group:
    """Subscriptions of one tenant that differ by merchant alone."""

    decisions: frozenset[str]
    risk_min: float
    merchants: set[str] = field(default_factory=set)
    everyone: bool = False


Wanted = Mapping[str, Sequence[Group]]
"""Who wants what, by tenant."""


def wanted(subscriptions: Sequence[tuple[str, str | None, Sequence[str], float]]) -> Wanted:
    """From subscriptions: tenant, merchant (None: all), decisions, least risk."""
    groups: dict[str, dict[tuple[frozenset[str], float], Group]] = {}
    for tenant, merchant, decisions, risk_min in subscriptions:
        kinds = frozenset(decisions)
        group = groups.setdefault(tenant, {}).setdefault((kinds, risk_min), Group(kinds, risk_min))
        if merchant is None:
            group.everyone = True
        else:
            group.merchants.add(merchant)
    return {tenant: tuple(found.values()) for tenant, found in groups.items()}


def chosen(events: pa.RecordBatch, by_tenant: Wanted) -> Bools:
    """Which events somebody wants."""
    found = np.zeros(len(events), dtype=bool)
    tenants = events.column("tenant")
    decisions: pa.Array | None = None
    risks = np.empty(0)
    for tenant in pc.unique(tenants).to_pylist():
        groups = by_tenant.get(tenant)
        if not groups:
            continue
        if decisions is None:
            decisions, risks = events.column("decision").cast(pa.string()), events.column("risk").to_numpy()
        theirs = pc.equal(tenants, tenant).to_numpy(zero_copy_only=False)
        for group in groups:
            kinds = pc.is_in(decisions, pa.array(sorted(group.decisions)))
            mask = theirs & kinds.to_numpy(zero_copy_only=False)
            if group.risk_min > 0:
                mask &= risks >= group.risk_min
            if not group.everyone and mask.any():
                mask &= _of(events.column("merchant_id"), group.merchants)
            found |= mask
    return found


def _of(merchants: pa.Array, wanted_ones: set[str]) -> Bools:
    """Which are among the wanted; each different one is looked up once."""
    encoded = merchants.dictionary_encode()
    known = np.array([m in wanted_ones for m in encoded.dictionary.to_pylist()] + [False], dtype=bool)
    places = encoded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)
    found: Bools = known[places]
    return found


def batch_of(event: Mapping[str, Any]) -> pa.RecordBatch:
    """One event that was made into rows by itself."""
    return pa.RecordBatch.from_pylist([{name: event[name] for name in COLUMNS}], schema=_SCHEMA)


class Outbox:
    """Writes the outbox of one sink. Used within its transactions, by its thread."""

    def __init__(self, told: Told, topic_name: str, consumer: str) -> None:
        self.told = told
        self._layout = Layout(COLUMNS, _OIDS)
        self._revision: int | None = None
        self._wanted: Wanted = {}
        self._written = OUTBOX_ROWS.labels(consumer, topic_name)

    def write(
        self,
        connection: Connection,
        cursor: Cursor,
        parts: Sequence[tuple[pa.RecordBatch, int, npt.NDArray[np.int64]]],
        *,
        all_new: bool,
    ) -> int:
        """Add what somebody wants of these events: a batch, its partition and the records' offsets.

        Without `all_new` only events whose own record gave the row that the table has. Returns how many.
        As the last statement before the commit: other sinks wait for it.
        """
        cursor.execute(_REVISION)
        row = cursor.fetchone()
        revision = int(row[0]) if row else 0
        if revision != self._revision:
            cursor.execute(_SUBSCRIPTIONS)
            self._wanted = wanted(cursor.fetchall())
            self._revision = revision
        if not self._wanted:
            return 0
        batches: list[dict[str, Any]] = []
        for events, partition, offsets in parts:
            rows = np.flatnonzero(chosen(events, self._wanted))
            if not len(rows):
                continue
            some = events.select(COLUMNS).take(pa.array(rows))
            columns: dict[str, Any] = {name: some.column(name) for name in COLUMNS}
            columns["decision"] = columns["decision"].cast(pa.string())
            columns["occurred_at"] = ms(columns["occurred_at"].cast(pa.int64()))
            batches.append({**columns, "source_partition": partition, "source_offset": offsets[rows]})
        if not batches:
            return 0
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        written = self._copy(connection, cursor, batches) if all_new else None
        if written is None:
            written = self._insert(cursor, batches)
        self._written.inc(written)
        return written

    def _copy(
        self, connection: Connection, cursor: Cursor, batches: Sequence[Mapping[str, Any]]
    ) -> int | None:
        """All of them at once; None where one was there already."""
        data = self._layout.copy_data(batches)
        try:
            with connection.transaction(), cursor.copy(_COPY) as copy:
                copy.write(data)
        except psycopg.errors.UniqueViolation:
            return None
        return sum(len(columns["event_id"]) for columns in batches)

    def _insert(self, cursor: Cursor, batches: Sequence[Mapping[str, Any]]) -> int:
        written = 0
        for columns in batches:
            values = [columns[name].to_pylist() for name in COLUMNS]
            statement = (
                f"INSERT INTO outbox ({', '.join(COLUMNS)})"  # noqa: S608 -- declared names
                f" SELECT {', '.join(f'o.{name}' for name in COLUMNS)} FROM unnest(%s::text[], %s::text[],"
                " %s::text[], %s::timestamptz[], %s::text[], %s::float8[], %s::bigint[])"
                f" WITH ORDINALITY AS o ({', '.join(COLUMNS)}, source_offset, n)"
                f" WHERE EXISTS (SELECT FROM {self.told.table.name} l WHERE l.occurred_at = o.occurred_at"
                "  AND l.tenant = o.tenant AND l.event_id = o.event_id"
                "  AND l.source_partition = %s AND l.source_offset = o.source_offset)"
                " ORDER BY o.n ON CONFLICT DO NOTHING"
            )
            cursor.execute(
                statement.encode(),
                (*values, columns["source_offset"].tolist(), columns["source_partition"]),
            )
            written += cursor.rowcount
        return written
