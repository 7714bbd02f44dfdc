"""Is each row of a table what the log says, by the table's declared merge, and has each its record?

The rows that the records give are staged some thousands at a time and compared in the database, in the
columns' own types. A row that its record should have written, but another one did, is right only where the
merge rule lets that other one win.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg import sql

from infra.checkpoints import TopicPartition
from infra.columns import events_of
from infra.ledger.erasure import ERASED
from infra.postgres import Connection
from infra.verification import Check, Place
from schemas.declare import Table
from sinks.blocks import layout_of
from sinks.rows import Row, RowMapping

Ints = npt.NDArray[np.int64]
STAGED_ROWS = 20_000
SOURCE_COLUMNS = ("source_partition", "source_offset")
_PARTITION_SHIFT = 48


class Kind(IntEnum):
    """What the table has under the key of a row that a record gives."""

    OWN = 0
    """This very row."""
    EARLIER = 1
    """A row with the same key that came before it: the record is a duplicate there."""
    SUPERSEDED = 2
    """A row that the merge rule prefers."""
    ABSENT = 3
    DIFFERS = 4
    """The row names this record as its source, and has other values."""
    LATER = 5
    """A row of a later record, which the merge rule does not prefer."""


RIGHT = frozenset({Kind.OWN, Kind.EARLIER, Kind.SUPERSEDED})

_SENTENCES = {
    Kind.ABSENT: "has no row",
    Kind.DIFFERS: "has a row with other values",
    Kind.LATER: "should have the row that a later record has",
}


@dataclass(frozen=True, slots=True)
class _Staged:
    """Events that give one row each: their places, and the rows by column."""

    events: pa.RecordBatch
    partitions: Ints
    offsets: Ints
    columns: Mapping[str, Any]


@dataclass(slots=True)
class Lot:
    """Rows that wait to be compared: one by one, and by column."""

    rows: list[Row] = field(default_factory=list)
    blocks: list[_Staged] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + sum(len(block.events) for block in self.blocks)


class TableCheck:
    """Compares one table with its topic's records, within one transaction of `connection`.

    Make it before the transaction begins, as it creates a temporary table.
    """

    def __init__(self, connection: Connection, mapping: RowMapping) -> None:
        self.mapping = mapping
        self.table = table = mapping.table
        self.check = Check(f"{table.name}: each record has its row, each row its record", unit="rows")
        self._connection = connection
        self._lot = Lot()
        self._own: array[int] = array("q")
        self._columns = columns = (*table.columns, *SOURCE_COLUMNS)
        self._key = [columns.index(c) for c in table.key]
        self._order = columns.index(table.order_by) if table.order_by else None
        stage = sql.Identifier("pg_temp", f"verify_{table.name}")
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        connection.execute(
            sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier(f"verify_{table.name}"), names, sql.Identifier(table.name)
            )
        )
        types: dict[str, int] = {
            str(name): int(str(oid))
            for name, oid in connection.execute(
                "SELECT attname, atttypid FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0",
                (f"pg_temp.verify_{table.name}",),
            )
        }
        self._types = [types[c] for c in columns]
        self._layout = layout_of(columns, self._types) if mapping.columns is not None else None
        self._copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(stage, names)
        self._empty = sql.SQL("TRUNCATE {}").format(stage)
        self._analyze = sql.SQL("ANALYZE {}").format(stage)
        self._analyze_key = sql.SQL("ANALYZE {} ({})").format(
            stage, sql.SQL(", ").join(map(sql.Identifier, table.key))
        )
        self._compare = _comparison(table, stage)
        self._compare_others = sql.SQL(
            "SELECT * FROM ({}) compared (part, place, kind) WHERE kind <> 0"
        ).format(self._compare)

    def add(self, rows: Iterable[Row], partition: int, offset: int) -> int:
        """Take the rows of a record; returns how many there are after the merge within the record."""
        found = [(*row, partition, offset) for row in rows]
        if len(found) > 1:
            found = self._merged(found)
        self._lot.rows += found
        return len(found)

    def _merged(self, rows: list[Row]) -> list[Row]:
        best: dict[Any, Row] = {}
        for row in rows:
            key = tuple(row[i] for i in self._key)
            old = best.get(key)
            if old is None or (self._order is not None and row[self._order] > old[self._order]):
                best[key] = row
        return list(best.values())

    @property
    def takes_blocks(self) -> bool:
        """Whether `add_block` may be used."""
        return self._layout is not None

    def by_column(self, events: pa.RecordBatch) -> Mapping[str, Any]:
        """The rows of events, one of each. Raises what the mapping does for an event that gives none."""
        assert self.mapping.columns is not None
        return self.mapping.columns(events)

    def add_block(
        self, events: pa.RecordBatch, partitions: Ints, offsets: Ints, rows: Mapping[str, Any]
    ) -> None:
        """Take the rows that `by_column` gives for the events of the records at these places."""
        places = {"source_partition": pa.array(partitions), "source_offset": pa.array(offsets)}
        self._lot.blocks.append(_Staged(events, partitions, offsets, {**rows, **places}))

    @property
    def is_full(self) -> bool:
        return len(self._lot) >= STAGED_ROWS

    def take(self) -> Lot:
        """What was added since the last call; another thread may compare it while more is added."""
        lot, self._lot = self._lot, Lot()
        return lot

    def compare_blocks(self, lot: Lot) -> tuple[int, list[tuple[int, int, Kind]]]:
        """Compare what was added by column: how many rows that is, and those that are not `Kind.OWN`.

        (Where a row of them cannot be stored at all, every row with its kind.)
        """
        blocks = lot.blocks
        if not blocks or self._layout is None:
            return 0, []
        try:
            data = self._layout.copy_data([block.columns for block in blocks])
            with (
                self._connection.transaction(),
                self._connection.cursor() as cursor,
                cursor.copy(self._copy) as copy,
            ):
                copy.write(data)
        except (psycopg.Error, pa.ArrowException) as error:
            if isinstance(error, psycopg.OperationalError):
                raise
            rows: list[Row] = []
            for block in blocks:  # row by row it is found out which of them cannot be one
                here = zip(block.partitions.tolist(), block.offsets.tolist(), strict=True)
                for event, place in zip(events_of(block.events), here, strict=True):
                    rows += [(*row, *place) for row in self.mapping.rows(event)]
            return len(rows), self.compare(Lot(rows))
        with self._connection.cursor() as cursor:
            cursor.execute(self._analyze_key)
            cursor.execute(self._compare_others)
            others = [(int(str(p)), int(str(o)), Kind(int(str(k)))) for p, o, k in cursor.fetchall()]
            cursor.execute(self._empty)
        places = np.concatenate([b.partitions << _PARTITION_SHIFT | b.offsets for b in blocks])
        elsewhere = [p << _PARTITION_SHIFT | o for p, o, _ in others]
        own = places[~np.isin(places, np.array(elsewhere, dtype=np.int64))] if others else places
        self._own.extend(own.tolist())
        self.check.compared += len(own)
        self._take_note(others)
        return len(places), others

    def compare(self, lot: Lot) -> list[tuple[int, int, Kind]]:
        """Compare what was added row by row: partition, offset and kind of each row."""
        rows = lot.rows
        if not rows:
            return []
        found: list[tuple[int, int, Kind]] = []
        try:
            with self._connection.transaction():
                self._stage(rows)
        except (psycopg.Error, ValueError, OverflowError, TypeError) as error:
            if isinstance(error, psycopg.OperationalError):
                raise
            # One of them cannot be a row at all; it should have become a dead letter.
            rows, refused = self._storable(rows)
            found += [(row[-2], row[-1], Kind.ABSENT) for row in refused]
        with self._connection.cursor() as cursor:
            cursor.execute(self._analyze)
            cursor.execute(self._compare)
            found += [(int(str(p)), int(str(o)), Kind(int(str(k)))) for p, o, k in cursor.fetchall()]
            cursor.execute(self._empty)
        self._take_note(found)
        return found

    def _take_note(self, found: Sequence[tuple[int, int, Kind]]) -> None:
        self.check.compared += len(found)
        for partition, offset, kind in found:
            if kind in (Kind.OWN, Kind.DIFFERS):
                self._own.append(partition << _PARTITION_SHIFT | offset)
            if kind not in RIGHT:
                place = Place(self.table.topic.name, partition, offset)
                self.check.fails(
                    f"{place} {_SENTENCES[kind]} in {self.table.name}",
                    (self.table.topic.name, partition, offset),
                )

    def check_sources(
        self, span: Mapping[TopicPartition, tuple[int, int]], positions: Mapping[TopicPartition, int]
    ) -> None:
        """Every row whose source lies within `span` was given by that record; none lies beyond a position."""
        parts = sorted(span)
        row = self._connection.execute(
            sql.SQL(
                "SELECT count(*) FILTER (WHERE source_offset >= s.begin AND source_offset < s.until),"
                " count(*) FILTER (WHERE s.position IS NULL OR source_offset >= s.position)"
                " FROM {} LEFT JOIN {} ON s.partition = source_partition"
            ).format(sql.Identifier(self.table.name), _SPANS),
            _spans(parts, span, positions),
        ).fetchone()
        assert row is not None
        inside, beyond = int(str(row[0])), int(str(row[1]))
        if beyond:
            self._from_beyond(parts, span, positions, beyond)
        if inside == len(self._own):
            return
        there: array[int] = array("q")
        query = sql.SQL(
            "SELECT source_partition::bigint << {} | source_offset FROM {}"
            " JOIN {} ON s.partition = source_partition"
            " WHERE source_offset >= s.begin AND source_offset < s.until"
        ).format(sql.Literal(_PARTITION_SHIFT), sql.Identifier(self.table.name), _SPANS)
        for (place,) in self._connection.execute(query, _spans(parts, span, positions)):
            there.append(int(str(place)))
        rows, rows_each = np.unique(np.array(there, dtype=np.int64), return_counts=True)
        own, own_each = np.unique(np.array(self._own, dtype=np.int64), return_counts=True)
        given = np.zeros(len(rows), dtype=np.int64)
        known = np.isin(rows, own)
        given[known] = own_each[np.searchsorted(own, rows[known])]
        too_many = rows_each > given
        if too_many.any():
            first = int(rows[too_many][0])
            partition, offset = first >> _PARTITION_SHIFT, first & ((1 << _PARTITION_SHIFT) - 1)
            self.check.fails(
                f"a row of {self.table.name} names {Place(self.table.topic.name, partition, offset)} as its"
                " source, which gives no such row",
                (self.table.topic.name, partition, offset),
                int((rows_each - given)[too_many].sum()),
            )

    def _from_beyond(
        self,
        parts: list[TopicPartition],
        span: Mapping[TopicPartition, tuple[int, int]],
        positions: Mapping[TopicPartition, int],
        times: int,
    ) -> None:
        row = self._connection.execute(
            sql.SQL(
                "SELECT source_partition, source_offset FROM {}"
                " LEFT JOIN {} ON s.partition = source_partition"
                " WHERE s.position IS NULL OR source_offset >= s.position ORDER BY 1, 2 LIMIT 1"
            ).format(sql.Identifier(self.table.name), _SPANS),
            _spans(parts, span, positions),
        ).fetchone()
        assert row is not None
        place = Place(self.table.topic.name, int(str(row[0])), int(str(row[1])))
        self.check.fails(
            f"a row of {self.table.name} names {place} as its source, which the sink has not reached",
            (place.topic, place.partition, place.offset),
            times,
        )

    def _stage(self, rows: list[Row]) -> None:
        with self._connection.cursor() as cursor, cursor.copy(self._copy) as copy:
            copy.set_types(self._types)
            for row in rows:
                copy.write_row(row)

    def _storable(self, rows: list[Row]) -> tuple[list[Row], list[Row]]:
        """Stage the rows one by one: those that the database takes, and those it does not."""
        good, bad = [], []
        for row in rows:
            try:
                with self._connection.transaction():
                    self._stage([row])
            except (psycopg.Error, ValueError, OverflowError, TypeError) as error:
                if isinstance(error, psycopg.OperationalError):
                    raise
                bad.append(row)
            else:
                good.append(row)
        return good, bad


_SPANS = sql.SQL(
    "unnest(%s::int[], %s::bigint[], %s::bigint[], %s::bigint[]) AS s (partition, begin, until, position)"
)


def _spans(
    parts: list[TopicPartition],
    span: Mapping[TopicPartition, tuple[int, int]],
    positions: Mapping[TopicPartition, int],
) -> tuple[list[int], ...]:
    return (
        [p.partition for p in parts],
        [span[p][0] for p in parts],
        [span[p][1] for p in parts],
        [positions[p] for p in parts],
    )


def _comparison(table: Table, stage: sql.Identifier) -> sql.Composed:
    """For each staged row what the table has under its key, as a `Kind`."""

    def row_of(alias: str) -> sql.Composed:
        values = sql.SQL(", ").join(
            # What was erased cannot be compared; that it was rightly is for `verify ledger` to say.
            sql.SQL("CASE WHEN {} THEN NULL ELSE {} END").format(erased, sql.Identifier(alias, c))
            if c in table.personal
            else sql.Identifier(alias, c)
            for c in table.columns
        )
        return sql.SQL("ROW({})").format(values)

    erased: sql.Composable = sql.SQL("false")
    if table.personal:
        erased = sql.SQL("t.seal_key IS NULL AND (t.seal IS NOT NULL OR starts_with({}, {}))").format(
            sql.Identifier("t", table.personal[0]), sql.Literal(ERASED)
        )

    earlier = sql.SQL("t.source_partition <> s.source_partition OR t.source_offset < s.source_offset")
    if table.order_by is None:
        otherwise = sql.SQL("WHEN {} THEN 1 ELSE 5").format(earlier)
    else:
        old, new = sql.Identifier("t", table.order_by), sql.Identifier("s", table.order_by)
        otherwise = sql.SQL(
            "WHEN {new} IS NULL OR {old} IS NULL OR {old} > {new} THEN 2"
            " WHEN {old} = {new} AND ({earlier}) THEN 1 ELSE 5"
        ).format(new=new, old=old, earlier=earlier)
    return sql.SQL(
        "SELECT s.source_partition, s.source_offset, CASE WHEN t.source_offset IS NULL THEN 3"
        # A replay's row, which stands for what its own run decided: `millrace replay diff` compares those.
        " WHEN t.source_offset < 0 THEN 2"
        " WHEN t.source_partition = s.source_partition AND t.source_offset = s.source_offset"
        " THEN CASE WHEN {stored} IS NOT DISTINCT FROM {given} THEN 0 ELSE 4 END {otherwise} END"
        " FROM {stage} s LEFT JOIN {table} t ON {keys}"
    ).format(
        stored=row_of("t"),
        given=row_of("s"),
        otherwise=otherwise,
        stage=stage,
        table=sql.Identifier(table.name),
        keys=sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", c), sql.Identifier("s", c)) for c in table.key
        ),
    )
