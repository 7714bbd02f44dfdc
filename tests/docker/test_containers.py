"""The tests' own services as containers: what the `services` fixture starts where Docker answers."""

from __future__ import annotations

import docker
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.services.docker import DockerServices
from infra.settings import Settings
from tests.containers import LABEL, NAMES

pytestmark = pytest.mark.docker


def test_fixture_runs_containers_on_loopback(services: Settings) -> None:
    """The fixture's services are containers, published on the instance's ports of loopback alone."""
    client = docker.from_env()
    found = client.containers.list(filters={"label": f"{LABEL}={DockerServices(services).project}"})
    published = [
        (binding["HostIp"], int(binding["HostPort"]))
        for one in found
        for bindings in one.ports.values()
        for binding in bindings or []
    ]
    client.close()
    assert len(found) == len(NAMES)
    base = int(services.text("port_base"))
    assert sorted(published) == [("127.0.0.1", base + distance) for distance in (32, 79, 81, 83, 92)]


def test_registry_keeps_readers_and_writers_apart_from_breaking_changes(registry: Settings) -> None:
    """Confluent's client registers with the registry's container, which refuses a field without default."""
    first = '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]}'
    breaking = first.replace("]}", ', {"name": "b", "type": "string"}]}')
    with SchemaRegistryClient({"url": registry.schema_registry_url}) as client:
        number = client.register_schema("containers-value", Schema(first, "AVRO"))
        assert client.register_schema("containers-value", Schema(first, "AVRO")) == number
        with pytest.raises(SchemaRegistryError) as refused:
            client.register_schema("containers-value", Schema(breaking, "AVRO"))
    assert refused.value.http_status_code == 409
