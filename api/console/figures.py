"""A look in words: what each node and edge of the graph, and each line of a pipeline's page, says now.

Everything is a flat mapping of names to texts, from which a page is rendered and of which a stream sends what
changed. States are `good`, `late`, `bad` and `unknown`; each has a sign and a word, never a colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.console import charts, words
from api.console.graph import Drawing, Edge, Node
from api.console.observer import Look, Position, ProcessLook, readers
from api.console.parts import Part
from infra.checkpoints import TopicPartition
from schemas.declare import Merge, Pipeline, Pipelines

GOOD, LATE, BAD, UNKNOWN = "good", "late", "bad", "unknown"
SIGNS = {GOOD: "●", LATE: "▲", BAD: "✕", UNKNOWN: "○"}
MOST_WORDS = 19
"""As many letters as a node of the graph has room for."""
MERGES = {
    Merge.FIRST_WINS: "first wins",
    Merge.NEWEST: "newest wins",
    Merge.HIGHEST_VERSION: "highest wins",
}
LATE_S = 30.0
"""A consumer whose oldest waiting record has waited for longer is late."""
WORST = (BAD, LATE, UNKNOWN, GOOD)


@dataclass(frozen=True, slots=True)
class Health:
    """A state and the words for it."""

    state: str
    words: str


def node_key(pipeline: str, node: str) -> str:
    return f"{pipeline}|{node}"


def edge_key(pipeline: str, edge: str) -> str:
    return f"{pipeline}|{edge}"


def parts(look: Look) -> dict[str, str]:
    """The strip of parts on every page, and when the look was."""
    found = {"at": f"{look.at:%H:%M:%S} UTC" if look.number else words.NONE}
    for part in Part:
        if part is not Part.PROCESSES:
            found |= {f"part|{part}|{k}": v for k, v in part_values(look, part).items()}
    return found


def part_values(look: Look, part: Part) -> dict[str, str]:
    """One part: its state, sign and words."""
    if not look.number:
        return {"state": UNKNOWN, "sign": SIGNS[UNKNOWN], "words": "being asked"}
    trouble = look.troubles.get(part)
    state = BAD if trouble else GOOD
    return {"state": state, "sign": SIGNS[state], "words": trouble or "answers"}


def link(pipeline: Pipeline, node: Node) -> str:
    """Where a node of the graph leads to."""
    own = f"/console/pipelines/{pipeline.name}"
    return {
        "topic": f"/console/events?topic={node.name}",
        "table": f"/console/trace?table={node.name}",
        "letters": f"/console/dead-letters?pipeline={pipeline.name}",
        "connectors": f"{own}#processes",
    }.get(node.kind, f"{own}#{node.name}")


def graph(look: Look, pipelines: Pipelines, drawings: dict[str, Drawing]) -> dict[str, str]:
    """All figures of the page of graphs."""
    found = parts(look)
    for pipeline in pipelines:
        found |= drawn(look, pipeline, drawings[pipeline.name])
        found |= summary(look, pipeline)
    return found


def drawn(look: Look, pipeline: Pipeline, drawing: Drawing) -> dict[str, str]:
    """The figures of one graph."""
    found: dict[str, str] = {}
    for node in drawing.nodes:
        key, health = node_key(pipeline.name, node.id), node_health(look, pipeline, node)
        found |= _said(key, health)
        found[f"{key}|short"] = _short(health)
        found[f"{key}|label"] = _label(node, health)
    for edge in drawing.edges:
        key = edge_key(pipeline.name, edge.id)
        per_s, lag = edge_rate(look, pipeline, edge), edge_lag(look, edge)
        found[f"{key}|rate"] = "" if edge.target == "letters" else f"{words.rate(per_s)}/s"
        found[f"{key}|lag"] = lag
        idle = per_s is None or per_s < 0.05
        found[f"{key}|flow"] = "idle" if idle else "slow" if (per_s or 0) < 20 else "fast"
    return found


def _label(node: Node, health: Health) -> str:
    """What a node is called by who does not see it: what stands in it, and whatever was left out there."""
    kind = "" if node.kind in ("connectors", "letters") else f"{node.kind} "
    whole = f" ({health.words})" if len(health.words) > MOST_WORDS else ""
    return f"{kind}{node.name}: {_short(health)}{whole}"


def _short(health: Health) -> str:
    return health.words if len(health.words) <= MOST_WORDS else f"{health.words[:MOST_WORDS]}…"


def summary(look: Look, pipeline: Pipeline) -> dict[str, str]:
    """The pipeline in a line: its state, what comes in, the worst lag, its dead letters."""
    name = pipeline.name
    arriving = [look.arrivals[t.name] for t in pipeline.inputs if t.name in look.arrivals]
    flows = [f for key in readers(pipeline) if (f := look.flows.get(key)) is not None]
    lags = [f.lag_s for f in flows if f.lag_s is not None]
    waiting = [f.lag_records for f in flows if f.lag_records is not None]
    return {
        **_said(name, pipeline_health(look, pipeline)),
        f"{name}|arriving": f"{words.rate(sum(arriving) if arriving else None)}/s",
        f"{name}|lag": words.span(max(lags) if lags else None),
        f"{name}|waiting": words.number(sum(waiting) if waiting else None),
        f"{name}|letters": words.number(None if look.letters is None else look.letters.get(name, 0)),
        f"{name}|duplicates": words.number(
            max((look.duplicates.get(c, 0.0) for c, _ in pipeline.consumers), default=0.0)
            if look.processes
            else None
        ),
    }


def node_health(look: Look, pipeline: Pipeline, node: Node) -> Health:
    """How a node is, and why."""
    if node.kind == "topic":
        return _topic_health(look, pipeline, node.name)
    if node.kind == "table":
        table = next(t for t in pipeline.tables if t.name == node.name)
        away = look.troubles.get(Part.DATABASE)
        return Health(UNKNOWN, "Postgres is away") if away else Health(GOOD, MERGES[table.merge])
    if node.kind == "letters":
        if look.letters is None:
            return Health(UNKNOWN, "not known")
        open_ = look.letters.get(pipeline.name, 0)
        return Health(LATE, f"{open_:,} open") if open_ else Health(GOOD, "none open")
    if node.kind == "connectors":
        return _process_health(_of_role(look, "connector", "gateway"), "gateway")
    role = "sink" if node.kind == "sink" else "processor"
    health = _process_health(_of_role(look, role, pipeline.name), "running")
    if health.state in (BAD, UNKNOWN):
        return health
    mine = [f for (consumer, _), f in look.flows.items() if consumer == node.name]
    lag = max((f.lag_s or 0.0 for f in mine), default=0.0)
    return Health(LATE, f"{words.span(lag)} late") if lag > LATE_S else health


def pipeline_health(look: Look, pipeline: Pipeline) -> Health:
    """The worst of what runs, in words."""
    found = [
        node_health(look, pipeline, Node(n, kind, name, 0, 0))
        for n, kind, name in (
            ("sink", "sink", pipeline.sink_name),
            *((f"processor:{p.name}", "processor", p.name) for p in pipeline.processors),
        )
    ]
    away = [p for p in (Part.BROKER, Part.DATABASE) if p in look.troubles]
    if away:
        return Health(BAD, f"{' and '.join(away)} away")
    worst = min(found, key=lambda h: WORST.index(h.state))
    return Health(worst.state, "runs" if worst.state == GOOD else worst.words)


def edge_rate(look: Look, pipeline: Pipeline, edge: Edge) -> float | None:
    """Records a second along an edge; None where it is not known."""
    if edge.consumer is not None:
        flow = look.flows.get((edge.consumer, edge.topic))
        return flow.records_per_s if flow else None
    if edge.producer is not None:
        known = look.produced.get((edge.producer, edge.topic))
        writers = [p for p in pipeline.processors if any(t.name == edge.topic for t in p.outputs)]
        return known if known is not None or len(writers) > 1 else look.arrivals.get(edge.topic)
    if edge.source == "sink" and edge.topic:
        flow = look.flows.get((pipeline.sink_name, edge.topic))
        return flow.records_per_s if flow else None
    return look.arrivals.get(edge.topic)


def edge_lag(look: Look, edge: Edge) -> str:
    """The lag of who reads along an edge, in words; nothing where nobody reads."""
    if edge.consumer is None:
        return ""
    flow = look.flows.get((edge.consumer, edge.topic))
    if flow is None or flow.lag_s is None:
        return f"lag {words.NONE}"
    return f"lag {'≥ ' if flow.at_least else ''}{words.span(flow.lag_s)}"


# One pipeline


def pipeline_page(look: Look, pipeline: Pipeline, drawing: Drawing) -> dict[str, str]:
    """All figures of a pipeline's page but its plots."""
    found = parts(look) | drawn(look, pipeline, drawing) | summary(look, pipeline)
    for consumer, topic in readers(pipeline):
        found |= _flow_values(look, consumer, topic)
        declared = next(t for t in pipeline.topics if t.name == topic)
        for n in range(declared.partitions):
            found |= _partition_values(look, consumer, TopicPartition(topic, n))
    for process in processes_of(look, pipeline):
        found |= process_values(process)
    return found


