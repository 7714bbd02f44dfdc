"""Confluent's own clients, unchanged, against a running registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.schema_registry_client import (
    ConfigCompatibilityLevel,
    Metadata,
    MetadataProperties,
    ServerConfig,
)
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.schemas.registry.process import RegistryProcess, record

FIRST = record(("id", "string"), ("amount_minor", "long"))
SECOND = record(("id", "string"), ("amount_minor", "long"), ("note", ["null", "string"], None))
BREAKING = record(("id", "string"), ("amount_minor", "long"), ("note", "string"))
UNUSED = record(("id", "string"), ("till", "int"), name="Till")


def avro(schema: Any, references: list[SchemaReference] | None = None) -> Schema:
    return Schema(json.dumps(schema), "AVRO", references or [])


@pytest.fixture
def client(registry: RegistryProcess) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": registry.url}) as made:
        yield made


def fresh(registry: RegistryProcess) -> SchemaRegistryClient:
    """A client without anything in its caches."""
    return SchemaRegistryClient({"url": registry.url})


def test_register_and_read_back(
    client: SchemaRegistryClient, registry: RegistryProcess, subject: str
) -> None:
    """What SchemaRegistryClient registers comes back by id, guid, version and latest, its text unchanged."""
    text = json.dumps(FIRST | {"doc": "odd spacing", "x-team": "tills"}, indent=3)
    schema_id = client.register_schema(subject, Schema(text, "AVRO"))
    with fresh(registry) as reader:
        latest = reader.get_latest_version(subject)
        assert (latest.schema_id, latest.version, latest.subject) == (schema_id, 1, subject)
        assert latest.schema.schema_str == text
        assert reader.get_schema(schema_id).schema_str == text
        assert reader.get_schema(schema_id, subject_name=subject, fmt="").schema_str == text
        assert reader.get_schema_by_guid(latest.guid).schema_str == text
        assert reader.get_version(subject, 1).schema_id == schema_id
        assert reader.get_versions(subject) == [1]
        assert subject in reader.get_subjects()
        assert reader.get_subjects_by_schema_id(schema_id) == [subject]
        found = reader.get_schema_versions(schema_id)
        assert [(version.subject, version.version) for version in found] == [(subject, 1)]
        assert reader.get_schema_types() == ["AVRO"]
        assert reader.get_contexts() == ["."]


def test_lookup(client: SchemaRegistryClient, subject: str) -> None:
    """lookup_schema finds a registered schema however it is spaced, and answers 40401 and 40403 otherwise."""
    with pytest.raises(SchemaRegistryError) as unknown:
        client.lookup_schema(subject, avro(FIRST))
    assert (unknown.value.http_status_code, unknown.value.error_code) == (404, 40401)
    schema_id = client.register_schema(subject, avro(FIRST))
    found = client.lookup_schema(subject, Schema(json.dumps(FIRST, indent=1), "AVRO"))
    assert (found.schema_id, found.version) == (schema_id, 1)
    with pytest.raises(SchemaRegistryError) as other:
        client.lookup_schema(subject, avro(SECOND))
    assert (other.value.http_status_code, other.value.error_code) == (404, 40403)


def test_evolution(client: SchemaRegistryClient, registry: RegistryProcess, subject: str) -> None:
    """A compatible schema becomes version 2, an incompatible one is refused with field and remedy."""
    client.register_schema(subject, avro(FIRST))
    assert client.test_compatibility(subject, avro(SECOND))
    client.register_schema(subject, avro(SECOND))
    assert client.get_versions(subject) == [1, 2]
    assert not client.test_compatibility(subject, avro(BREAKING))
    assert not client.test_compatibility_all_versions(subject, avro(BREAKING))
    with pytest.raises(SchemaRegistryError) as refused:
        client.register_schema(subject, avro(BREAKING))
    assert refused.value.http_status_code == 409
    assert "field `note` at /fields/2 was added without a default" in refused.value.error_message


def test_settings(client: SchemaRegistryClient, subject: str) -> None:
    """Levels are set, read and removed per subject, and the default is FULL_TRANSITIVE."""
    assert client.get_compatibility() == "FULL_TRANSITIVE"
    with pytest.raises(SchemaRegistryError) as unset:
        client.get_compatibility(subject)
    assert unset.value.error_code == 40408
    client.register_schema(subject, avro(FIRST))
    assert client.set_compatibility(subject, "NONE") == {"compatibility": "NONE"}
    assert client.get_compatibility(subject) == "NONE"
    client.register_schema(subject, avro(BREAKING))
    client.set_config(subject, ServerConfig(compatibility=ConfigCompatibilityLevel.BACKWARD))
    assert client.get_config(subject).compatibility_level == "BACKWARD"
    assert client.delete_config(subject).compatibility_level == "BACKWARD"
    with pytest.raises(SchemaRegistryError):
        client.get_config(subject)
    with pytest.raises(SchemaRegistryError) as wrong:
        client.set_compatibility(subject, "SIDEWAYS")
    assert wrong.value.error_code == 42203


def test_mode(client: SchemaRegistryClient, subject: str) -> None:
    """A read-only subject takes no schema until its mode is removed."""
    assert client.get_global_mode() == "READWRITE"
    assert client.update_mode(subject, "READONLY") == "READONLY"
    assert client.get_mode(subject) == "READONLY"
    with pytest.raises(SchemaRegistryError) as refused:
        client.register_schema(subject, avro(FIRST))
    assert refused.value.error_code == 42205
    assert client.delete_mode(subject) == "READONLY"
    client.register_schema(subject, avro(FIRST))


def test_deletion(client: SchemaRegistryClient, registry: RegistryProcess, subject: str) -> None:
    """Softly deleted schemas stay readable by id, permanently deleted ones do not; no version comes twice."""
    schema_id = client.register_schema(subject, avro(UNUSED))
    client.register_schema(subject, avro(UNUSED | {"doc": "with a doc"}))
    assert client.delete_version(subject, 2) == 2
    assert client.get_versions(subject) == [1]
    assert client.get_versions(subject, deleted=True) == [1, 2]
    assert client.delete_version(subject, 2, permanent=True) == 2
    assert client.get_versions(subject, deleted=True) == [1]
    assert client.delete_subject(subject) == [1]
    with fresh(registry) as reader:
        assert reader.get_schema(schema_id).schema_str == json.dumps(UNUSED)
        assert subject not in reader.get_subjects()
        assert subject in reader.get_subjects(deleted=True)
    assert client.delete_subject(subject, permanent=True) == [1]
    with fresh(registry) as reader:
        with pytest.raises(SchemaRegistryError) as gone:
            reader.get_schema(schema_id)
        assert gone.value.error_code == 40403
        assert reader.register_schema(subject, avro(UNUSED)) == schema_id
        assert reader.get_latest_version(subject).version == 3


def test_references(client: SchemaRegistryClient, registry: RegistryProcess, subject: str) -> None:
    """A schema may use a type registered elsewhere, which then cannot be deleted, and serializes with it."""
    money = record(("minor", "long"), ("currency", "string"), name="Money")
    money_id = client.register_schema(f"{subject}-money", avro(money))
    reference = SchemaReference("shop.Money", f"{subject}-money", 1)
    sale = avro(record(("id", "string"), ("price", "shop.Money")), [reference])
    schema_id = client.register_schema(subject, sale)
    assert client.get_referenced_by(f"{subject}-money", 1) == [schema_id]
    with fresh(registry) as reader:
        assert reader.get_schema(schema_id).references == [reference]
        assert "amount" not in reader.get_schema(schema_id).schema_str
        resolved = json.loads(reader.get_version(subject, 1, fmt="resolved").schema.schema_str)
        assert resolved["fields"][1]["type"]["name"] == "shop.Money"
    with pytest.raises(SchemaRegistryError) as held:
        client.delete_subject(f"{subject}-money")
    assert held.value.error_code == 42206

    context = SerializationContext(subject.removesuffix("-value"), MessageField.VALUE)
    value = {"id": "1", "price": {"minor": 995, "currency": "EUR"}}
    coded = AvroSerializer(client, sale, conf={"auto.register.schemas": False})(value, context)
    assert coded is not None and int.from_bytes(coded[1:5]) == schema_id != money_id
    with fresh(registry) as reader:
        assert AvroDeserializer(reader)(coded, context) == value

    written_out = record(("id", "string"), ("price", money))
    found = client.lookup_schema(subject, avro(written_out))
    assert found.schema_id == schema_id, "a schema with its references written out is the same schema"


def test_serializers(client: SchemaRegistryClient, registry: RegistryProcess, subject: str) -> None:
    """AvroSerializer registers by itself, and AvroDeserializer reads old records with a newer schema."""
    context = SerializationContext(subject.removesuffix("-value"), MessageField.VALUE)
    coded = AvroSerializer(client, json.dumps(FIRST))({"id": "a", "amount_minor": 7}, context)
    with fresh(registry) as reader:
        value = AvroDeserializer(reader, json.dumps(SECOND))(coded, context)
    assert value == {"id": "a", "amount_minor": 7, "note": None}
    with fresh(registry) as writer:
        writer.register_schema(subject, avro(SECOND))
        latest = AvroSerializer(writer, conf={"auto.register.schemas": False, "use.latest.version": True})
        coded = latest({"id": "b", "amount_minor": 8, "note": "x"}, context)
        assert AvroDeserializer(writer)(coded, context) == {"id": "b", "amount_minor": 8, "note": "x"}
        strict = {"auto.register.schemas": False, "normalize.schemas": True}
        AvroSerializer(writer, json.dumps(FIRST, indent=2), conf=strict)(
            {"id": "c", "amount_minor": 9}, context
        )


def test_serializer_cannot_smuggle_a_breaking_schema(client: SchemaRegistryClient, subject: str) -> None:
    """A producer with a schema that breaks readers fails before its first record."""
    client.register_schema(subject, avro(FIRST))
    context = SerializationContext(subject.removesuffix("-value"), MessageField.VALUE)
    serializer = AvroSerializer(client, json.dumps(BREAKING))
    with pytest.raises(SchemaRegistryError) as refused:
        serializer({"id": "a", "amount_minor": 1, "note": "n"}, context)
    assert refused.value.http_status_code == 409


def test_metadata(client: SchemaRegistryClient, subject: str) -> None:
    """Metadata is kept with the schema, found again by its properties, and inherited by the next version."""
    metadata = Metadata(tags=None, properties=MetadataProperties({"owner": "tills"}), sensitive=None)
    client.register_schema(subject, Schema(json.dumps(FIRST), "AVRO", [], metadata))
    client.register_schema(subject, avro(SECOND))
    found = client.get_latest_with_metadata(subject, {"owner": "tills"})
    assert found.version == 2
    assert found.schema.metadata.properties.properties == {"owner": "tills"}
