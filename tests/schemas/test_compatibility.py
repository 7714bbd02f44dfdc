"""The compatibility rules: each in a table, both directions, and properties over generated schemas."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from schemas.avro import SchemaError, parse
from schemas.compatibility import Direction, Kind, Level, check, check_evolution
from tests.schemas.avro_pairs import EndlessError, datum, pair, schema

Json = Any


def record(*fields: Json, name: str = "R", **more: Json) -> Json:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name: str, kind: Json, **more: Json) -> Json:
    return {"name": name, "type": kind, **more}


def enum(*symbols: str, name: str = "E", **more: Json) -> Json:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def fixed(size: int, name: str = "F", **more: Json) -> Json:
    return {"type": "fixed", "name": name, "size": size, **more}


TREE = record(field("next", ["null", "R"]), field("v", "int"))

# reader, writer, kinds found when reader reads writer, and when the writer's schema reads the reader's
RULES: dict[str, tuple[Json, Json, list[Kind], list[Kind]]] = {
    "int widens to long": ("long", "int", [], [Kind.TYPE_MISMATCH]),
    "int widens to float": ("float", "int", [], [Kind.TYPE_MISMATCH]),
    "int widens to double": ("double", "int", [], [Kind.TYPE_MISMATCH]),
    "long widens to float": ("float", "long", [], [Kind.TYPE_MISMATCH]),
    "long widens to double": ("double", "long", [], [Kind.TYPE_MISMATCH]),
    "float widens to double": ("double", "float", [], [Kind.TYPE_MISMATCH]),
    "bytes and string read each other": ("bytes", "string", [], []),
    "boolean is nothing else": ("boolean", "int", [Kind.TYPE_MISMATCH], [Kind.TYPE_MISMATCH]),
    "null is nothing else": ("null", "string", [Kind.TYPE_MISMATCH], [Kind.TYPE_MISMATCH]),
    "logical types play no part": (
        {"type": "long", "logicalType": "timestamp-millis"},
        {"type": "long", "logicalType": "timestamp-micros"},
        [],
        [],
    ),
    "array items": (
        {"type": "array", "items": "long"},
        {"type": "array", "items": "int"},
        [],
        [Kind.TYPE_MISMATCH],
    ),
    "map values": (
        {"type": "map", "values": "long"},
        {"type": "map", "values": "int"},
        [],
        [Kind.TYPE_MISMATCH],
    ),
    "array is no map": (
        {"type": "array", "items": "int"},
        {"type": "map", "values": "int"},
        [Kind.TYPE_MISMATCH],
        [Kind.TYPE_MISMATCH],
    ),
    "union grows": (["null", "int"], "int", [], [Kind.TYPE_MISMATCH]),
    "union order is free": (["null", "int"], ["int", "null"], [], []),
    "union branch lost": (["null"], ["null", "int"], [Kind.MISSING_UNION_BRANCH], []),
    "union branches promote": (["null", "long"], ["null", "int"], [], [Kind.MISSING_UNION_BRANCH]),
    "union without the type": (
        ["null", "int"],
        "string",
        [Kind.MISSING_UNION_BRANCH],
        [Kind.TYPE_MISMATCH] * 2,
    ),
    "single type reads a union it covers": ("long", ["int", "long"], [], []),
    "field added with default": (record(field("a", "int", default=1)), record(), [], []),
    "field added without default": (
        record(field("a", "int")),
        record(),
        [Kind.READER_FIELD_MISSING_DEFAULT_VALUE],
        [],
    ),
    "null is a default": (record(field("a", ["null", "int"], default=None)), record(), [], []),
    "an enum's default is no field's default": (
        record(field("a", enum("X", default="X"))),
        record(),
        [Kind.READER_FIELD_MISSING_DEFAULT_VALUE],
        [],
    ),
    "fields in another order": (
        record(field("a", "int"), field("b", "int")),
        record(field("b", "int"), field("a", "int")),
        [],
        [],
    ),
    "field renamed with alias": (
        record(field("b", "int", aliases=["a"])),
        record(field("a", "int")),
        [],
        [Kind.READER_FIELD_MISSING_DEFAULT_VALUE],
    ),
    "field matches twice": (
        record(field("b", "int", aliases=["a"])),
        record(field("a", "int"), field("b", "int")),
        [Kind.AMBIGUOUS_FIELD],
        [Kind.READER_FIELD_MISSING_DEFAULT_VALUE],
    ),
    "record renamed": (record(name="A"), record(name="B"), [Kind.NAME_MISMATCH], [Kind.NAME_MISMATCH]),
    "record renamed with alias": (
        record(name="A", aliases=["B"]),
        record(name="B"),
        [],
        [Kind.NAME_MISMATCH],
    ),
    "record moved to another namespace": (record(name="x.A"), record(name="y.A"), [], []),
    "alias counts with its namespace": (
        record(name="x.A", aliases=["B"]),
        record(name="y.B"),
        [Kind.NAME_MISMATCH],
        [Kind.NAME_MISMATCH],
    ),
    "alias in another namespace": (
        record(name="x.A", aliases=["y.B"]),
        record(name="y.B"),
        [],
        [Kind.NAME_MISMATCH],
    ),
    "enum gains a symbol": (enum("X", "Y"), enum("X"), [], [Kind.MISSING_ENUM_SYMBOLS]),
    "enum with a default loses a symbol": (enum("X", default="X"), enum("X", "Y"), [], []),
    "enum renamed": (enum("X", name="A"), enum("X", name="B"), [Kind.NAME_MISMATCH], [Kind.NAME_MISMATCH]),
    "fixed resized": (fixed(4), fixed(8), [Kind.FIXED_SIZE_MISMATCH], [Kind.FIXED_SIZE_MISMATCH]),
    "fixed renamed with alias": (fixed(4, "A", aliases=["B"]), fixed(4, "B"), [], [Kind.NAME_MISMATCH]),
    "fixed is no bytes": (fixed(4), "bytes", [Kind.TYPE_MISMATCH], [Kind.TYPE_MISMATCH]),
    "recursive record widened": (
        record(field("next", ["null", "R"]), field("v", "long")),
        TREE,
        [],
        [Kind.TYPE_MISMATCH],
    ),
    "every reason is listed": (
        record(field("a", "int"), field("b", "int"), field("c", "int")),
        record(field("b", "string")),
        [
            Kind.READER_FIELD_MISSING_DEFAULT_VALUE,
            Kind.TYPE_MISMATCH,
            Kind.READER_FIELD_MISSING_DEFAULT_VALUE,
        ],
        [Kind.TYPE_MISMATCH],
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    """Each rule of schema resolution holds in both directions."""
    reader, writer, forth, back = RULES[rule]
    assert [reason.kind for reason in check(reader, writer)] == forth
    assert [reason.kind for reason in check(writer, reader)] == back


SENTENCES: list[tuple[Json, Json, Direction, str]] = [
    (
        record(field("a", "int"), field("mcc", "string")),
        record(field("a", "int")),
        Direction.BACKWARD,
        "field `mcc` at /fields/1 was added without a default: old records cannot be read; give it a default",
    ),
    (
        record(field("a", "int"), field("mcc", "string")),
        record(field("a", "int")),
        Direction.FORWARD,
        "field `mcc` at /fields/1 of the earlier schema was removed but has no default there: readers of the"
        " earlier schema cannot read new records; keep the field",
    ),
    (
        record(field("a", {"type": "array", "items": "int"})),
        record(field("a", {"type": "array", "items": "long"})),
        Direction.BACKWARD,
        "field `a` at /fields/0/type/items changed from long to int: old records cannot be read;"
        " keep long, or add a new field with a default",
    ),
    (
        record(field("c", enum("X", "Y"))),
        record(field("c", enum("X", "Y", "Z"))),
        Direction.FORWARD,
        "field `c` at /fields/0/type/symbols of the earlier schema gained Z in enum E, which has no default:"
        " readers of the earlier schema cannot read them; only an enum that had a default from its first"
        " version can gain symbols",
    ),
    (
        record(field("u", ["null", record(field("x", "int"), field("y", "int"), name="P")])),
        record(field("u", ["null", record(field("x", "int"), name="P")])),
        Direction.BACKWARD,
        "field `u` at /fields/0/type/1 no longer accepts P, its union is [null, P]: old records cannot be"
        " read (field `y` at /fields/0/type/1/fields/1 was added without a default: old records cannot be"
        " read; give it a default); keep P in the union",
    ),
    (
        record(name="New"),
        record(name="Old"),
        Direction.BACKWARD,
        "the schema at /name renamed record Old to New: old records cannot be read; keep the name, or add"
        " Old to its aliases",
    ),
]


@pytest.mark.parametrize(("reader", "writer", "direction", "sentence"), SENTENCES)
def test_sentence(reader: Json, writer: Json, direction: Direction, sentence: str) -> None:
    """A reason names the field, its place, what happened to whom, and the remedy."""
    assert [reason.message for reason in check(reader, writer, direction)] == [sentence]


V1 = record(field("a", "int"))
V2 = record(field("a", "int"), field("b", "int", default=0))
V3_WIDER = record(field("a", "long"), field("b", "int", default=0))
V3_NARROWER = record(field("b", "int", default=0))
V3_TYPED = record(field("a", "int"), field("b", "string", default=""))


@pytest.mark.parametrize(
    ("new", "earlier", "passing"),
    [
        (V2, [V1], set(Level)),
        (V3_WIDER, [V1, V2], {Level.NONE, Level.BACKWARD, Level.BACKWARD_TRANSITIVE}),
        (V1, [V3_WIDER, V1], set(Level) - {Level.BACKWARD_TRANSITIVE, Level.FULL_TRANSITIVE}),
        (V3_WIDER, [V1, V3_WIDER], set(Level) - {Level.FORWARD_TRANSITIVE, Level.FULL_TRANSITIVE}),
        (V3_NARROWER, [V1, V2], {Level.NONE, Level.BACKWARD, Level.BACKWARD_TRANSITIVE}),
        (V3_TYPED, [V2, V1], set(Level) - {x for x in Level if x.transitive}),
        ("string", [], set(Level)),
    ],
)
def test_levels(new: Json, earlier: list[Json], passing: set[Level]) -> None:
    """A level asks for its directions, of the latest schema or, if transitive, of all."""
    assert {level for level in Level if not check_evolution(new, earlier, level)} == passing


def test_evolution_names_the_version() -> None:
    """A reason says which of the earlier schemas it is about, the latest first."""
    found = check_evolution(V3_TYPED, [V2, V1, V2])
    assert [(reason.earlier, reason.direction) for reason in found] == [
        (2, "backward"),
        (2, "forward"),
        (0, "backward"),
        (0, "forward"),
    ]


generated = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
seeds = st.integers(0, 2**32).map(Random)


@generated
@given(seeds)
def test_a_schema_is_compatible_with_itself(rng: Random) -> None:
    """Every schema reads its own records, also when it is parsed twice, at every level."""
    source = schema(rng, namespaces=("", "n"))
    try:
        parse(source)
    except SchemaError:
        assume(False)
    assert check(source, source) == []
    assert check_evolution(source, [source, source], Level.FULL_TRANSITIVE) == []


@generated
@given(seeds)
def test_what_is_compatible_is_decoded(rng: Random) -> None:
    """Where the verdict is compatible, fastavro reads with the reader all that the writer wrote."""
    reader, writer = pair(rng)
    try:
        node = parse(writer)
        assume(not check(parse(reader), node))
    except SchemaError:
        assume(False)
    theirs, ours = fastavro.parse_schema(writer), fastavro.parse_schema(reader)
    for _ in range(5):
        try:
            value = datum(rng, node)
        except EndlessError:
            assume(False)
        coded = io.BytesIO()
        fastavro.schemaless_writer(coded, theirs, value)
        coded.seek(0)
        fastavro.schemaless_reader(coded, theirs, ours)
        assert not coded.read(), "bytes are left over"


@generated
@given(seeds)
def test_backward_and_forward_mirror_each_other(rng: Random) -> None:
    """Forward compatibility of a pair is backward compatibility of the pair turned round."""
    new, old = pair(rng, ("", "n"))
    try:
        backward = check_evolution(new, [old], Level.BACKWARD)
        forward = check_evolution(old, [new], Level.FORWARD)
    except SchemaError:
        assume(False)
    assert [(reason.kind, reason.path) for reason in backward] == [(r.kind, r.path) for r in forward]
