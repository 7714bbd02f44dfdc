"""Letters as they stand: find them, tell their story, decide against them."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.rows import class_row, dict_row

from infra.postgres import Connection

OPEN = "open"
SENDING = "sending"
REDRIVEN = "redriven"
DISCARDED = "discarded"
STATUSES = (OPEN, SENDING, REDRIVEN, DISCARDED)


class DlqError(ValueError):
    """What was asked for cannot be done; the message is one sentence with the remedy."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which letters: those with one of `ids`, or those that meet every condition given.

    `since` and `until` are times of refusal; `match` is text that the reason contains.
    """

    ids: tuple[int, ...] = ()
    statuses: tuple[str, ...] = (OPEN, SENDING)
    pipeline: str | None = None
    consumer: str | None = None
    topic: str | None = None
    error_class: str | None = None
    field: str | None = None
    tenant: str | None = None
    input_id: str | None = None
    match: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def narrows(self) -> bool:
        """Whether anything but the status is asked for: what changes letters wants to be told which."""
        return any(getattr(self, f.name) for f in fields(self) if f.name != "statuses")

    def where(self) -> tuple[sql.Composed, dict[str, Any]]:
        """The condition on `dead_letters AS l`, and its values."""
        conditions: list[sql.Composable] = [sql.SQL("l.status = ANY(%(statuses)s)")]
        values: dict[str, Any] = {"statuses": list(self.statuses)}
        for name in ("pipeline", "consumer", "topic", "error_class", "field", "tenant", "input_id"):
            if (value := getattr(self, name)) is not None:
                conditions.append(sql.SQL("l.{} = {}").format(sql.Identifier(name), sql.Placeholder(name)))
                values[name] = value
        for name, condition in (
            ("ids", "l.id = ANY(%(ids)s)"),
            ("match", "strpos(lower(l.error), lower(%(match)s)) > 0"),
            ("since", "l.created_at >= %(since)s"),
            ("until", "l.created_at < %(until)s"),
        ):
            if value := getattr(self, name):
                conditions.append(sql.SQL(condition))  # one of the four above
                values[name] = list(value) if name == "ids" else value
        return sql.SQL(" AND ").join(conditions), values


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter as it stands. `to_key` and `to_value` are what a redrive sends: the last edit's bytes."""

    id: int
    status: str
    pipeline: str
    consumer: str
    topic: str
    partition: int
    offset: int
    tenant: str
    schema_id: int | None
    input_id: str | None
    error_class: str
    field: str | None
    error: str
    key: bytes | None
    value: bytes | None
    to_key: bytes | None
    to_value: bytes | None
    edited: bool
    append_time: datetime
    created_at: datetime

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


_COLUMNS = sql.SQL(
    "l.id, l.status, l.pipeline, l.consumer, l.topic, l.partition, l.offset, l.tenant, l.schema_id,"
    " l.input_id, l.error_class, l.field, l.error, l.key, l.value, l.append_time, l.created_at,"
    " coalesce(e.action = 'edit', false) AS edited,"
    " CASE WHEN e.action = 'edit' THEN e.key ELSE l.key END AS to_key,"
    " CASE WHEN e.action = 'edit' THEN e.value ELSE l.value END AS to_value"
)
_LETTERS = sql.SQL(
    "SELECT {columns} FROM dead_letters l LEFT JOIN LATERAL ("
    "SELECT action, key, value FROM dead_letter_actions"
    " WHERE letter = l.id AND action IN ('edit', 'revert') ORDER BY id DESC LIMIT 1) e ON true WHERE {where}"
)


def ids_of(connection: Connection, selection: Selection, limit: int | None = None) -> list[int]:
    """The ids of the letters selected, oldest first: redriven in this order, a key's records keep theirs."""
    where, values = selection.where()
    rows = connection.execute(
        sql.SQL(
            "SELECT l.id FROM dead_letters l WHERE {} ORDER BY l.topic, l.partition, l.offset LIMIT %(n)s"
        ).format(where),
        {**values, "n": limit},
    )
    return [int(str(id_)) for (id_,) in rows]


def find(connection: Connection, selection: Selection, limit: int | None = None) -> list[Letter]:
    """The letters selected, newest first."""
    where, values = selection.where()
    query = _LETTERS.format(columns=_COLUMNS, where=where) + sql.SQL(
        " ORDER BY l.created_at DESC, l.id DESC LIMIT %(n)s"
    )
    with connection.cursor(row_factory=class_row(Letter)) as cursor:
        return cursor.execute(query, {**values, "n": limit}).fetchall()


