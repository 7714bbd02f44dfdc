"""What `millrace verify` found: every offset of every topic by what became of it, and what was checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.checkpoints import TopicPartition


@dataclass(frozen=True, slots=True)
class Place:
    """A record's place in the log."""

    topic: str
    partition: int
    offset: int

    @property
    def at(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition} offset {self.offset}"


@dataclass(slots=True)
class Offsets:
    """The offsets of one topic for whoever reads it: each counts once, under what became of it.

    `skipped` offsets have no record (transaction markers, compacted), or a record that its mapping
    declares to give no row. `waiting` ones lie at or beyond a position, or their answer does. `decided`
    ones lie below the position on a topic whose ids no table keeps. `expired` ones have left the log.
    """

    topic: str
    reader: str
    in_sink: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    skipped: int = 0
    waiting: int = 0
    decided: int = 0
    expired: int = 0
    wrong: int = 0

    @property
    def total(self) -> int:
        return (
            self.in_sink
            + self.duplicates
            + self.dead_letters
            + self.skipped
            + self.waiting
            + self.decided
            + self.wrong
        )


@dataclass(slots=True)
class Check:
    """One thing that must hold. `compared` counts what was looked at, `wrong` what does not hold.

    `first` tells of the first that does not, by its place in the log where it has one, with the remedy or
    the next thing to look at. `note` is what to know of a check that holds, as the sum on both sides, or
    why it was not looked at now.
    """

    name: str
    compared: int = 0
    unit: str = "records"
    wrong: int = 0
    first: str | None = None
    note: str | None = None
    _at: Any = field(default=None, repr=False)

    def fails(self, sentence: str, at: Any = (), times: int = 1) -> None:
        """Note what does not hold; the sentence with the lowest `at` (comparable among one check) stays."""
        if self.first is None or at < self._at:
            self.first, self._at = sentence, at
        self.wrong += times


@dataclass(frozen=True)
class Report:
    """Everything verified about one pipeline."""

    pipeline: str
    offsets: tuple[Offsets, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def waiting(self) -> int:
        """Records that somebody has still to read."""
        return sum(o.waiting for o in self.offsets)

    @property
    def clean(self) -> bool:
        return not any(c.wrong for c in self.checks)

    def problems(self) -> Iterator[str]:
        """One sentence for each check that fails."""
        for check in self.checks:
            if check.wrong:
                yield f"{check.name}: {check.wrong:,} wrong; the first: {check.first}"

    def document(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        return {
            "pipeline": self.pipeline,
            "clean": self.clean,
            "waiting": self.waiting,
            "seconds": round(self.seconds, 3),
            "offsets": [{**asdict(o), "total": o.total} for o in self.offsets],
            "checks": [{k: v for k, v in asdict(c).items() if k != "_at"} for c in self.checks],
        }
