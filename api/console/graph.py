"""A pipeline as a drawing: nodes in columns from connectors to tables, and edges that avoid them.

The layout is a function of the declaration alone; what is live (figures, health) is filled in by name. After
Sugiyama: cycles are opened, columns are longest paths, an edge that skips columns gets a lane of its own in
each of them, and rows are sorted by the mean of their neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

from schemas.declare import Pipeline

WIDTH, HEIGHT = 148, 46
GAP_X, GAP_Y = 84, 24
LANE = 14
MARGIN = 12
BACK = 26
"""Distance between the ways back below the drawing."""
SWEEPS = 8
SETTLING = 120
"""How often heights are drawn towards their neighbours': enough for straight lines where there is room."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """A box at its upper left corner. `kind` is connectors, topic, processor, sink, table or letters."""

    id: str
    kind: str
    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Edge:
    """A curve between two nodes as the path of an SVG, and where its figures stand. `consumer` reads `topic`,
    or `producer` writes it."""

    id: str
    source: str
    target: str
    topic: str
    consumer: str | None
    producer: str | None
    path: str
    label_x: float
    label_y: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """The whole, in units that are pixels at its natural size."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


@dataclass(slots=True)
class _Arrow:
    source: str
    target: str
    topic: str
    consumer: str | None = None
    producer: str | None = None
    back: bool = False
    lanes: list[str] = field(default_factory=list)


@cache
def draw(pipeline: Pipeline) -> Drawing:
    """The drawing of a pipeline."""
    nodes, arrows = _declared(pipeline)
    _open_cycles(arrows, next(iter(nodes)))
    column = _columns(nodes, arrows)
    rows = _rows(nodes, arrows, column)
    y = _heights(rows, arrows, nodes)
    x = {n: float(MARGIN + c * (WIDTH + GAP_X)) for n, c in column.items()}
    bottom = max(y[n] + (HEIGHT if n in nodes else 0) for n in y)
    edges, ways_back = [], 0
    for arrow in arrows:
        if arrow.back:
            ways_back += 1
            edges.append(_way_back(arrow, x, y, bottom + ways_back * BACK))
        else:
            edges.append(_way(arrow, arrows, x, y))
    return Drawing(
        width=MARGIN * 2 + (max(column.values()) + 1) * (WIDTH + GAP_X) - GAP_X,
        height=bottom + ways_back * BACK + MARGIN,
        nodes=tuple(Node(n, kind, name, x[n], y[n]) for n, (kind, name) in nodes.items()),
        edges=tuple(edges),
    )


def _declared(pipeline: Pipeline) -> tuple[dict[str, tuple[str, str]], list[_Arrow]]:
    nodes: dict[str, tuple[str, str]] = {"connectors": ("connectors", "connectors")}
    nodes |= {f"topic:{t.name}": ("topic", t.name) for t in pipeline.topics}
    nodes |= {f"processor:{p.name}": ("processor", p.name) for p in pipeline.processors}
    nodes["sink"] = ("sink", pipeline.sink_name)
    nodes |= {f"table:{t.name}": ("table", t.name) for t in pipeline.tables}
    nodes["letters"] = ("letters", "dead letters")
    arrows = [_Arrow("connectors", f"topic:{t.name}", t.name) for t in pipeline.inputs]
    for p in pipeline.processors:
        arrows += [
            _Arrow(f"topic:{t.name}", f"processor:{p.name}", t.name, consumer=p.name) for t in p.sources
        ]
        arrows += [
            _Arrow(f"processor:{p.name}", f"topic:{t.name}", t.name, producer=p.name) for t in p.outputs
        ]
    sink = pipeline.sink_name
    arrows += [_Arrow(f"topic:{t.name}", "sink", t.name, consumer=sink) for t in pipeline.sink_topics]
    arrows += [_Arrow("sink", f"table:{t.name}", t.topic.name) for t in pipeline.tables]
    arrows.append(_Arrow("sink", "letters", ""))
    return nodes, arrows


def _open_cycles(arrows: list[_Arrow], root: str) -> None:
    """Mark arrows that lead back to where one came from, on a walk from the connectors."""
    leaving: dict[str, list[_Arrow]] = defaultdict(list)
    for arrow in arrows:
        leaving[arrow.source].append(arrow)
    done: set[str] = set()
    under_way: set[str] = set()

    def walk(node: str) -> None:
        under_way.add(node)
        for arrow in leaving[node]:
            if arrow.target in under_way:
                arrow.back = True
            elif arrow.target not in done:
                walk(arrow.target)
        under_way.discard(node)
        done.add(node)

    for node in (root, *[a.source for a in arrows]):
        if node not in done:
            walk(node)


def _columns(nodes: Iterable[str], arrows: list[_Arrow]) -> dict[str, int]:
    column = dict.fromkeys(nodes, 0)
    for _ in column:
        for a in arrows:
            if not a.back:
                column[a.target] = max(column[a.target], column[a.source] + 1)
    for arrow in arrows:
        if arrow.back:
            continue
        for between in range(column[arrow.source] + 1, column[arrow.target]):
            lane = f"{arrow.source}>{arrow.target}@{between}"
            arrow.lanes.append(lane)
            column[lane] = between
    return column


def _neighbours(arrows: list[_Arrow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for one, other in _steps(arrows):
        found[one].append(other)
        found[other].append(one)
    return found


def _steps(arrows: list[_Arrow]) -> Iterable[Pair]:
    for arrow in arrows:
        if not arrow.back:
            stops = [arrow.source, *arrow.lanes, arrow.target]
            yield from pairwise(stops)


def _rows(nodes: Iterable[str], arrows: list[_Arrow], column: dict[str, int]) -> list[list[str]]:
    rows: list[list[str]] = [[] for _ in range(max(column.values()) + 1)]
    for n in column:  # declared nodes first, in the order of the declaration
        rows[column[n]].append(n)
    near = _neighbours(arrows)
    for sweep in range(SWEEPS):
        order = range(1, len(rows)) if sweep % 2 == 0 else range(len(rows) - 2, -1, -1)
        for c in order:
            beside = rows[c - 1 if sweep % 2 == 0 else c + 1]
            # Places relative to the column's middle: columns differ in how many they hold.
            place = {n: i - (len(beside) - 1) / 2 for i, n in enumerate(beside)}
            own = {n: i - (len(rows[c]) - 1) / 2 for i, n in enumerate(rows[c])}

            def mean(
                n: str, place: dict[str, float] = place, own: dict[str, float] = own
            ) -> tuple[bool, float]:
                there = [place[m] for m in near[n] if m in place]
                # Dead letters stand last: they are where nothing should come to.
                return n == "letters", sum(there) / len(there) if there else own[n]

            rows[c].sort(key=mean)
    return rows


def _heights(rows: list[list[str]], arrows: list[_Arrow], nodes: Iterable[str]) -> dict[str, float]:
    boxes = set(nodes)
    size = {n: float(HEIGHT if n in boxes else LANE) for row in rows for n in row}
    near = _neighbours(arrows)
    middle: dict[str, float] = {}
    for row in rows:
        at = 0.0
        for n in row:
            middle[n] = at + size[n] / 2
            at += size[n] + GAP_Y
    for sweep in range(SETTLING):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {
                n: sum(middle[m] for m in near[n]) / len(near[n]) if near[n] else middle[n] for n in row
            }
            _settle(row, wanted, size, middle)
    top = min(middle[n] - size[n] / 2 for n in middle)
    return {n: middle[n] - size[n] / 2 - top + MARGIN for n in middle}


def _settle(
    row: list[str], wanted: dict[str, float], size: dict[str, float], middle: dict[str, float]
) -> None:
    """Put a column's boxes as near to where they want to be as their order and size allow.

    Boxes that touch move together, to the mean of what they want (isotonic regression).
    """
    groups: list[tuple[list[str], float]] = []  # boxes, and the middle of the first
    offset: dict[str, float] = {}
    at = 0.0
    for i, n in enumerate(row):
        if i:
            at += size[row[i - 1]] / 2 + GAP_Y + size[n] / 2
        offset[n] = at
    for n in row:
        groups.append(([n], wanted[n] - offset[n]))
        while len(groups) > 1 and groups[-1][1] < groups[-2][1]:
            (late, b), (early, a) = groups.pop(), groups.pop()
            groups.append((early + late, (a * len(early) + b * len(late)) / (len(early) + len(late))))
    for boxes, first in groups:
        for n in boxes:
            middle[n] = first + offset[n]


def _aside(arrow: _Arrow, arrows: Sequence[_Arrow]) -> float:
    """Where on its curve an edge's figures stand: nearer to the end that it shares with fewer others."""
    together = sum(a.target == arrow.target and not a.back for a in arrows)
    apart = sum(a.source == arrow.source and not a.back for a in arrows)
    return 0.32 if together > apart else 0.68 if apart > together else 0.5