def load(connection: Connection, ids: Sequence[int], *, lock: bool = False) -> list[Letter]:
    """Letters by id, in the order of their places in the log; with `lock` held until the transaction ends."""
    if lock:
        # First and in one order: two operators at the same letters wait for each other, without a deadlock.
        connection.execute(
            "SELECT 1 FROM dead_letters WHERE id = ANY(%s) ORDER BY id FOR UPDATE", (list(ids),)
        )
    query = _LETTERS.format(columns=_COLUMNS, where=sql.SQL("l.id = ANY(%(ids)s)")) + sql.SQL(
        " ORDER BY l.topic, l.partition, l.offset, l.consumer"
    )
    with connection.cursor(row_factory=class_row(Letter)) as cursor:
        return cursor.execute(query, {"ids": list(ids)}).fetchall()


def one(connection: Connection, name: str) -> list[Letter]:
    """The letters that `name` means: an id, or a place `topic/partition/offset`. Raises `DlqError`."""
    if name.isdecimal():
        found = load(connection, [int(name)])
    else:
        topic, _, rest = name.partition("/")
        place = re.fullmatch(r"(\d+)/(\d+)", rest)
        if place is None:
            raise DlqError(f"{name!r} is neither an id nor a place; give 17, or topic/partition/offset")
        rows = connection.execute(
            'SELECT id FROM dead_letters WHERE topic = %s AND partition = %s AND "offset" = %s',
            (topic, int(place[1]), int(place[2])),
        )
        found = load(connection, [int(str(id_)) for (id_,) in rows])
    if not found:
        raise DlqError(
            f"there is no dead letter {name}; `millrace dlq list --status all` lists what there is"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Letters that were refused for one reason, numbers in it left out of account."""

    pipeline: str
    consumer: str
    topic: str
    error_class: str
    field: str | None
    example: str
    letters: int
    first_at: datetime
    last_at: datetime


def causes(connection: Connection, selection: Selection) -> list[Cause]:
    """How many letters there are of each cause, most first."""
    where, values = selection.where()
    query = sql.SQL(
        "SELECT l.pipeline, l.consumer, l.topic, l.error_class, l.field, min(l.error) AS example,"
        " count(*) AS letters, min(l.created_at) AS first_at, max(l.created_at) AS last_at"
        " FROM dead_letters l WHERE {}"
        " GROUP BY 1, 2, 3, 4, 5, regexp_replace(l.error, '[0-9]+|''[^'']*''', '#', 'g')"
        " ORDER BY letters DESC, last_at DESC"
    ).format(where)
    with connection.cursor(row_factory=class_row(Cause)) as cursor:
        return cursor.execute(query, values).fetchall()


def history(connection: Connection, letter: Letter) -> list[dict[str, Any]]:
    """What was done to a letter, oldest first; `refused_again` is the letter that its redrive became."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            'SELECT a.id, a.action, a.actor, a.note, a.topic, a.partition, a."offset", a.at,'
            " (SELECT min(l.id) FROM dead_letters l WHERE a.action = 'redriven' AND (l.topic, l.partition,"
            ' l."offset") = (a.topic, a.partition, a."offset")) AS refused_again'
            " FROM dead_letter_actions a WHERE a.letter = %s ORDER BY a.id",
            (letter.id,),
        ).fetchall()


def act(connection: Connection, ids: Sequence[int], action: str, actor: str, note: str | None = None) -> None:
    """Add a row without bytes or place to the audit of each letter."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO dead_letter_actions (letter, action, actor, note) VALUES (%s, %s, %s, %s)",
            [(id_, action, actor, note) for id_ in ids],
        )


def operator() -> str:
    """Who acts, as far as the machine knows: user@host."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def discard(connection: Connection, ids: Sequence[int], actor: str, note: str) -> list[int]:
    """Decide against letters, for a reason; returns those that were open. Their bytes stay."""
    return _move(connection, ids, OPEN, DISCARDED, "discard", actor, note)


def reopen(connection: Connection, ids: Sequence[int], actor: str, note: str | None) -> list[int]:
    """Take a discard back; returns the ids of letters that were discarded."""
    return _move(connection, ids, DISCARDED, OPEN, "reopen", actor, note)


def _move(
    connection: Connection, ids: Sequence[int], old: str, new: str, action: str, actor: str, note: str | None
) -> list[int]:
    with connection.transaction():
        rows = connection.execute(
            "UPDATE dead_letters SET status = %s WHERE id = ANY(%s) AND status = %s RETURNING id",
            (new, list(ids), old),
        )
        moved = sorted(int(str(id_)) for (id_,) in rows)
        act(connection, moved, action, actor, note)
    return moved


def as_dict(letter: Letter) -> Mapping[str, Any]:
    """A letter for programs: everything but its bytes, times in ISO form."""
    values = {f.name: getattr(letter, f.name) for f in fields(letter)}
    for name in ("key", "value", "to_key", "to_value"):
        del values[name]
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}


def chunks(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    """`ids` in lists of at most `size`."""
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])
