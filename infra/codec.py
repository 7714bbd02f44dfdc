"""Avro in Confluent's wire format: a zero byte, the schema's id (4 bytes, big endian), the Avro body.

Timestamps are integers in the schema's unit on both sides: building datetimes costs more than the
decoding itself, and a decision compares integers exactly.
"""

from __future__ import annotations

import io
import json
import struct
import time
from dataclasses import dataclass
from typing import Any, NoReturn

import fastavro
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from fastavro.schema import SchemaParseException

from schemas.declare import Topic
from schemas.platform import TICK

Event = dict[str, Any]

MAGIC = 0
_HEADER = struct.Struct(">bi")
"""Magic byte and schema id. It is signed, as Java's clients read it and dead letters keep it: no registry has
one below 0, but anybody's bytes may name it."""
HEADER_BYTES = _HEADER.size
"""A zero byte and the schema id, before the event's own bytes (Confluent's wire format)."""
_UNKNOWN_ID_SECONDS = 30.0


class Undecodable(ValueError):
    """Bytes that are no event of the topic; the reason says what is wrong with them."""

    def __init__(self, reason: str, schema_id: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.schema_id = schema_id


class IsTick(Undecodable):
    """No event of the topic, but a tick among them: a record that says how far event time has come."""

    def __init__(self, schema_id: int, event: Event) -> None:
        super().__init__("the record is a tick", schema_id)
        self.event = event


class Unencodable(ValueError):
    """An event that does not fit its topic's schema; the message names the field where it can."""


class Unregistered(Unencodable):
    """The topic's schema is not in the registry: the installation is at fault, not the event."""


class RegistryUnavailable(ConnectionError):
    """The registry gave no answer; nothing is known about the record, so nothing may be decided."""


@dataclass(slots=True, frozen=True)
class Decoded:
    """An event and the id of the schema it was written with."""

    schema_id: int
    event: Event


def without_logical_types(schema: Any) -> Any:
    """The schema with logical types taken off, so that values stay the integers and strings they are."""
    if isinstance(schema, dict):
        return {k: without_logical_types(v) for k, v in schema.items() if k != "logicalType"}
    if isinstance(schema, list):
        return [without_logical_types(s) for s in schema]
    return schema


def schema_id_of(value: bytes) -> int:
    """The schema id that a record value names; meaningless where it is not in the wire format."""
    return int.from_bytes(value[1:HEADER_BYTES], "big", signed=True)


def full_name(schema: dict[str, Any]) -> str:
    name: str = schema["name"]
    namespace = schema.get("namespace")
    return f"{namespace}.{name}" if namespace and "." not in name else name


def write_body(schema: Any, event: Event) -> bytes:
    """An event as Avro by a schema (parsed JSON), without the wire format's header."""
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out, fastavro.parse_schema(without_logical_types(schema)), event, strict_allow_default=True
    )
    return out.getvalue()


def read_body(data: bytes, writer: Any, reader: Any) -> Event:
    """What a reader's schema makes of the bytes that a writer's schema describes (both parsed JSON)."""
    body = io.BytesIO(data)
    event = fastavro.schemaless_reader(
        body,
        fastavro.parse_schema(without_logical_types(writer)),
        fastavro.parse_schema(without_logical_types(reader)),
    )
    if not isinstance(event, dict) or body.read(1):
        raise ValueError("the bytes are not one event")
    return event


