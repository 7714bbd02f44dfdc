"""Who may do what at the broker: one table from the declarations, for the ACLs and for their tests.

What is not granted here is denied. Each process has a principal of its own, named as `millrace ps` lists it;
`prepare` makes topics, and `operator` is whoever uses the command line, also from the console. A process that
asks the broker nothing (the registry, the sender of webhooks) has no name and gets in nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from schemas.declare import Pipeline, Pipelines, Topic
from schemas.replayed import RUN_INFIX

PREPARE = "prepare"
OPERATOR = "operator"
GATEWAY = "connector-gateway"
MQTT = "connector-mqtt"
TICKS = "connector-ticks"
API = "api"

REPLIES = frozenset({"card-decisions", "card-transactions-dlq"})
"""The topics that the gateway reads replies from."""

LOG_READER = "millrace-reader"
"""The group that readers without a group name: librdkafka asks for its coordinator all the same."""

BRIDGED = frozenset({"truck-telemetry"})
"""The topics that the MQTT bridge writes."""


class Operation(StrEnum):
    """What can be granted, by Kafka's names."""

    READ = "read"
    WRITE = "write"
    CREATE = "create"
    DELETE = "delete"
    DESCRIBE = "describe"


class Resource(StrEnum):
    """On what it can be granted."""

    TOPIC = "topic"
    GROUP = "group"


@dataclass(frozen=True, order=True, slots=True)
class Grant:
    """`principal` may do this to the resource of this name, or to all whose names begin so (`prefix`)."""

    principal: str
    operation: Operation
    resource: Resource
    name: str
    prefix: bool = False

    def covers(self, operation: Operation, resource: Resource, name: str) -> bool:
        """Whether it lets this be done. Kafka: who may read, write or delete may describe as well."""
        if resource is not self.resource or not (
            name.startswith(self.name) if self.prefix else name == self.name
        ):
            return False
        implied = operation is Operation.DESCRIBE and self.operation is not Operation.CREATE
        return operation is self.operation or implied


def principal(role: str, pipeline: str) -> str:
    """The name at the broker of a process, by its role and pipeline as `millrace ps` lists them."""
    return role if pipeline in ("", "all") else f"{role}-{pipeline}"


def grants(pipelines: Pipelines) -> tuple[Grant, ...]:
    """The whole table, in order."""
    return tuple(sorted(set(_grants(pipelines))))


def principals(pipelines: Pipelines) -> tuple[str, ...]:
    """Everyone whom the table names."""
    return tuple(sorted({g.principal for g in grants(pipelines)}))


def allowed(
    table: Iterable[Grant], principal: str, operation: Operation, resource: Resource, name: str
) -> bool:
    """One cell of the matrix principal x operation x resource."""
    return any(g.principal == principal and g.covers(operation, resource, name) for g in table)


def _grants(pipelines: Pipelines) -> Iterator[Grant]:
    declared = [t for p in pipelines for t in p.topics]
    letters = [t.dlq for t in declared]
    yield from _topics(PREPARE, (Operation.CREATE, Operation.DESCRIBE), (*declared, *letters))
    for pipeline in pipelines:
        yield from _pipeline(pipeline)
    yield from _topics(GATEWAY, (Operation.WRITE,), (t for p in pipelines for t in p.inputs))
    yield from _topics(GATEWAY, (Operation.READ,), (t for t in (*declared, *letters) if t.name in REPLIES))
    yield Grant(GATEWAY, Operation.DESCRIBE, Resource.GROUP, LOG_READER)
    yield from _topics(MQTT, (Operation.WRITE,), (t for t in declared if t.name in BRIDGED))
    yield from _topics(TICKS, (Operation.WRITE,), (t for t in declared if t.tick_ms is not None))
    # How far everything is, and events as they are appended.
    yield from _topics(API, (Operation.READ,), (*declared, *letters))
    yield Grant(API, Operation.DESCRIBE, Resource.GROUP, LOG_READER)
    # Verifying, tracing and replaying read everything; a redrive writes to where the letter came from, an
    # ingest to inputs.
    yield from _topics(OPERATOR, (Operation.READ,), (*declared, *letters))
    yield from _topics(OPERATOR, (Operation.WRITE,), declared)
    yield Grant(OPERATOR, Operation.DESCRIBE, Resource.GROUP, LOG_READER)
    # Topics of a replay's own: made, filled, read and deleted by it.
    results = {t.name for p in pipelines for t in p.sink_topics}
    operations = (Operation.CREATE, Operation.READ, Operation.WRITE, Operation.DELETE)
    for name, operation in product(sorted(results | {t.name for t in letters}), operations):
        yield Grant(OPERATOR, operation, Resource.TOPIC, f"{name}{RUN_INFIX}", prefix=True)


def _pipeline(pipeline: Pipeline) -> Iterator[Grant]:
    deciding, storing = principal("processor", pipeline.name), principal("sink", pipeline.name)
    for processor in pipeline.processors:
        yield from _topics(deciding, (Operation.READ,), processor.sources)
        refused = (t.dlq for t in processor.sources)
        yield from _topics(deciding, (Operation.WRITE,), (*processor.outputs, *refused))
        yield Grant(deciding, Operation.READ, Resource.GROUP, processor.name)
    yield from _topics(storing, (Operation.READ,), (*pipeline.sink_topics, *(t.dlq for t in pipeline.topics)))
    yield from _topics(storing, (Operation.WRITE,), (t.dlq for t in pipeline.sink_topics))
    yield Grant(storing, Operation.READ, Resource.GROUP, pipeline.sink_name)


def _topics(principal: str, operations: Iterable[Operation], topics: Iterable[Topic]) -> Iterator[Grant]:
    for topic, operation in product(topics, tuple(operations)):
        yield Grant(principal, operation, Resource.TOPIC, topic.name)
