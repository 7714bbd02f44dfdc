"""What changes decisions, and from which place in the log on.

A version (of rules, fences, a model) is published into table `versions`. The owner of a partition writes
down from which offset it applies it *before* using it, so that a restart or a replay decides the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from infra.checkpoints import Checkpoints, TopicPartition
from infra.postgres import Connection

NONE_PUBLISHED = 0
"""The version number where nothing of a kind has been published."""


@dataclass(slots=True)
class Activations:
    """From which offset which version applies, for one kind in one partition; offsets ascend."""

    offsets: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def at(self, offset: int) -> int:
        """The version in force at `offset`."""
        i = bisect_right(self.offsets, offset)
        return self.versions[i - 1] if i else NONE_PUBLISHED

    def boundaries(self, first: int, last: int) -> list[int]:
        """Offsets in (first, last] from which another version applies."""
        return self.offsets[bisect_right(self.offsets, first) : bisect_right(self.offsets, last)]

    def add(self, from_offset: int, version: int) -> None:
        self.offsets.append(from_offset)
        self.versions.append(version)


def publish(connection: Connection, pipeline: str, kind: str, body: Any, author: str | None = None) -> int:
    """Publish the next version of a kind; returns its number.

    Owners apply it from their next batch on; one that has taken over from another, only from where the log
    ended then, as what came before may have been answered.
    """
    with connection.transaction():
        connection.execute("LOCK TABLE versions IN SHARE ROW EXCLUSIVE MODE")
        row = connection.execute(
            "INSERT INTO versions (pipeline, kind, version, body, author)"
            " SELECT %(p)s, %(k)s, coalesce(max(version), 0) + 1, %(b)s, coalesce(%(a)s, current_user)"
            " FROM versions WHERE pipeline = %(p)s AND kind = %(k)s RETURNING version",
            {"p": pipeline, "k": kind, "b": Jsonb(body), "a": author},
        ).fetchone()
    assert row is not None
    return int(str(row[0]))


def latest(connection: Connection, pipeline: str, kinds: Sequence[str]) -> dict[str, int]:
    """The highest published version of each kind; `NONE_PUBLISHED` where there is none."""
    found = dict.fromkeys(kinds, NONE_PUBLISHED)
    for kind, version in connection.execute(
        "SELECT kind, max(version) FROM versions WHERE pipeline = %s AND kind = ANY(%s) GROUP BY kind",
        (pipeline, list(kinds)),
    ):
        found[str(kind)] = int(str(version))
    return found


def body(connection: Connection, pipeline: str, kind: str, version: int) -> Any:
    """What was published. Raises LookupError where that version does not exist."""
    row = connection.execute(
        "SELECT body FROM versions WHERE pipeline = %s AND kind = %s AND version = %s",
        (pipeline, kind, version),
    ).fetchone()
    if row is None:
        raise LookupError(
            f"{pipeline}: version {version} of {kind} was applied before but is gone; restore its row"
        )
    return row[0]


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a kind as it was published."""

    version: int
    body: Any
    author: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Applied:
    """The version that a partition's owner applies now, and since which offset."""

    topic: str
    partition: int
    version: int
    from_offset: int


def published(connection: Connection, pipeline: str, kind: str, most: int) -> list[Published]:
    """The newest versions of a kind, the newest first."""
    rows = connection.execute(
        "SELECT version, body, author, created_at FROM versions WHERE pipeline = %s AND kind = %s"
        " ORDER BY version DESC LIMIT %s",
        (pipeline, kind, most),
    )
    return [Published(*row) for row in rows]  # type: ignore[arg-type]


def applied(connection: Connection, consumer: str, kind: str) -> list[Applied]:
    """What each partition's owner has written down last, by topic and partition."""
    rows = connection.execute(
        "SELECT DISTINCT ON (topic, partition) topic, partition, version, from_offset"
        " FROM version_activations WHERE consumer = %s AND kind = %s"
        " ORDER BY topic, partition, from_offset DESC",
        (consumer, kind),
    )
    return [Applied(*row) for row in rows]  # type: ignore[arg-type]


def read_activations(
    connection: Connection, consumer: str, at: TopicPartition, kinds: Sequence[str]
) -> dict[str, Activations]:
    """What this consumer applied in this partition so far, by kind."""
    found = {kind: Activations() for kind in kinds}
    for kind, from_offset, version in connection.execute(
        "SELECT kind, from_offset, version FROM version_activations"
        " WHERE consumer = %s AND topic = %s AND partition = %s AND kind = ANY(%s) ORDER BY from_offset",
        (consumer, at.topic, at.partition, list(kinds)),
    ):
        found[str(kind)].add(int(str(from_offset)), int(str(version)))
    return found


def activate(
    connection: Connection,
    checkpoints: Checkpoints,
    at: TopicPartition,
    epoch: int,
    from_offset: int,
    new: dict[str, int],
) -> None:
    """Write down that `new` (kind to version) applies from `from_offset` on. Raises `Fenced` for a zombie."""
    with connection.transaction(), connection.cursor() as cursor:
        # Under the partition's lock and epoch: a zombie may not add to the history that its successor reads.
        checkpoints.lock(cursor, {at: epoch})
        cursor.executemany(
            "INSERT INTO version_activations (consumer, topic, partition, kind, from_offset, version)"
            " VALUES (%s, %s, %s, %s, %s, %s)"
            # Written down already by a COMMIT whose answer was lost: nothing was decided by it yet.
            " ON CONFLICT (consumer, topic, partition, kind, from_offset)"
            " DO UPDATE SET version = excluded.version",
            [(checkpoints.consumer, at.topic, at.partition, k, from_offset, v) for k, v in new.items()],
        )