def _flow_values(look: Look, consumer: str, topic: str) -> dict[str, str]:
    flow, key = look.flows.get((consumer, topic)), f"{consumer}|{topic}"
    lag = words.span(flow.lag_s if flow else None)
    return {
        f"{key}|rate": f"{words.rate(flow.records_per_s if flow else None)}/s",
        f"{key}|lag": f"≥ {lag}" if flow and flow.at_least else lag,
        f"{key}|waiting": words.number(flow.lag_records if flow else None),
        f"{key}|p95": words.span(flow.p95_s if flow else None) if flow and flow.p95_s else words.NONE,
    }


def _partition_values(look: Look, consumer: str, at: TopicPartition) -> dict[str, str]:
    key = f"{consumer}|{at.topic}|{at.partition}"
    position, end = look.position(consumer, at), look.ends.get(at)
    known: Position | None = (look.positions or {}).get((consumer, at))
    behind = None if position is None or end is None else max(0, end - position)
    state = UNKNOWN if behind is None else LATE if behind else GOOD
    return {
        f"{key}|position": words.number(position),
        f"{key}|end": words.number(end),
        f"{key}|behind": words.number(behind),
        f"{key}|sign": SIGNS[state],
        f"{key}|state": state,
        f"{key}|watermark": words.of_ms(look.watermarks.get((consumer, at))),
        f"{key}|epoch": words.number(known.epoch if known else None),
        f"{key}|updated": words.moment(known.updated_at if known else None),
    }


