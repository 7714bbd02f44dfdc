"""The table of who may do what at the broker, held against the declarations it comes from."""

from __future__ import annotations

import pytest

from connectors.fleet.mqtt import TRUCK_TELEMETRY
from infra.settings import Settings
from infra.supervisor import PREPARE as PREPARING
from infra.supervisor import specs
from schemas import grants
from schemas.declare import Pipeline
from schemas.grants import Operation, Resource, allowed
from schemas.pipelines import PIPELINES
from schemas.replayed import own_topics, replayed

TABLE = grants.grants(PIPELINES)
DECLARED = [t for p in PIPELINES for t in p.topics]
EVERY = [*DECLARED, *(t.dlq for t in DECLARED)]


def of(principal: str, operation: Operation, resource: Resource = Resource.TOPIC) -> set[str]:
    """The names that a principal was granted this for."""
    return {
        g.name
        for g in TABLE
        if (g.principal, g.operation, g.resource) == (principal, operation, resource) and not g.prefix
    }


@pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)
def test_a_pipelines_processes_reach_their_own_topics_alone(pipeline: Pipeline) -> None:
    """Processors read sources and write outputs, sinks read results and letters; nothing of other domains."""
    deciding, storing = f"processor-{pipeline.name}", f"sink-{pipeline.name}"
    sources = {t.name for p in pipeline.processors for t in p.sources}
    outputs = {t.name for p in pipeline.processors for t in p.outputs}
    assert of(deciding, Operation.READ) == sources
    assert of(deciding, Operation.WRITE) == outputs | {f"{name}-dlq" for name in sources}
    assert of(deciding, Operation.READ, Resource.GROUP) == {p.name for p in pipeline.processors}
    fed = {t.topic.name for t in pipeline.tables}
    assert of(storing, Operation.READ) == fed | {f"{t.name}-dlq" for t in pipeline.topics}
    assert of(storing, Operation.WRITE) == {f"{name}-dlq" for name in fed}
    assert of(storing, Operation.READ, Resource.GROUP) == {pipeline.sink_name}
    for g in TABLE:
        if g.principal in (deciding, storing):
            assert g.operation in (Operation.READ, Operation.WRITE) and not g.prefix


def test_connectors_write_inputs_and_read_replies_alone() -> None:
    """The gateway writes inputs, the bridge telemetry, ticks as they are wanted; it alone reads, replies."""
    assert of(grants.GATEWAY, Operation.WRITE) == {t.name for p in PIPELINES for t in p.inputs}
    assert of(grants.MQTT, Operation.WRITE) == {TRUCK_TELEMETRY.name} == grants.BRIDGED
    assert of(grants.TICKS, Operation.WRITE) == {t.name for t in DECLARED if t.tick_ms is not None}
    assert of(grants.GATEWAY, Operation.READ) == {"card-decisions", "card-transactions-dlq"}
    assert {g.operation for g in TABLE if g.principal in (grants.MQTT, grants.TICKS)} == {Operation.WRITE}


def test_the_api_reads_and_writes_nothing() -> None:
    """The API is shown every declared topic and changes none; it joins no group."""
    assert of(grants.API, Operation.READ) == {t.name for t in EVERY}
    assert {g.operation for g in TABLE if g.principal == grants.API and g.resource is Resource.TOPIC} == {
        Operation.READ
    }
    assert not of(grants.API, Operation.READ, Resource.GROUP)


def test_only_prepare_makes_topics_and_nobody_deletes_a_declared_one() -> None:
    """Declared topics are made by `prepare`, which neither reads nor writes; nobody deletes them."""
    for topic in EVERY:
        makers = {
            p
            for p in grants.principals(PIPELINES)
            if allowed(TABLE, p, Operation.CREATE, Resource.TOPIC, topic.name)
        }
        assert makers == {grants.PREPARE}
        assert not any(g.covers(Operation.DELETE, Resource.TOPIC, topic.name) for g in TABLE)
    preparing = {g.operation for g in TABLE if g.principal == grants.PREPARE}
    assert preparing == {Operation.CREATE, Operation.DESCRIBE}


@pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)
def test_the_operator_has_a_replays_own_topics_to_itself(pipeline: Pipeline) -> None:
    """Whatever topics a run makes, the operator makes, fills, reads and deletes; nobody else sees them."""
    for topic in own_topics(replayed(pipeline, 17)):
        for operation in Operation:
            who = {
                p
                for p in grants.principals(PIPELINES)
                if allowed(TABLE, p, operation, Resource.TOPIC, topic.name)
            }
            assert who == {grants.OPERATOR}


def test_every_process_that_speaks_to_the_broker_is_in_the_table() -> None:
    """The supervisor's processes are the principals; registry and webhooks alone need no name there."""
    named = {
        grants.principal(s.role, s.pipeline)
        for s in (PREPARING, *specs(Settings({}), PIPELINES, native=True))
    }
    # Ticks run where a topic wants them, and have no grants where none does.
    assert named - {"registry", "connector-webhooks", grants.TICKS} == set(grants.principals(PIPELINES)) - {
        grants.OPERATOR,
        grants.TICKS,
    }


def test_nobody_has_the_brokers_own_name() -> None:
    """The principal of the broker's certificate, which may do everything, is nobody's in the table."""
    from infra.services.kafka_certificates import BROKER

    assert BROKER not in grants.principals(PIPELINES)
