"""The versions of each schema that were ever deployed, and whether the working tree may follow them.

`schemas/<domain>/released/<name>/<n>.avsc` is version n as it was deployed, and `<n>.json` beside it holds
events of it with the very bytes that were written then. Both are written by `millrace schema release` and
never changed: records of every released version may lie on a topic or in a dead letter.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.avro import normalized, parse
from schemas.compatibility import Direction, Incompatibility, Level, check_evolution
from schemas.declare import Pipeline, Pipelines, Topic
from schemas.difference import Difference, differences
from schemas.json_bytes import of_json

Event = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """An event and the bytes (the Avro body alone) that it was written as."""

    event: Event
    avro: bytes


@dataclass(frozen=True)
class Release:
    """One released version of a schema."""

    version: int
    path: Path

    @cached_property
    def schema(self) -> Any:
        """The schema as parsed JSON."""
        return json.loads(self.path.read_text())

    @property
    def examples(self) -> list[Example]:
        """The stored events of this version."""
        stored = json.loads(self.path.with_suffix(".json").read_text(), object_hook=of_json)
        return [Example(e["event"], base64.b64decode(e["avro"], validate=True)) for e in stored]


@dataclass(frozen=True)
class Declared:
    """A schema of the working tree with the topics that carry it."""

    topics: tuple[Topic, ...]

    @property
    def path(self) -> Path:
        return self.topics[0].schema_path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def schema(self) -> Any:
        return self.topics[0].schema

    @property
    def releases_path(self) -> Path:
        return self.path.parent / "released" / self.name

    @property
    def examples(self) -> list[Event]:
        """The events that show what the schema is for."""
        path = self.path.parent / "examples" / f"{self.name}.json"
        if not path.exists():
            return []
        events: list[Event] = json.loads(path.read_text(), object_hook=of_json)
        return events

    @cached_property
    def releases(self) -> list[Release]:
        """Every released version, oldest first."""
        return sorted(
            (Release(int(path.stem), path) for path in self.releases_path.glob("[0-9]*.avsc")),
            key=lambda r: r.version,
        )


@dataclass(frozen=True)
class Verdict:
    """What a schema of the working tree is to those that were released before it.

    `changes` are against the last release. `reasons` are the compatibility rules that it breaks in either
    direction, `breaking` those that the level asked for forbids.
    """

    declared: Declared
    changes: list[Difference]
    reasons: list[Incompatibility]
    breaking: list[str]

    @property
    def unreleased(self) -> bool:
        last = self.declared.releases[-1].schema if self.declared.releases else None
        return last is None or not same(last, self.declared.schema)

    def reads(self, direction: Direction) -> bool:
        """Whether records can be read in this direction."""
        return not any(r.direction is direction for r in self.reasons)


def same(one: Any, other: Any) -> bool:
    """Whether two schemas (parsed JSON) differ at most in how they are written down."""
    return normalized(parse(one)) == normalized(parse(other))


def declared(pipelines: Iterable[Pipeline]) -> list[Declared]:
    """Every schema that some topic or dead letter topic carries, each once."""
    found: dict[Path, list[Topic]] = {}
    for pipeline in pipelines:
        for topic in pipeline.topics:
            for carrier in (topic, topic.dlq):
                found.setdefault(carrier.schema_path, []).append(carrier)
    return [Declared(tuple(topics)) for topics in found.values()]


def judge(schema: Declared, level: Level = Level.FULL_TRANSITIVE) -> Verdict:
    """Whether the working tree's schema may follow its released versions. Raises SchemaError."""
    earlier = schema.releases
    changes = differences(earlier[-1].schema, schema.schema) if earlier else []
    versions = [r.schema for r in earlier]
    forbidden = check_evolution(schema.schema, versions, level)
    breaking = [f"{reason} (release {earlier[reason.earlier].version})" for reason in forbidden]
    if level is not Level.NONE:
        breaking += [str(change) for change in changes if change.meaning]
    return Verdict(schema, changes, check_evolution(schema.schema, versions), breaking)


@dataclass(frozen=True)
class Affected:
    """Who writes and who reads the topics of a schema."""

    producers: tuple[str, ...]
    consumers: tuple[str, ...]


def affected(pipelines: Pipelines, topics: Iterable[Topic]) -> Affected:
    """Whom a change of the topics' schema concerns."""
    names = {t.name for t in topics}
    producers: dict[str, None] = {}
    consumers: dict[str, None] = {}
    for pipeline in pipelines:
        if names & {t.name for t in pipeline.inputs}:
            producers[f"{pipeline.name} connectors"] = None
        for processor in pipeline.processors:
            written = {t.name for t in processor.outputs} | {t.dlq.name for t in processor.sources}
            if names & written:
                producers[processor.name] = None
            if names & {t.name for t in processor.sources}:
                consumers[processor.name] = None
        letters = {t.dlq.name for t in pipeline.topics}
        if names & {t.dlq.name for t in pipeline.sink_topics}:
            producers[pipeline.sink_name] = None
        if names & ({t.name for t in pipeline.sink_topics} | letters):
            consumers[pipeline.sink_name] = None
    return Affected(tuple(producers), tuple(consumers))


def roll_out(verdict: Verdict, who: Affected) -> list[str]:
    """In which order to deploy a change, step by step; empty where nothing changed."""
    if not verdict.unreleased or not verdict.declared.releases:
        return []
    producers = ", ".join(who.producers) or "its producers"
    consumers = ", ".join(who.consumers) or "its consumers"
    backward, forward = verdict.reads(Direction.BACKWARD), verdict.reads(Direction.FORWARD)
    if any(change.meaning for change in verdict.changes) or not (backward or forward):
        topics = ", ".join(t.name for t in verdict.declared.topics)
        return [
            f"declare a topic of a new name beside {topics}, with this schema",
            f"deploy consumers that read both: {consumers}",
            f"let producers write the new one: {producers}",
            "when nothing is left to read or to replay from the old one, take it out",
        ]
    if backward and forward:
        return [f"any order: producers ({producers}) and consumers ({consumers}) understand each other"]
    if backward:
        return [
            f"first every consumer: {consumers}; from then on none of them may go back",
            f"then the producers: {producers}",
        ]
    return [
        f"first every producer: {producers}",
        "wait until no consumer has lag; what lies on the topics before that can no longer be replayed",
        f"then the consumers: {consumers}",
    ]
