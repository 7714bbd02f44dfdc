"""The drawing of a pipeline: complete, in order, and nothing on top of anything else."""

from __future__ import annotations

from itertools import combinations

import pytest

from api.console.graph import GAP_X, HEIGHT, WIDTH, Drawing, draw
from schemas.declare import Pipeline
from schemas.pipelines import PIPELINES

each_pipeline = pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)


@each_pipeline
def test_everything_declared_is_drawn_once(pipeline: Pipeline) -> None:
    """Each topic, processor and table is a node, and each reading and writing an edge."""
    drawing = draw(pipeline)
    names = sorted(n.name for n in drawing.nodes if n.kind in ("topic", "processor", "table"))
    declared = [*pipeline.topics, *pipeline.processors, *pipeline.tables]
    assert names == sorted(x.name for x in declared)
    read = {(e.consumer, e.topic) for e in drawing.edges if e.consumer}
    letters = {t.dlq.name for t in pipeline.topics}
    assert read == {(c, t.name) for c, t in pipeline.consumers if t.name not in letters}
    written = {(e.producer, e.topic) for e in drawing.edges if e.producer}
    assert written == {(p.name, t.name) for p in pipeline.processors for t in p.outputs}


@each_pipeline
def test_nodes_lie_apart_and_within_the_drawing(pipeline: Pipeline) -> None:
    """No two boxes touch, and none leaves the picture."""
    drawing = draw(pipeline)
    for one, other in combinations(drawing.nodes, 2):
        assert abs(one.x - other.x) >= WIDTH + GAP_X / 2 or abs(one.y - other.y) >= HEIGHT + 4, (one, other)
    for node in drawing.nodes:
        assert 0 <= node.x <= drawing.width - WIDTH and 0 <= node.y <= drawing.height - HEIGHT


@each_pipeline
def test_records_flow_to_the_right(pipeline: Pipeline) -> None:
    """Every edge leads into a column further right, but for the one that closes a cycle."""
    drawing = draw(pipeline)
    x = {n.id: n.x for n in drawing.nodes}
    back = [e.id for e in drawing.edges if x[e.source] >= x[e.target]]
    expected = ["topic:stock-results>processor:orders-intake"] if pipeline.name == "orders" else []
    assert back == expected


@each_pipeline
def test_figures_stand_between_boxes(pipeline: Pipeline) -> None:
    """No edge's label lies on a box, nor on the label of another edge."""
    drawing = draw(pipeline)
    for edge in drawing.edges:
        for n in drawing.nodes:
            beside = not n.x - 1 < edge.label_x < n.x + WIDTH + 1
            assert beside or not n.y - 16 < edge.label_y < n.y + HEIGHT + 6, (edge.id, n.id)
    told = [e for e in drawing.edges if e.consumer]
    for one, other in combinations(told, 2):
        apart = abs(one.label_x - other.label_x) > 40 or abs(one.label_y - other.label_y) > 28
        assert apart, (one.id, other.id)


def test_the_drawing_is_the_same_each_time() -> None:
    """The layout is a function of the declaration: a page does not jump when it is loaded again."""
    drawn: list[Drawing] = [draw.__wrapped__(PIPELINES["orders"]) for _ in range(2)]
    assert drawn[0] == drawn[1]
