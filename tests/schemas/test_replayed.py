"""Pipelines as replays run them, and what declarations say about replays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.declare import DeclarationError, Effect, Merge, Pipeline
from schemas.fleet import GEOFENCING, TRUCK_ALERTS, TRUCK_TELEMETRY
from schemas.orders import ORDER_LOG, SAGA, STOCK, STOCK_COMMANDS
from schemas.orders import PIPELINE as ORDERS
from schemas.pipelines import PIPELINES
from schemas.replayed import deciding_anew, held_back, own_topics, replayed, sink_in_place


@pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)
@pytest.mark.parametrize("as_run", [replayed, sink_in_place])
def test_no_replay_writes_to_a_live_topic(as_run: object, pipeline: Pipeline) -> None:
    """What a replay produces, dead letters included, goes to topics that exist for its run alone."""
    live = {t.name for p in PIPELINES for topic in p.topics for t in (topic, topic.dlq)}
    run = as_run(pipeline, 7)  # type: ignore[operator]
    written = {o.name for p in run.processors for o in p.outputs} | {t.dlq.name for t in run.topics}
    assert written and not written & live
    assert written <= {t.name for t in own_topics(run)}
    assert {t.name for t in own_topics(run)} & live == set()


@pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)
def test_a_replay_has_the_same_tables_partitions_and_schemas(pipeline: Pipeline) -> None:
    """A run's topic carries what its live one does, by the same registered schema, in as many partitions."""
    run = replayed(pipeline, 7)
    assert [t.name for t in run.tables] == [t.name for t in pipeline.tables]
    for table, declared in zip(run.tables, pipeline.tables, strict=True):
        live, own = declared.topic, table.topic
        assert (own.origin, own.subject, own.schema) == (live.name, live.subject, live.schema)
        assert own.partitions == live.partitions and own.name != live.name


def test_inner_topics_are_read_live_and_their_writers_held_back() -> None:
    """Each processor of the orders reads its own log; commands are decided anew but not sent."""
    assert deciding_anew(ORDERS) == (SAGA, STOCK)
    run = replayed(ORDERS, 7)
    assert [[s.name for s in p.sources] for p in run.processors] == [[ORDER_LOG.name], [STOCK_COMMANDS.name]]
    assert held_back(ORDERS)[SAGA.name] == {STOCK_COMMANDS.name}
    assert STOCK_COMMANDS.name not in {o.origin for p in run.processors for o in p.outputs}


def test_declarations_that_replays_rest_on_are_checked() -> None:
    """An effect follows from an output, only state has a memory, and only a first-wins table is a ledger."""
    effect = Effect(name="mail", topic=TRUCK_TELEMETRY, about="a mail to the dispatcher")
    with pytest.raises(DeclarationError, match="add truck-telemetry to the outputs"):
        replace(GEOFENCING, effects=(effect,))
    assert replace(GEOFENCING, effects=(replace(effect, topic=TRUCK_ALERTS),)).effects
    with pytest.raises(DeclarationError, match="memory_ms"):
        replace(GEOFENCING, stateful=False, memory_ms=5)
    assert (GEOFENCING.warm_up_ms, replace(GEOFENCING, stateful=False).warm_up_ms) == (None, 0)
    table = next(t for t in ORDERS.tables if t.merge is Merge.HIGHEST_VERSION)
    with pytest.raises(DeclarationError, match="append_only"):
        replace(table, append_only=True)