def plots(history: Sequence[Look], pipeline: Pipeline) -> dict[str, str]:
    """The curves of a pipeline's page: for each reader its throughput, its lag and its batches' latency."""
    found: dict[str, str] = {}
    if not history:
        return found
    now_s = history[-1].at_s
    for consumer, topic in readers(pipeline):
        flows = [(look.at_s, look.flows.get((consumer, topic))) for look in history]
        for name, told, curves in (
            ("throughput", _per_second, ([(t, f.records_per_s if f else None) for t, f in flows],)),
            ("lag", words.span, ([(t, f.lag_s if f else None) for t, f in flows],)),
            (
                "latency",
                _milliseconds,
                (
                    [(t, f.p50_s if f else None) for t, f in flows],
                    [(t, f.p95_s if f else None) for t, f in flows],
                ),
            ),
        ):
            plot = charts.plot(curves, now_s, told)
            key = f"{consumer}|{topic}|{name}"
            found[f"{key}|top"] = plot.top
            for n, line in enumerate(plot.lines):
                # An empty path is not valid, and would be complained about by browsers.
                found[f"{key}|path{n}"] = line.path or "M0 0"
                found[f"{key}|now{n}"] = line.now
    return found


def _per_second(value: float | None) -> str:
    return f"{words.rate(value)}/s"


def _milliseconds(seconds: float | None) -> str:
    return (
        words.NONE if seconds is None else f"{seconds * 1000:,.0f} ms" if seconds < 1 else words.span(seconds)
    )


def processes_of(look: Look, pipeline: Pipeline) -> list[ProcessLook]:
    """The processes that a pipeline lives by: its own and the connectors."""
    return [p for p in look.processes if p.pipeline == pipeline.name or p.role == "connector"]


def process_values(process: ProcessLook) -> dict[str, str]:
    """A process in words."""
    health = _process_health(process, "running")
    return {
        **_said(f"process|{process.name}", health),
        f"process|{process.name}|pid": str(process.pid or words.NONE),
        f"process|{process.name}|restarts": words.number(process.restarts),
    }


def _said(key: str, health: Health) -> dict[str, str]:
    return {f"{key}|state": health.state, f"{key}|sign": SIGNS[health.state], f"{key}|words": health.words}


def _of_role(look: Look, role: str, pipeline: str) -> ProcessLook | None:
    return next((p for p in look.processes if p.role == role and p.pipeline == pipeline), None)


def _process_health(process: ProcessLook | None, good: str) -> Health:
    if process is None:
        return Health(UNKNOWN, "not supervised")
    if process.state != "running":
        return Health(BAD, process.state)
    if process.ready is False:
        return Health(LATE, f"not ready: {_listed(process.failing)}")
    if process.ready is None and process.role != "registry" and process.role != "api":
        return Health(UNKNOWN, "does not answer")
    return Health(GOOD, good)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "") or "starting"


def _topic_health(look: Look, pipeline: Pipeline, name: str) -> Health:
    topic = next(t for t in pipeline.topics if t.name == name)
    ats = [TopicPartition(name, n) for n in range(topic.partitions)]
    if Part.BROKER in look.troubles:
        return Health(UNKNOWN, "Kafka is away")
    if not all(at in look.ends for at in ats):
        return Health(UNKNOWN, "not known")
    held = sum(look.ends[at] - look.starts.get(at, 0) for at in ats)
    return Health(GOOD, f"{held:,} records")


def edges_in_words(look: Look, pipeline: Pipeline, drawing: Drawing) -> Iterator[tuple[Edge, str, str]]:
    """Each edge with the names of its ends: the graph for those who do not see it."""
    names = {node.id: node.name for node in drawing.nodes}
    for edge in drawing.edges:
        yield edge, names[edge.source], names[edge.target]
