"""Two codecs, one answer: batches as columns say what fastavro says of each record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.codec import Codec, IsTick, Undecodable, Unencodable
from infra.columns import Columns
from infra.settings import Settings
from schemas.declare import Topic
from schemas.pipelines import PIPELINES
from schemas.platform import TICK

TOPICS = {t.name: t for p in PIPELINES for t in (*p.topics, p.topics[0].dlq)}
LONGS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = {
    "string": TEXTS,
    "long": LONGS,
    "int": st.integers(-(1 << 31), (1 << 31) - 1),
    "boolean": st.booleans(),
    "double": st.floats(allow_nan=False),
    "float": st.floats(allow_nan=False, width=32),
    "bytes": st.binary(max_size=20),
    "null": st.none(),
}


@cache
def values_of(type_: str) -> st.SearchStrategy[Any]:
    return PLAIN[type_]


def of_schema(schema: Any) -> st.SearchStrategy[Any]:
    """Values of an Avro schema, as fastavro reads them."""
    if isinstance(schema, str):
        return values_of(schema)
    if isinstance(schema, list):
        return st.one_of([of_schema(branch) for branch in schema])
    if schema["type"] == "record":
        return st.fixed_dictionaries({f["name"]: of_schema(f["type"]) for f in schema["fields"]})
    if schema["type"] == "array":
        return st.lists(of_schema(schema["items"]), max_size=4)
    if schema["type"] == "enum":
        return st.sampled_from(schema["symbols"])
    return of_schema(schema["type"])


@st.composite
def damaged(draw: st.DrawFn, value: bytes) -> bytes:
    """A record's bytes cut, extended, or with some of them changed."""
    out = bytearray(value)
    for _ in range(draw(st.integers(1, 3))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    out = out[: draw(st.integers(0, len(out)))] if draw(st.booleans()) else out
    return bytes(out) + draw(st.binary(max_size=3))


@pytest.fixture(scope="module")
def known(registry: Settings) -> Iterator[Codec]:
    """A codec whose registry has every declared schema, and that of ticks."""
    codec = Codec(registry.schema_registry_url)
    for topic in (*TOPICS.values(), TICK):
        codec.register(topic)
    yield codec
    codec.close()


def alone(codec: Codec, topic: Topic, value: bytes | None) -> Any:
    """What the codec says of one record: its event, or the reason why it is none."""
    try:
        return codec.decode(topic, value).event
    except Undecodable as error:
        return type(error), error.reason


def together(columns: Columns, values: list[bytes | None]) -> list[Any]:
    """What the columns say of each record."""
    decoded = columns.decode(values)
    said: list[Any] = [None] * len(values)
    for row, event in zip(decoded.rows.tolist(), decoded.batch.to_pylist(), strict=True):
        said[row] = event
    for n, error in decoded.others:
        said[n] = (type(error), error.reason)
    return said


@pytest.mark.parametrize("name", sorted(TOPICS))
@settings(max_examples=40)
@given(data=st.data())
def test_columns_and_records_agree(known: Codec, name: str, data: st.DataObject) -> None:
    """For every declared schema: the same bytes for the same events, and the same events for any bytes."""
    topic = TOPICS[name]
    columns = Columns(known, topic)
    events = data.draw(st.lists(of_schema(topic.schema), min_size=1, max_size=12))
    values: list[bytes | None] = [known.encode(topic, event) for event in events]
    assert columns.encode_events(events) == values
    assert repr(together(columns, values)) == repr([alone(known, topic, v) for v in values])
    for n in data.draw(st.lists(st.integers(0, len(values) - 1), max_size=3)):
        values[n] = data.draw(st.one_of(st.none(), st.binary(max_size=40), damaged(values[n] or b"\0")))
    said, expected = together(columns, values), [alone(known, topic, v) for v in values]
    assert repr(said) == repr(expected)


def test_records_of_other_versions_and_ticks_keep_their_places(known: Codec, registry: Settings) -> None:
    """Among others, one written by another version of the schema and a tick are what fastavro says."""
    topic = TOPICS["card-transactions"]
    older = {**topic.schema, "fields": [f for f in topic.schema["fields"] if f["name"] != "mcc"]}
    with SchemaRegistryClient({"url": registry.schema_registry_url}) as client:
        schema_id = client.register_schema(topic.subject, Schema(json.dumps(older), "AVRO"))
    event = dict.fromkeys(topic.fields) | {
        "event_id": "e1", "tenant": "default", "occurred_at": 1, "card_id": "c", "amount_minor": 2,
        "currency": "EUR", "channel": "ONLINE",
    }  # fmt: skip
    value = known.encode(topic, event)
    written_before = b"\0" + schema_id.to_bytes(4, "big") + value[5:-2] + value[-1:]
    tick = known.encode(TICK, {"event_id": "t", "tenant": "default", "occurred_at": 5})
    values = [value, written_before, None, tick, value, b"\0\x7f\0\0\0" + value[5:]]
    said = together(Columns(known, topic), values)
    assert said == [alone(known, topic, v) for v in values]
    assert said[1] == event and said[3][0] is IsTick


def test_what_does_not_fit_is_named(known: Codec) -> None:
    """An event that its schema does not describe is refused with the field's name, as one by one."""
    topic = TOPICS["card-transactions"]
    with pytest.raises(Unencodable, match="field 'event_id' is missing"):
        Columns(known, topic).encode_events([{"tenant": "default"}])


def test_null_inside_a_list_is_refused(known: Codec) -> None:
    """Null where the schema wants text is refused, also within lists and records."""
    decisions = Columns(known, TOPICS["card-decisions"])
    event = {
        **dict.fromkeys(("event_id", "tenant", "card_id", "currency"), "x"),
        **{f.name: 0 for f in decisions.schema if str(f.type).startswith("int")},
        "channel": "ONLINE",
        "decision": "APPROVE",
        "model_risk": 0.0,
        "risk": 0.0,
        "windows_complete": True,
        "reasons": [None],
        **{name: [] for name in ("fired_rules", "capped_rules", "shadow_rules", "rule_windows")},
        **dict.fromkeys(("customer_id", "merchant_id", "terminal_id", "country", "home_country", "mcc")),
    }
    with pytest.raises(Unencodable, match="reasons"):
        decisions.encode_events([event])
    lines = [{"sku": None, "quantity": 1, "unit_price_minor": 1}]
    order = {f["name"]: f.get("default") for f in TOPICS["order-events"].schema["fields"]} | {"lines": lines}
    with pytest.raises(Unencodable):
        Columns(known, TOPICS["order-events"]).encode_events([order])
