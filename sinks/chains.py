"""The chains of a sink's ledgers, within one transaction: where each stands, and how rows get behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from infra.checkpoints import TopicPartition
from infra.ledger.chain import (
    CHAIN_COLUMNS,
    ChainHead,
    Columns,
    Pieces,
    as_hashed,
    columns_of,
    fields_of,
    link,
    without_frame,
)
from infra.postgres import Connection
from schemas.declare import Table
from sinks.blocks import Layout, layout_of

Cursor = psycopg.Cursor[Any]
Mark = tuple[dict[tuple[str, int], ChainHead], set[tuple[str, int]], set[str]]
FRAME = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"

_HEADS = (
    "SELECT partition, begins, sequence, hash FROM ledger_chains"
    " WHERE table_name = %s AND partition = ANY(%s) ORDER BY partition FOR UPDATE"
)
_ADVANCE = (
    "UPDATE ledger_chains c SET sequence = m.sequence, hash = m.hash"
    " FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bytea[])"
    "  AS m (table_name, partition, was, sequence, hash)"
    " WHERE c.table_name = m.table_name AND c.partition = m.partition AND c.sequence = m.was"
)
_BEGIN = (
    "INSERT INTO ledger_chains (table_name, partition, begins, sequence, hash)"
    " SELECT * FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bytea[])"
    " ON CONFLICT DO NOTHING"
)


class ChainMoved(ConnectionError):
    """Another process has moved a chain meanwhile: nothing may be committed, the same batches may be tried
    again."""


@dataclass(frozen=True, slots=True)
class Chained:
    """What is known of a chained table's columns, and its statements."""

    columns: Columns
    layout: Layout | None
    copy: sql.Composed
    new: sql.Composed
    """Which of the staged rows the table does not have yet, by their place among them."""
    staged: sql.Composed
    """The bytes of chosen staged rows."""

    @classmethod
    def of(
        cls, connection: Connection, table: Table, stage: sql.Identifier, types: Mapping[str, int]
    ) -> Chained:
        columns = columns_of(connection, table)
        names = (*columns.personal, *columns.rest)
        listed = sql.SQL(", ").join(map(sql.Identifier, names))
        same = sql.SQL(" AND ").join(
            sql.SQL("t.{c} = s.{c}").format(c=sql.Identifier(column)) for column in table.key
        )
        key = sql.SQL(", ").join(sql.Identifier("s", column) for column in table.key)
        return cls(
            columns,
            layout_of(names, [types[name] for name in names]),
            sql.SQL("COPY {} ({}, {}) FROM STDIN (FORMAT BINARY)").format(
                sql.Identifier(table.name), listed, sql.SQL(", ").join(map(sql.Identifier, CHAIN_COLUMNS))
            ),
            sql.SQL(
                "SELECT DISTINCT ON ({key}) (stage_n - (SELECT min(stage_n) FROM {stage}))::int"
                " FROM {stage} s WHERE NOT EXISTS (SELECT FROM {table} t WHERE {same})"
                " ORDER BY {key}, stage_n"
            ).format(key=key, stage=stage, table=sql.Identifier(table.name), same=same),
            sql.SQL("COPY (SELECT {} FROM {} ORDER BY stage_n) TO STDOUT (FORMAT BINARY)").format(
                listed, stage
            ),
        )

    @property
    def count(self) -> int:
        return len(self.columns.personal) + len(self.columns.rest)

    def read_staged(self, cursor: Cursor) -> list[Pieces]:
        """The staged rows, in the order in which they were staged."""
        found: list[Pieces] = []
        with cursor.copy(self.staged) as copy:
            for data in copy:
                row = without_frame(bytes(data))
                if row is not None:
                    _, split = fields_of(row, len(self.columns.personal))
                    found.append((row[:split], as_hashed(row[split:], self.columns.arrays)))
        return found


class Linking:
    """Chains as far as one transaction has come with them. A new one begins at its partition's position."""

    def __init__(self, cursor: Cursor, positions: Mapping[TopicPartition, int]) -> None:
        self._cursor = cursor
        self._positions = positions
        self._heads: dict[tuple[str, int], ChainHead] = {}
        self._read: set[str] = set()
        self._moved: set[tuple[str, int]] = set()
        self._found: dict[tuple[str, int], int] = {}

    def link(
        self, table: Table, partition: int, rows: Iterable[Pieces], count: int, columns: int
    ) -> tuple[list[bytes], ChainHead]:
        """Rows of one partition behind its chain. Nothing has moved until `moved` is told."""
        return link(rows, count, columns, self._head(table, partition))

    def moved(self, table: Table, heads: Mapping[int, ChainHead]) -> None:
        """These rows are in the table."""
        for partition, head in heads.items():
            self._heads[table.name, partition] = head
            self._moved.add((table.name, partition))

    def _head(self, table: Table, partition: int) -> ChainHead:
        if table.name not in self._read:
            # All at once: a question for each partition would take longer than the hashes.
            mine = [at.partition for at in self._positions if at.topic == table.topic.name]
            for n, begins, sequence, digest in self._cursor.execute(_HEADS, (table.name, mine)).fetchall():
                self._heads[table.name, n] = ChainHead(begins, sequence, bytes(digest))
                self._found[table.name, n] = sequence
            self._read.add(table.name)
        begins = self._positions[TopicPartition(table.topic.name, partition)]
        return self._heads.get((table.name, partition)) or ChainHead(begins)

    def marked(self) -> Mark:
        """Where the chains stand, for `back_to` after a savepoint was rolled back."""
        return dict(self._heads), set(self._moved), set(self._read)

    def back_to(self, mark: Mark) -> None:
        self._heads, self._moved, self._read = dict(mark[0]), set(mark[1]), set(mark[2])

    def store(self) -> None:
        """Write down how far the chains have come: before the commit. Raises `ChainMoved`."""
        for statement, known in ((_ADVANCE, True), (_BEGIN, False)):
            rows = [
                (*at, self._found[at] if known else head.begins, head.sequence, head.hash)
                for at, head in ((at, self._heads[at]) for at in sorted(self._moved))
                if (at in self._found) is known
            ]
            if rows:
                self._cursor.execute(statement, tuple(map(list, zip(*rows, strict=True))))
                if self._cursor.rowcount != len(rows):
                    raise ChainMoved(f"a chain of {rows[0][0]} was moved by another process")


def framed(rows: Sequence[bytes]) -> bytes:
    """Rows as COPY FROM reads them."""
    return b"".join((FRAME, *rows, END))
