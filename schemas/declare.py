"""What a pipeline is made of: frozen declarations, checked when they are imported.

Topics, schemas, consumer groups, metric labels, sink tables, the README's pipeline table and the
contract tests all come from these values, so that nothing about a pipeline is written twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

SCHEMAS_FOLDER = Path(__file__).parent
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

DAY_MS = 24 * 60 * 60 * 1000
FUTURE_MS = 5 * 60_000
"""An event time more than this beyond its record's append time is invalid: its clock is wrong."""

RECORD_BYTES = 1 << 20
"""The largest record of an input. The broker weighs it compressed, so a larger one may come all the same."""
RESULT_BYTES = 4 * RECORD_BYTES
"""The largest record of any topic but dead letters: a result repeats its input and adds to it."""
LETTER_BYTES = 64 * RECORD_BYTES
"""The largest dead letter, which holds the whole of a record that was too large."""


class DeclarationError(ValueError):
    """A declaration that cannot work. Raised at import; names the field, the value and the remedy."""


def _require(holds: bool, owner: str, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise DeclarationError(f"{owner}: {name}={value!r} cannot be used; {remedy}")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A topic, typed by `schemas/<domain>/<name>.avsc`.

    `key` names the value's field whose text, UTF-8 encoded, is the record's key. `event_id` and
    `event_time` (a timestamp-millis or -micros) name the producer's own id and the event time.
    """

    domain: str
    name: str
    key: str
    owner: str
    about: str
    event_id: str = "event_id"
    event_time: str = "occurred_at"
    partitions: int = 12
    retention_ms: int = 30 * DAY_MS
    largest_bytes: int = RESULT_BYTES
    """The largest record, compressed, that the broker takes."""
    schema_name: str | None = None
    """Name of the .avsc where it is not the topic's own."""
    tick_ms: int | None = None
    """How often each partition gets a tick (`schemas.platform`), for processors with timers."""

    def __post_init__(self) -> None:
        _require(
            bool(KEBAB.fullmatch(self.name)),
            "Topic",
            "name",
            self.name,
            "use kebab-case without dots, as card-transactions",
        )
        _require(self.partitions >= 1, f"Topic {self.name}", "partitions", self.partitions, "use 1 or more")
        _require(
            self.retention_ms == -1 or self.retention_ms >= DAY_MS,
            f"Topic {self.name}",
            "retention_ms",
            self.retention_ms,
            "use at least a day in milliseconds, or -1 for ever",
        )
        _require(
            self.tick_ms is None or self.tick_ms >= 100,
            f"Topic {self.name}",
            "tick_ms",
            self.tick_ms,
            "use at least 100 milliseconds, or leave it out",
        )
        _require(
            self.schema_path.exists(),
            f"Topic {self.name}",
            "name",
            self.name,
            f"write its schema, {self.schema_path.name}",
        )
        for role in ("key", "event_id", "event_time"):
            _require(
                getattr(self, role) in self.fields,
                f"Topic {self.name}",
                role,
                getattr(self, role),
                f"name one of the schema's fields: {', '.join(self.fields)}",
            )
        _require(
            "tenant" in self.fields,
            f"Topic {self.name}",
            "schema",
            self.name,
            "give the schema a field `tenant`",
        )
        _require(
            self.fields[self.event_time].get("logicalType") in ("timestamp-millis", "timestamp-micros")
            if isinstance(self.fields[self.event_time], dict)
            else False,
            f"Topic {self.name}",
            "event_time",
            self.event_time,
            "make it a long with logicalType timestamp-millis or timestamp-micros",
        )

    @property
    def schema_path(self) -> Path:
        return SCHEMAS_FOLDER / self.domain / f"{self.schema_name or self.name}.avsc"

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The Avro schema as parsed JSON."""
        parsed: dict[str, Any] = json.loads(self.schema_path.read_text())
        return parsed

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The record's fields: name to Avro type."""
        return {f["name"]: f["type"] for f in self.schema["fields"]}

    @property
    def event_time_unit_per_ms(self) -> int:
        """How many units of the event time make a millisecond: 1 or 1000."""
        return 1000 if self.fields[self.event_time]["logicalType"] == "timestamp-micros" else 1

    @property
    def origin(self) -> str:
        """The name that the topic was declared under; another than its own only for topics of a replay."""
        return self.name

    @property
    def subject(self) -> str:
        """The registry's subject of this topic's values (topic name strategy)."""
        return f"{self.origin}-value"

    @cached_property
    def dlq(self) -> Topic:
        """The topic of this topic's dead letters: envelopes with the record's bytes and the reason."""
        return Topic(
            domain="platform",
            name=f"{self.name}-dlq",
            schema_name="dead-letter",
            key="event_id",
            owner=self.owner,
            about=f"Dead letters of {self.name}",
            partitions=1,
            retention_ms=-1 if self.retention_ms == -1 else max(self.retention_ms, 90 * DAY_MS),
            largest_bytes=LETTER_BYTES,
        )


class Merge(Enum):
    """What a table does with a row whose key it has already."""

    FIRST_WINS = "first wins"
    NEWEST = "newest event time wins"
    HIGHEST_VERSION = "highest version wins"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sink table: fed by exactly one topic, with a unique key and a rule for a key that comes again.

    `columns` is the order in which `sinks/<domain>.py` gives a row's values; the writer itself adds
    `source_partition` and `source_offset`, which every sink table has. `order_by` names the column
    that decides NEWEST or HIGHEST_VERSION. `time` names the column by which the table is partitioned
    (a hypertable where TimescaleDB is available); it then must be part of the key. An `append_only` table
    is a ledger: no replay ever replaces it, one can only be compared with it. A ledger may be `chained`: each
    row's hash covers the row before (docs/adr/0061), but for `personal` columns, which can be erased.
    """

    name: str
    topic: Topic
    key: tuple[str, ...]
    columns: tuple[str, ...]
    merge: Merge = Merge.FIRST_WINS
    order_by: str | None = None
    time: str | None = None
    append_only: bool = False
    chained: bool = False
    personal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        owner = f"Table {self.name}"
        _require(bool(SNAKE.fullmatch(self.name)), owner, "name", self.name, "use snake_case")
        for column in (
            *self.key,
            *((self.order_by,) if self.order_by else ()),
            *((self.time,) if self.time else ()),
        ):
            _require(column in self.columns, owner, "columns", self.columns, f"add {column}")
        _require(
            (self.order_by is None) == (self.merge is Merge.FIRST_WINS),
            owner,
            "order_by",
            self.order_by,
            "name the deciding column exactly when merge is NEWEST or HIGHEST_VERSION",
        )
        _require(
            self.time is None or self.time in self.key,
            owner,
            "key",
            self.key,
            f"add {self.time}: a partitioned table's unique key must contain its time",
        )
        _require(
            not self.append_only or self.merge is Merge.FIRST_WINS,
            owner,
            "append_only",
            self.append_only,
            "let the first row win: the other merges change rows",
        )
        _require(
            self.append_only or not self.chained,
            owner,
            "chained",
            self.chained,
            "chain append-only tables only: a row that changes has no place in a chain",
        )
        for column in self.personal:
            _require(
                self.chained and column in self.columns and column not in self.key,
                owner,
                "personal",
                self.personal,
                f"let {column} be a column of a chained table, beside its key",
            )


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Something outside the platform that follows from the events on a processor's output: a webhook, a mail.

    A processor does nothing outside itself; whoever delivers what stands on `topic` does. A replay writes
    to topics of its own, which nobody delivers, and its plan counts what is so held back.
    """

    name: str
    topic: Topic
    about: str


@dataclass(frozen=True, kw_only=True)
class Processor:
    """A processor: topics in, topics out. One that keeps state reads exactly one topic.

    (Two inputs are merged only through a topic, whose order is then the truth.)
    `code_version` rises whenever the same input would give other outputs. `batch_records` lowers the
    setting of that name where one record takes long to decide: a batch must be done well within the
    group's max.poll.interval.ms, or the group takes the worker for dead. `memory_ms` is how far back, in
    append time, the records lie that an answer may depend on (the longest window or horizon): a replay that
    starts in the middle warms its state up by them. None, for a processor with state: the whole topic.
    """

    name: str
    sources: tuple[Topic, ...]
    outputs: tuple[Topic, ...]
    stateful: bool
    code_version: int = 1
    batch_records: int | None = None
    memory_ms: int | None = None
    effects: tuple[Effect, ...] = ()

    def __post_init__(self) -> None:
        owner = f"Processor {self.name}"
        _require(bool(KEBAB.fullmatch(self.name)), owner, "name", self.name, "use kebab-case")
        _require(bool(self.sources), owner, "sources", self.sources, "name at least one topic")
        _require(
            not self.stateful or len(self.sources) == 1,
            owner,
            "sources",
            [t.name for t in self.sources],
            "merge them into one topic first: state folded from two topics depends on their interleaving",
        )
        _require(
            self.memory_ms is None or (self.stateful and self.memory_ms >= 0),
            owner,
            "memory_ms",
            self.memory_ms,
            "leave it out for a processor without state, which remembers nothing",
        )
        for effect in self.effects:
            _require(
                effect.topic in self.outputs,
                owner,
                "effects",
                effect.name,
                f"let it follow from an output, or add {effect.topic.name} to the outputs",
            )

    @property
    def warm_up_ms(self) -> int | None:
        """How much of its topic before a place a replay must read to decide as if it had read all of it;
        None for all of it."""
        return self.memory_ms if self.stateful else 0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Where the distinct event ids of `topic` are found again in the sink, for reconciling and verifying.

    `only` narrows the rows to those whose column has a value, where a column carries ids of several topics.
    `once` says that an id stands in one row. `sums` pairs whole numbers of the event with the columns that
    carry them on: value by value they are the same, so their sums are conserved.
    """

    topic: Topic
    table: str
    column: str
    only: tuple[str, str] | None = None
    once: bool = True
    sums: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        owner = f"Evidence of {self.topic.name}"
        for field_name, _ in self.sums:
            _require(
                field_name in self.topic.fields, owner, "sums", field_name, "name one of the event's fields"
            )
        _require(
            self.once or not self.sums,
            owner,
            "sums",
            self.sums,
            "leave them out: where an id has several rows, none of them carries its value",
        )


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """A view of the database that is empty as long as the pipeline's sums are conserved.

    `settled`: only when nothing is under way, as it compares tables that different records fill.
    """

    view: str
    about: str
    settled: bool = False


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A domain's whole way: connectors write `inputs`, processors answer, sinks store `tables`."""

    name: str
    about: str
    inputs: tuple[Topic, ...]
    processors: tuple[Processor, ...]
    tables: tuple[Table, ...]
    evidence: tuple[Evidence, ...]
    invariants: tuple[Invariant, ...] = ()

    def __post_init__(self) -> None:
        owner = f"Pipeline {self.name}"
        _require(bool(SNAKE.fullmatch(self.name)), owner, "name", self.name, "use one lower-case word")
        _require(bool(self.inputs), owner, "inputs", self.inputs, "name the topics that connectors write")
        _require(bool(self.tables), owner, "tables", self.tables, "declare at least one sink table")
        known = {t.name for t in self.topics}
        for table in self.tables:
            _require(
                table.topic.name in known,
                owner,
                "tables",
                table.name,
                f"one processor must write {table.topic.name}",
            )
        tables = {t.name: t for t in self.tables}
        for e in self.evidence:
            _require(
                e.table in tables and e.column in tables[e.table].columns,
                owner,
                "evidence",
                f"{e.table}.{e.column}",
                "name a declared table and one of its columns",
            )
            for column in (*(c for _, c in e.sums), *((e.only[0],) if e.only else ())):
                _require(
                    column in tables[e.table].columns,
                    owner,
                    "evidence",
                    f"{e.table}.{column}",
                    "name one of the table's columns",
                )
        _require(
            {e.topic.name for e in self.evidence} >= {t.name for t in self.inputs},
            owner,
            "evidence",
            [e.topic.name for e in self.evidence],
            "say for each input topic where its event ids are found in the sink",
        )

    @cached_property
    def topics(self) -> tuple[Topic, ...]:
        """Every topic of the pipeline, inputs first, each once."""
        seen: dict[str, Topic] = {t.name: t for t in self.inputs}
        for p in self.processors:
            for t in (*p.sources, *p.outputs):
                seen.setdefault(t.name, t)
        return tuple(seen.values())

    @cached_property
    def sink_topics(self) -> tuple[Topic, ...]:
        """The topics that feed tables, each once."""
        return tuple({t.topic.name: t.topic for t in self.tables}.values())

    @cached_property
    def consumers(self) -> tuple[tuple[str, Topic], ...]:
        """Who reads what: processors their sources, the sink the results and all dead letters."""
        read = [(p.name, topic) for p in self.processors for topic in p.sources]
        letters = [topic.dlq for topic in self.topics]
        return (*read, *((self.sink_name, topic) for topic in (*self.sink_topics, *letters)))

    @property
    def sink_name(self) -> str:
        return f"{self.name}-sink"


@dataclass(frozen=True)
class Pipelines:
    """All declared pipelines, by name; names of topics, processors and tables are unique among them."""

    by_name: dict[str, Pipeline] = field(default_factory=dict)

    @classmethod
    def of(cls, *pipelines: Pipeline) -> Pipelines:
        for kind, names in (
            ("pipeline", [p.name for p in pipelines]),
            ("topic", [t.name for p in pipelines for t in p.topics]),
            ("processor", [x.name for p in pipelines for x in p.processors]),
            ("table", [t.name for p in pipelines for t in p.tables]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise DeclarationError(f"{kind} {twice[0]!r} is declared twice; rename one of them")
        return cls({p.name: p for p in pipelines})

    def __iter__(self) -> Any:
        return iter(self.by_name.values())

    def __getitem__(self, name: str) -> Pipeline:
        try:
            return self.by_name[name]
        except KeyError:
            raise DeclarationError(f"no pipeline {name!r}; there are: {', '.join(self.by_name)}") from None
