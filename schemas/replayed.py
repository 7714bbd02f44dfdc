"""A pipeline as a replay runs it: the same topics in, topics of the run's own out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from schemas.declare import Evidence, Pipeline, Processor, Table, Topic

RUN_INFIX = "-replay-"
"""Between a declared topic's name and the run's number."""


@dataclass(frozen=True, kw_only=True)
class RunTopic(Topic):
    """A topic that belongs to a run and carries what the live topic `declared_as` would."""

    run_id: int
    declared_as: str

    @property
    def origin(self) -> str:
        return self.declared_as

    @cached_property
    def dlq(self) -> Topic:
        return _letters(self, self.run_id)


@dataclass(frozen=True, kw_only=True)
class RunSource(Topic):
    """A live topic that a run reads; what it refuses goes to dead letters of the run's own."""

    run_id: int

    @cached_property
    def dlq(self) -> Topic:
        return _letters(self, self.run_id)


def run_topic_name(name: str, run_id: int) -> str:
    """The name of a run's own counterpart of a declared topic."""
    return f"{name}{RUN_INFIX}{run_id}"


def replayed(pipeline: Pipeline, run_id: int) -> Pipeline:
    """The pipeline with its result topics and dead letters replaced by those of the run.

    Every processor reads its own live source: the order in an inner topic is the truth that was decided by,
    and another run over its inputs might interleave them otherwise. Outputs that no table is fed from
    are left out of the processors' outputs; they are held back.
    """
    results: dict[str, Topic] = {t.name: _own(t, run_id) for t in pipeline.sink_topics}
    # A table fed by an input topic, which no processor writes, is fed by it in the replay too.
    written = {o.name for p in pipeline.processors for o in p.outputs}
    results |= {name: _source(t, run_id) for t in pipeline.sink_topics if (name := t.name) not in written}
    return replace(
        pipeline,
        inputs=tuple(_source(t, run_id) for t in pipeline.inputs),
        processors=tuple(_replayed(p, results, run_id) for p in deciding_anew(pipeline)),
        tables=tuple(replace(t, topic=results[t.topic.name]) for t in pipeline.tables),
        evidence=tuple(replace(e, topic=_source(e.topic, run_id)) for e in pipeline.evidence),
    )


def sink_in_place(pipeline: Pipeline, run_id: int) -> Pipeline:
    """The pipeline's sink alone, reading the live result topics once more."""
    results = {t.name: _source(t, run_id) for t in pipeline.sink_topics}
    return replace(
        pipeline,
        inputs=tuple(results.values()),
        processors=(),
        tables=tuple(replace(t, topic=results[t.topic.name]) for t in pipeline.tables),
        evidence=tuple(
            Evidence(topic=results[name], table=tables[0].name, column=tables[0].columns[0])
            for name, tables in _tables_by_topic(pipeline).items()
        ),
    )


def deciding_anew(pipeline: Pipeline) -> tuple[Processor, ...]:
    """The declared processors that a replay runs: what keeps no state and feeds no table has nothing that
    could be compared or renewed."""
    fed = {t.name for t in pipeline.sink_topics}
    return tuple(p for p in pipeline.processors if p.stateful or any(o.name in fed for o in p.outputs))


def own_topics(pipeline: Pipeline) -> list[Topic]:
    """The topics of a replayed pipeline that exist for its run alone."""
    found: dict[str, Topic] = {t.name: t for t in pipeline.topics if isinstance(t, RunTopic)}
    found |= {t.dlq.name: t.dlq for t in pipeline.topics}
    return list(found.values())


def held_back(pipeline: Pipeline) -> dict[str, frozenset[str]]:
    """Per processor of the declared pipeline: outputs that a replay decides but does not write."""
    fed = {t.name for t in pipeline.sink_topics}
    return {p.name: frozenset(o.name for o in p.outputs if o.name not in fed) for p in pipeline.processors}


def _tables_by_topic(pipeline: Pipeline) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {}
    for table in pipeline.tables:
        found.setdefault(table.topic.name, []).append(table)
    return found


def _replayed(processor: Processor, results: dict[str, Topic], run_id: int) -> Processor:
    return replace(
        processor,
        sources=tuple(_source(t, run_id) for t in processor.sources),
        outputs=tuple(results[t.name] for t in processor.outputs if t.name in results),
        effects=(),
    )


def _fields(topic: Topic) -> dict[str, object]:
    return {
        "domain": topic.domain,
        "key": topic.key,
        "owner": topic.owner,
        "about": topic.about,
        "event_id": topic.event_id,
        "event_time": topic.event_time,
        "partitions": topic.partitions,
        "retention_ms": topic.retention_ms,
        "schema_name": topic.schema_name or topic.name,
    }


def _own(topic: Topic, run_id: int) -> RunTopic:
    name = run_topic_name(topic.name, run_id)
    return RunTopic(name=name, run_id=run_id, declared_as=topic.name, **_fields(topic))  # type: ignore[arg-type]


def _source(topic: Topic, run_id: int) -> RunSource:
    return RunSource(name=topic.name, run_id=run_id, **_fields(topic))  # type: ignore[arg-type]


def _letters(topic: Topic, run_id: int) -> RunTopic:
    declared = Topic.dlq.func(topic)  # type: ignore[attr-defined]
    assert isinstance(declared, Topic)
    own = replace(declared, name=f"{topic.origin}-dlq")
    return _own(own, run_id)