class Codec:
    """Encodes with each topic's own schema; decodes whatever registered version a record was written with."""

    def __init__(self, registry_url: str) -> None:
        self._client = SchemaRegistryClient({"url": registry_url, "timeout": 10})
        self._readers: dict[str, Any] = {}
        self._writer_ids: dict[str, int] = {}
        self._writers: dict[tuple[str, int], Any] = {}
        self._tick_ids: set[int] = set()
        self._refused: dict[tuple[str, int], tuple[float, str]] = {}

    def close(self) -> None:
        """Close the connection to the registry."""
        self._client.__exit__()

    def __del__(self) -> None:
        # A codec that was made for one command shall not leave its socket to the collector's mood.
        if hasattr(self, "_client"):
            self.close()

    def register(self, topic: Topic) -> int:
        """Register the topic's schema under its subject; returns the id.

        Raises SchemaRegistryError if it is refused, `RegistryUnavailable` if nobody answers.
        """
        schema = Schema(topic.schema_path.read_text(), "AVRO")
        try:
            schema_id: int = self._client.register_schema(topic.subject, schema)
        except SchemaRegistryError:
            raise
        except Exception as error:  # of whichever HTTP library the client found
            raise RegistryUnavailable(str(error)) from error
        self._writer_ids[topic.name] = schema_id
        return schema_id

    def encode(self, topic: Topic, event: Event) -> bytes:
        """The record value of `event`. Raises `Unencodable`, at first use `RegistryUnavailable`."""
        out = io.BytesIO()
        out.write(self.header(topic))
        try:
            fastavro.schemaless_writer(out, self._reader(topic), event, strict_allow_default=True)
        except Exception as error:
            raise Unencodable(_explain(topic, self._reader(topic), event, error)) from error
        return out.getvalue()

    def header(self, topic: Topic) -> bytes:
        """What precedes each event that is encoded for a topic. At first use `RegistryUnavailable`."""
        schema_id = self._writer_ids.get(topic.name)
        return _HEADER.pack(MAGIC, self._writer_id(topic) if schema_id is None else schema_id)

    def writer_schema(self, topic: Topic, schema_id: int) -> Any:
        """The schema (parsed JSON) of a topic's record. Raises `Undecodable`, `RegistryUnavailable`."""
        self._writers.get((topic.name, schema_id)) or self._writer(topic, schema_id)
        text = self._schema_text(schema_id)
        assert text is not None
        return json.loads(text)

    def decode(self, topic: Topic, data: bytes | None) -> Decoded:
        """The event in `data`. Raises `Undecodable` (or `IsTick`), for a new id `RegistryUnavailable`."""
        if data is None:
            raise Undecodable("the record has no value (a tombstone); this topic's records are events")
        if len(data) < _HEADER.size or data[0] != MAGIC:
            raise Undecodable(
                "the value does not start with a zero byte and a schema id; write Confluent's Avro format"
            )
        schema_id: int = _HEADER.unpack_from(data)[1]
        writer = self._writers.get((topic.name, schema_id))
        if writer is None:
            writer = self._writer(topic, schema_id)
        body = io.BytesIO(data)
        body.seek(_HEADER.size)
        try:
            reader = self._reader(TICK if schema_id in self._tick_ids else topic)
            event: Event = fastavro.schemaless_reader(body, writer, reader)  # type: ignore[assignment]
        except MemoryError:
            raise
        except Exception as error:  # whatever the decoder raises is a function of the bytes alone
            raise Undecodable(
                f"the value is not what schema {schema_id} describes ({_why(error)})",
                schema_id,
            ) from error
        if body.tell() != len(data):
            raise Undecodable(
                f"{len(data) - body.tell()} bytes follow the event; send one event a record", schema_id
            )
        if schema_id in self._tick_ids and topic is not TICK:
            raise IsTick(schema_id, event)
        return Decoded(schema_id, event)

    def version(self, topic: Topic, schema_id: int) -> int | None:
        """The number of a schema among its topic's versions; None where it is not registered there.

        Raises `RegistryUnavailable`.
        """
        try:
            found = self._client.lookup_schema(
                topic.subject, self._client.get_schema(schema_id), deleted=True
            )
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return None
            raise RegistryUnavailable(str(error)) from error
        except Exception as error:  # of whichever HTTP library the client found
            raise RegistryUnavailable(str(error)) from error
        version: int | None = found.version
        return version

    def decode_as_written(self, data: bytes | None, schema_id: int | None = None) -> Event:
        """What the writer's schema alone makes of `data`, whatever its topic's readers expect.

        With `schema_id`, by that schema instead of the one that the bytes name; bytes that do not start with
        a zero byte and an id are then taken for the body alone. Raises `Undecodable`, `RegistryUnavailable`.
        """
        if data is None:
            raise Undecodable("the record has no value (a tombstone)")
        framed = len(data) >= _HEADER.size and data[0] == MAGIC
        if schema_id is None:
            if not framed:
                raise Undecodable("the value does not start with a zero byte and a schema id")
            schema_id = _HEADER.unpack_from(data)[1]
        text = self._schema_text(schema_id)
        if text is None:
            raise Undecodable(f"schema {schema_id} is not registered", schema_id)
        body = io.BytesIO(data[_HEADER.size :] if framed else data)
        try:
            writer = fastavro.parse_schema(without_logical_types(json.loads(text)))
            event = fastavro.schemaless_reader(body, writer, None)
        except MemoryError:
            raise
        except Exception as error:  # whatever the decoder raises is a function of the bytes alone
            raise Undecodable(
                f"the value is not what schema {schema_id} describes ({_why(error)})",
                schema_id,
            ) from error
        if not isinstance(event, dict) or body.read(1):
            raise Undecodable(f"the value is not one event of schema {schema_id}", schema_id)
        return event

    def _reader(self, topic: Topic) -> Any:
        schema = self._readers.get(topic.name)
        if schema is None:
            schema = self._readers[topic.name] = fastavro.parse_schema(without_logical_types(topic.schema))
        return schema

    def _writer_id(self, topic: Topic) -> int:
        try:
            found = self._client.lookup_schema(topic.subject, Schema(topic.schema_path.read_text(), "AVRO"))
        except SchemaRegistryError as error:
            if error.http_status_code >= 500:
                raise RegistryUnavailable(str(error)) from error
            raise Unregistered(
                f"the schema of {topic.name} is not registered under {topic.subject}; run `millrace up`"
            ) from error
        except Exception as error:  # of whichever HTTP library the client found
            raise RegistryUnavailable(str(error)) from error
        assert found.schema_id is not None
        schema_id: int = found.schema_id
        self._writer_ids[topic.name] = schema_id
        return schema_id

    def _schema_text(self, schema_id: int) -> str | None:
        """The text of a schema; None where the registry has none of this id."""
        try:
            text: str | None = self._client.get_schema(schema_id).schema_str
            assert text is not None
        except SchemaRegistryError as error:
            if error.http_status_code == 404:
                return None
            raise RegistryUnavailable(str(error)) from error
        except Exception as error:  # of whichever HTTP library the client found
            raise RegistryUnavailable(str(error)) from error
        return text

    def _writer(self, topic: Topic, schema_id: int) -> Any:
        refused = self._refused.get((topic.name, schema_id))
        if refused and time.monotonic() < refused[0]:
            raise Undecodable(refused[1], schema_id)
        text = self._schema_text(schema_id)
        if text is None:
            return self._refuse(
                topic, schema_id, f"schema {schema_id} is not registered; register it before producing"
            )
        schema = json.loads(text)
        name = full_name(schema) if isinstance(schema, dict) and "name" in schema else str(schema)
        if name == full_name(TICK.schema):
            self._tick_ids.add(schema_id)
        elif name != full_name(topic.schema):
            return self._refuse(
                topic,
                schema_id,
                f"schema {schema_id} is {name}; this topic carries {full_name(topic.schema)}",
            )
        writer = fastavro.parse_schema(without_logical_types(schema))
        self._writers[(topic.name, schema_id)] = writer
        return writer

    def _refuse(self, topic: Topic, schema_id: int, reason: str) -> NoReturn:
        # Remembered for a while: a flood of unknown ids must not become a flood of registry requests.
        self._refused[(topic.name, schema_id)] = (time.monotonic() + _UNKNOWN_ID_SECONDS, reason)
        raise Undecodable(reason, schema_id)


def _why(error: Exception) -> str:
    """A decoder's reason, the same for the same bytes (fastavro's names an object's address at their end)."""
    if isinstance(error, EOFError):
        return "they end before the event does"
    return f"{type(error).__name__}: {error}"


def _explain(topic: Topic, schema: Any, event: Event, error: Exception) -> str:
    known = topic.fields
    unknown = sorted(set(event) - set(known))
    if unknown:
        return f"{topic.name}: field {unknown[0]!r} is not in the schema; fields are {', '.join(known)}"
    defaults = {f["name"] for f in topic.schema["fields"] if "default" in f}
    missing = [name for name in known if name not in event and name not in defaults]
    if missing:
        return f"{topic.name}: field {missing[0]!r} is missing; give it a value"
    for field in schema["fields"]:
        one = {"type": "record", "name": "one", "fields": [field]}
        try:
            fastavro.schemaless_writer(io.BytesIO(), one, event)
        except SchemaParseException:
            continue  # of a type that an earlier field defines
        except Exception as reason:
            return f"{topic.name}: field {field['name']!r} cannot be written ({reason})"
    return f"{topic.name}: {error}"
