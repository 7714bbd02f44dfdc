"""Parsing Avro schemas: names, and the normal form that decides whether two schemas are one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import fastavro
import pytest
from fastavro.schema import UnknownType
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.avro import MOST_LEVELS, Schema, SchemaError, accepts, load, normalized, parse
from schemas.compatibility import check
from schemas.declare import SCHEMAS_FOLDER
from tests.schemas.avro_pairs import schema

NESTED = {
    "type": "record",
    "name": "Outer",
    "namespace": "a.b",
    "fields": [
        {
            "name": "inner",
            "type": {"type": "record", "name": "Inner", "fields": [], "aliases": ["Old", "c.Older"]},
        },
        {"name": "far", "type": {"type": "enum", "name": "Far", "namespace": "x", "symbols": ["S"]}},
        {"name": "bare", "type": {"type": "fixed", "name": "Bare", "namespace": "", "size": 2}},
        {"name": "again", "type": ["null", "Inner", "x.Far", "Bare", "Outer"]},
    ],
}


def test_names_are_resolved() -> None:
    """Names take the enclosing namespace, aliases that of their type, and a reference finds the very node."""
    outer = parse(NESTED)
    inner, far, bare, again = (f.schema for f in outer.fields)
    assert [outer.name, inner.name, far.name, bare.name] == ["a.b.Outer", "a.b.Inner", "x.Far", "Bare"]
    assert inner.aliases == ("a.b.Old", "c.Older")
    assert list(again.branches[1:]) == [inner, far, bare, outer]
    assert str(again) == "[null, a.b.Inner, x.Far, Bare, a.b.Outer]"


def test_known_names_serve_as_references() -> None:
    """Types parsed before are found by name, and defining one again is refused."""
    names: dict[str, Schema] = {}
    money = parse({"type": "record", "name": "shop.Money", "fields": []}, names)
    sale = {"type": "record", "name": "shop.Sale", "fields": [{"name": "price", "type": "Money"}]}
    assert parse(sale, names).fields[0].schema is money
    assert list(names) == ["shop.Money", "shop.Sale"]
    with pytest.raises(SchemaError, match=r"`shop\.Sale` at the top level is defined twice"):
        parse(sale, names)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("int", {"type": "int"}, True),
        ({"type": "int", "x": [1, 2]}, {"x": [1, 2], "type": "int"}, True),
        ({"type": "int", "x": [1, 2]}, {"type": "int", "x": [2, 1]}, False),
        (
            {"type": "fixed", "name": "a.F", "size": 1},
            {"size": 1, "namespace": "a", "name": "F", "type": "fixed"},
            True,
        ),
        (
            {"type": "enum", "name": "E", "symbols": ["A", "B"]},
            {"type": "enum", "name": "E", "symbols": ["B", "A"]},
            False,
        ),
        (
            {"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "order": "ascending"}]},
            {"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]},
            True,
        ),
        (
            {"type": "record", "name": "R", "fields": [{"name": "a", "type": "null", "default": None}]},
            {"type": "record", "name": "R", "fields": [{"name": "a", "type": "null"}]},
            False,
        ),
        (
            {"type": "record", "name": "R", "fields": [], "doc": "one"},
            {"type": "record", "name": "R", "fields": [], "doc": "two"},
            False,
        ),
    ],
)
def test_normal_form(one: Any, other: Any, same: bool) -> None:
    """Spelling does not count; docs, defaults, attributes and the order of symbols do."""
    assert (normalized(parse(one)) == normalized(parse(other))) is same


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32).map(Random))
def test_normal_form_means_the_same(rng: Random) -> None:
    """The normal form is its own normal form, and original and normal form read each other's records.

    fastavro takes it wherever it takes the original: like the specification, and unlike Java, it has
    no way to refer to a name without namespace from within a namespace.
    """
    source = schema(rng, namespaces=("", "n", "m.k"))
    try:
        original = parse(source)
        fastavro.parse_schema(source)
    except (SchemaError, UnknownType):
        assume(False)
    text = normalized(original)
    again = parse(load(text))
    assert normalized(again) == text
    assert check(again, original) == check(original, again) == []
    fastavro.parse_schema(json.loads(text))


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("int", 2**31 - 1, True),
        ("int", 2**31, False),
        ("int", 1.0, False),
        ("long", True, False),
        ("double", 1, True),
        ("bytes", "\u00ff", True),
        ("null", None, True),
        (["null", "int"], 1, True),
        (["null", "int"], "x", False),
        ({"type": "map", "values": "int"}, {"a": 1}, True),
        ({"type": "map", "values": "int"}, {"a": "x"}, False),
        ({"type": "array", "items": "boolean"}, [True], True),
        ({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int", "default": 1}]}, {}, True),
        ({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]}, {}, False),
    ],
)
def test_defaults(kind: Any, value: Any, fits: bool) -> None:
    """A default must be a JSON value of its field's type."""
    assert accepts(parse(kind), value) is fits


def test_depth_is_bounded() -> None:
    """A schema at the limit of nesting can be parsed, written and compared; one beyond it is refused."""

    def nested(levels: int) -> Any:
        kind: Any = "int"
        for level in range(levels // 2):
            kind = {"type": "record", "name": f"R{level}", "fields": [{"name": "f", "type": ["null", kind]}]}
        return kind

    deep = parse(nested(MOST_LEVELS - 1))
    assert check(deep, parse(load(normalized(deep)))) == []
    with pytest.raises(SchemaError, match="nested more than 100 levels"):
        parse(nested(MOST_LEVELS + 2))


def test_recursion_in_step_and_out_of_step() -> None:
    """Recursive schemas of different periods are compared to the end, absurd ones refused with a sentence."""

    def ring(length: int) -> Any:
        kind: Any = "top.R"
        for level in range(length - 1):
            kind = {
                "type": "record",
                "name": f"n{level}.R",
                "fields": [{"name": "next", "type": ["null", kind]}],
            }
        return {"type": "record", "name": "top.R", "fields": [{"name": "next", "type": ["null", kind]}]}

    assert check(ring(3), ring(4)) == []
    with pytest.raises(SchemaError, match="too many combinations"):
        check(ring(37), ring(41))


def test_own_schemas_are_valid() -> None:
    """Every schema in the repository parses here as it does in fastavro, and is compatible with itself."""
    paths = sorted(SCHEMAS_FOLDER.rglob("*.avsc"))
    assert paths
    for path in paths:
        node = parse(load(path.read_text()))
        theirs: Any = fastavro.parse_schema(json.loads(path.read_text()))
        assert theirs["name"] == node.name
        assert check(node, node) == []