def _way(arrow: _Arrow, arrows: Sequence[_Arrow], x: dict[str, float], y: dict[str, float]) -> Edge:
    from_x, from_y = x[arrow.source] + WIDTH, y[arrow.source] + HEIGHT / 2
    path = [f"M{from_x:.1f} {from_y:.1f}"]
    label: tuple[float, float] | None = None
    for stop in (*arrow.lanes, arrow.target):
        to_x = x[stop]
        to_y = y[stop] + (LANE if stop in arrow.lanes else HEIGHT) / 2
        bend = (to_x - from_x) / 2
        path.append(f"C{from_x + bend:.1f} {from_y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}")
        if label is None:
            t = _aside(arrow, arrows)
            # On the curve, which is a cubic with level ends.
            label = (
                from_x + (to_x - from_x) * (1.5 * t * (1 - t) + t**3),
                from_y + (to_y - from_y) * (3 - 2 * t) * t * t,
            )
        from_x, from_y = to_x, to_y
        if stop in arrow.lanes:
            from_x += WIDTH
            path.append(f"H{from_x:.1f}")
    assert label is not None
    return _edge(arrow, path, label)


def _way_back(arrow: _Arrow, x: dict[str, float], y: dict[str, float], below: float) -> Edge:
    right, left = x[arrow.source] + WIDTH, x[arrow.target]
    from_y, to_y = y[arrow.source] + HEIGHT / 2, y[arrow.target] + HEIGHT / 2
    swing = GAP_X / 2
    path = [
        f"M{right:.1f} {from_y:.1f}",
        f"C{right + swing:.1f} {from_y:.1f} {right + swing:.1f} {below:.1f} {right:.1f} {below:.1f}",
        f"H{left:.1f}",
        f"C{left - swing:.1f} {below:.1f} {left - swing:.1f} {to_y:.1f} {left:.1f} {to_y:.1f}",
    ]
    return _edge(arrow, path, ((left + right) / 2, below))


def _edge(arrow: _Arrow, path: list[str], label: tuple[float, float]) -> Edge:
    return Edge(
        id=f"{arrow.source}>{arrow.target}",
        source=arrow.source,
        target=arrow.target,
        topic=arrow.topic,
        consumer=arrow.consumer,
        producer=arrow.producer,
        path=" ".join(path),
        label_x=round(label[0], 1),
        label_y=round(label[1], 1),
    )
