"""A topic, with its schema registered, on the real broker."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.settings import Settings
from schemas import declare
from schemas.declare import Topic

FIELDS = [
    {"name": "event_id", "type": "string"},
    {"name": "tenant", "type": "string", "default": "default"},
    {"name": "occurred_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "device", "type": "string"},
    {"name": "reading", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": None},
]


@pytest.fixture
def undeclared_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topic:
    """A topic of a name of its own; neither the broker nor the registry knows it."""
    name = f"readings-x{uuid.uuid4().hex[:12]}"
    folder = tmp_path / "schemas" / "readings"
    folder.mkdir(parents=True)
    schema = {"type": "record", "name": "Reading", "namespace": "millrace.readings", "fields": FIELDS}
    (folder / f"{name}.avsc").write_text(json.dumps(schema))
    monkeypatch.setattr(declare, "SCHEMAS_FOLDER", tmp_path / "schemas")
    return Topic(domain="readings", name=name, key="device", owner="tests", about="Readings.", partitions=3)


@pytest.fixture
def topic(registry: Settings, codec: Codec, undeclared_topic: Topic) -> Topic:
    """The same, created and registered."""
    ensure_topics(registry.kafka, [TopicSpec.of(undeclared_topic)])
    codec.register(undeclared_topic)
    return undeclared_topic
