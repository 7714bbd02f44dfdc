"""Avro schemas as a graph of nodes: parsed and validated after the specification, and written normalized.

Names follow the specification's rules (enclosing namespaces, aliases, unqualified fallback) and are
stored in full. A self reference points at the very node it names, so the graph of a recursive
schema has cycles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NAMED = frozenset({"record", "enum", "fixed"})

MOST_LEVELS = 100
"""How deep types may be nested; deeper ones would exhaust the stack of those who walk the graph."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ORDERS = ("ascending", "descending", "ignore")
_SCHEMA_KEYS = frozenset(
    {"type", "name", "namespace", "doc", "aliases", "fields", "symbols", "size", "items", "values"}
)
_FIELD_KEYS = frozenset({"name", "type", "doc", "default", "aliases", "order"})


class SchemaError(ValueError):
    """Not a valid Avro schema; the message says where, why and what to write instead."""


@dataclass(eq=False)
class Field:
    """A record's field. `default` counts only where `has_default` is true (a default may be null)."""

    name: str
    schema: Schema
    aliases: tuple[str, ...] = ()
    has_default: bool = False
    default: Any = None
    doc: str | None = None
    order: str = "ascending"
    properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Schema:
    """One node. Which attributes carry meaning depends on `type`; compared by identity, as cycles occur.

    `name` and `aliases` are full names. `element` is an array's items or a map's values. `properties`
    holds everything the specification does not define, logical types among it.
    """

    type: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    doc: str | None = None
    fields: tuple[Field, ...] = ()
    symbols: tuple[str, ...] = ()
    default_symbol: str | None = None
    size: int = 0
    element: Schema | None = None
    branches: tuple[Schema, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unqualified(self) -> str:
        """The name without its namespace."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        """What a sentence calls this type: `long`, `com.acme.Order`, `array of string`, `[null, int]`."""
        if self.type == "union":
            return f"[{', '.join(map(str, self.branches))}]"
        if self.element is not None:
            return f"{self.type} of {self.element}"
        return self.name or self.type


def load(text: str) -> Any:
    """The JSON value of a schema's text. Raises SchemaError where it is no JSON."""

    def refuse(constant: str) -> None:
        raise SchemaError(f"{constant} is not JSON; write a number or leave the attribute out")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise SchemaError(f"the schema is not JSON: {error}; send the schema's JSON text") from error
    except RecursionError:
        raise SchemaError(
            "the schema is nested too deeply to be read; define its types side by side"
        ) from None


def parse(source: Any, names: dict[str, Schema] | None = None) -> Schema:
    """The schema that a JSON value (not its text, see `load`) describes.

    `names` holds the types known beforehand, by full name, and receives every type defined here.
    Raises SchemaError.
    """
    return _Parser({} if names is None else names).schema(source, "", "")


def _at(path: str) -> str:
    return f"at {path}" if path else "at the top level"


class _Parser:
    def __init__(self, names: dict[str, Schema]) -> None:
        self.names = names
        self.levels = 0
        # A record's defaults may speak of types whose fields are still being read.
        self.unfinished = 0
        self.defaults: list[tuple[Schema, Field, str]] = []

    def schema(self, source: Any, namespace: str, path: str) -> Schema:
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise SchemaError(
                f"types are nested more than {MOST_LEVELS} levels deep; define them side by side"
            )
        node = self.node(source, namespace, path)
        self.levels -= 1
        return node

    def node(self, source: Any, namespace: str, path: str) -> Schema:
        if path.count("/") > 2 * MOST_LEVELS:
            raise SchemaError(
                f"types are nested more than {MOST_LEVELS} levels deep; define them side by side"
            )
        if isinstance(source, str):
            return self.reference(source, namespace, path)
        if isinstance(source, list):
            return self.union(source, namespace, path)
        if not isinstance(source, dict):
            raise SchemaError(
                f"the schema {_at(path)} is {json.dumps(source)}; write a name, an object or a list (a union)"
            )
        kind = source.get("type")
        if not isinstance(kind, str):
            raise SchemaError(
                f"`type` {_at(path)} is {'missing' if 'type' not in source else 'not a string'};"
                " name a primitive type, record, enum, array, map or fixed"
            )
        if kind in PRIMITIVES:
            return Schema(kind, properties=_properties(source))
        if kind in ("array", "map"):
            attribute = "items" if kind == "array" else "values"
            if attribute not in source:
                raise SchemaError(f"the {kind} {_at(path)} has no `{attribute}`; give it their type")
            element = self.schema(source[attribute], namespace, f"{path}/{attribute}")
            return Schema(kind, element=element, properties=_properties(source))
        if kind in ("record", "error"):
            return self.record(source, namespace, path)
        if kind == "enum":
            return self.enum(source, namespace, path)
        if kind == "fixed":
            return self.fixed(source, namespace, path)
        raise SchemaError(
            f"`type` {_at(path)} is `{kind}`, which is no Avro type; use a primitive type, record, enum,"
            " array, map or fixed, and refer to a defined type by its name alone, without an object around it"
        )

    def reference(self, name: str, namespace: str, path: str) -> Schema:
        if name in PRIMITIVES:
            return Schema(name)
        for candidate in (_qualify(name, namespace), name):
            if candidate in self.names:
                return self.names[candidate]
        raise SchemaError(
            f"`{name}` {_at(path)} is not defined;"
            " define the type before its first use, or send it as a reference"
        )

    def union(self, source: list[Any], namespace: str, path: str) -> Schema:
        branches: list[Schema] = []
        seen: set[str] = set()
        for index, entry in enumerate(source):
            here = f"{path}/{index}"
            branch = self.schema(entry, namespace, here)
            if branch.type == "union":
                raise SchemaError(
                    f"a union stands inside a union {_at(here)}; list its branches in the outer one"
                )
            key = branch.name or branch.type
            if key in seen:
                raise SchemaError(
                    f"the union {_at(path)} holds {key} twice; keep one branch of each type or name"
                )
            seen.add(key)
            branches.append(branch)
        return Schema("union", branches=tuple(branches))

    def record(self, source: dict[str, Any], namespace: str, path: str) -> Schema:
        node, inner = self.define("record", source, namespace, path)
        entries = source.get("fields")
        if not isinstance(entries, list):
            raise SchemaError(
                f"record {node.name} {_at(path)} has no list `fields`; give it one, empty if need be"
            )
        self.unfinished += 1
        fields: list[Field] = []
        taken: set[str] = set()
        for index, entry in enumerate(entries):
            here = f"{path}/fields/{index}"
            if not isinstance(entry, dict):
                raise SchemaError(f"the field {_at(here)} is no object; write its `name` and `type`")
            name = entry.get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise SchemaError(
                    f"the field's `name` {_at(here)} is {json.dumps(name)};"
                    " use letters, digits and underscores"
                )
            if name in taken:
                raise SchemaError(f"field `{name}` {_at(here)} occurs twice in {node.name}; rename one")
            taken.add(name)
            if "type" not in entry:
                raise SchemaError(f"field `{name}` {_at(here)} has no `type`; give it one")
            order = entry.get("order", "ascending")
            if not isinstance(order, str) or order.lower() not in _ORDERS:
                raise SchemaError(
                    f"`order` of field `{name}` {_at(here)} is {json.dumps(order)};"
                    f" use one of {', '.join(_ORDERS)}"
                )
            declared = Field(
                name=name,
                schema=self.schema(entry["type"], inner, f"{here}/type"),
                aliases=_aliases(entry, here),
                has_default="default" in entry,
                default=entry.get("default"),
                doc=_doc(entry),
                order=order.lower(),
                properties={k: v for k, v in entry.items() if k not in _FIELD_KEYS},
            )
            fields.append(declared)
            if declared.has_default:
                self.defaults.append((node, declared, here))
        node.fields = tuple(fields)
        self.unfinished -= 1
        if not self.unfinished:
            for owner, declared, here in self.defaults:
                if not accepts(declared.schema, declared.default):
                    raise SchemaError(
                        f"the default of field `{declared.name}` {_at(here)} in {owner.name} is"
                        f" {json.dumps(declared.default)}, which is no {declared.schema};"
                        " write a default of that type"
                    )
            self.defaults.clear()
        return node

    def enum(self, source: dict[str, Any], namespace: str, path: str) -> Schema:
        node, _ = self.define("enum", source, namespace, path)
        symbols = source.get("symbols")
        if not isinstance(symbols, list) or not all(
            isinstance(s, str) and _NAME.fullmatch(s) for s in symbols
        ):
            raise SchemaError(
                f"enum {node.name} {_at(path)} has no list `symbols` of names;"
                " use letters, digits and underscores"
            )
        if len(set(symbols)) != len(symbols):
            raise SchemaError(f"enum {node.name} {_at(path)} has a symbol twice; keep each once")
        node.symbols = tuple(symbols)
        if "default" in source:
            if source["default"] not in symbols:
                raise SchemaError(
                    f"the default of enum {node.name} {_at(path)} is {json.dumps(source['default'])};"
                    f" choose one of {', '.join(symbols)}"
                )
            node.default_symbol = source["default"]
        return node

    def fixed(self, source: dict[str, Any], namespace: str, path: str) -> Schema:
        node, _ = self.define("fixed", source, namespace, path)
        size = source.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**31:
            raise SchemaError(
                f"`size` of fixed {node.name} {_at(path)} is {json.dumps(size)}; write a number of bytes"
            )
        node.size = size
        return node

    def define(self, kind: str, source: dict[str, Any], namespace: str, path: str) -> tuple[Schema, str]:
        """A new named node, entered among the names, and the namespace inside it."""
        name = source.get("name")
        if not isinstance(name, str) or not name:
            raise SchemaError(f"the {kind} {_at(path)} has no `name`; give it one")
        space = source.get("namespace", namespace)
        full = _qualify(name, space if isinstance(space, str) else "")
        if not all(_NAME.fullmatch(part) for part in full.split(".")):
            raise SchemaError(
                f"the name `{full}` of the {kind} {_at(path)} is not valid;"
                " use letters, digits and underscores, parted by dots, no digit first"
            )
        if full in PRIMITIVES:
            raise SchemaError(
                f"the {kind} {_at(path)} is named `{full}`, a primitive type; choose another name"
            )
        if full in self.names:
            raise SchemaError(f"`{full}` {_at(path)} is defined twice; refer to the first by its name alone")
        inner = full.rpartition(".")[0]
        node = Schema(
            kind,
            name=full,
            aliases=tuple(_qualify(alias, inner) for alias in _aliases(source, path)),
            doc=_doc(source),
            properties=_properties(source, {"default"} if kind == "enum" else frozenset()),
        )
        self.names[full] = node
        return node, inner


def _qualify(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _aliases(source: Mapping[str, Any], path: str) -> tuple[str, ...]:
    aliases = source.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise SchemaError(f"`aliases` {_at(path)} is no list of names; write one, or leave it out")
    return tuple(dict.fromkeys(aliases))


def _doc(source: Mapping[str, Any]) -> str | None:
    doc = source.get("doc")
    return doc if isinstance(doc, str) else None


def _properties(source: Mapping[str, Any], also: set[str] | frozenset[str] = frozenset()) -> dict[str, Any]:
    return {k: v for k, v in source.items() if k not in _SCHEMA_KEYS and k not in also}


def accepts(schema: Schema, value: Any) -> bool:
    """Whether a JSON value may be a default of this type. A union's may be of any branch, as in Avro 1.12."""
    match schema.type:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "int" | "long":
            bits = 31 if schema.type == "int" else 63
            return isinstance(value, int) and not isinstance(value, bool) and -(2**bits) <= value < 2**bits
        case "float" | "double":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list) and all(accepts(_element(schema), entry) for entry in value)
        case "map":
            return isinstance(value, dict) and all(
                accepts(_element(schema), entry) for entry in value.values()
            )
        case "union":
            return any(accepts(branch, value) for branch in schema.branches)
        case "record":
            return isinstance(value, dict) and all(
                accepts(f.schema, value[f.name]) if f.name in value else f.has_default for f in schema.fields
            )
        case _:
            return isinstance(value, str)


def _element(schema: Schema) -> Schema:
    assert schema.element is not None, "arrays and maps are built with their element"
    return schema.element


def normalized(schema: Schema, external: frozenset[str] = frozenset()) -> str:
    """The schema's normal form as text: full names, sorted attributes, no blanks, nothing else changed.

    Two texts have the same normal form exactly if they differ only in blanks, in the order of
    attributes, or in how they spell names. Types in `external` (full names) are referred to by name.
    """
    return json.dumps(
        _Writer(set(external)).value(schema, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


class _Writer:
    def __init__(self, known: set[str]) -> None:
        self.known = known

    def value(self, schema: Schema, namespace: str) -> Any:
        if schema.type == "union":
            return [self.value(branch, namespace) for branch in schema.branches]
        if schema.name:
            return self.named(schema, namespace)
        if schema.element is not None:
            attribute = "items" if schema.type == "array" else "values"
            return {
                **schema.properties,
                "type": schema.type,
                attribute: self.value(schema.element, namespace),
            }
        return {**schema.properties, "type": schema.type} if schema.properties else schema.type

    def named(self, schema: Schema, namespace: str) -> Any:
        if schema.name in self.known:
            return schema.name
        self.known.add(schema.name)
        inner = schema.name.rpartition(".")[0]
        written: dict[str, Any] = {**schema.properties, "type": schema.type, "name": schema.name}
        if namespace and not inner:
            # Without this a reader would put the name into the enclosing namespace.
            written["namespace"] = ""
        if schema.doc:
            written["doc"] = schema.doc
        if schema.aliases:
            written["aliases"] = sorted(schema.aliases)
        if schema.type == "enum":
            written["symbols"] = list(schema.symbols)
            if schema.default_symbol is not None:
                written["default"] = schema.default_symbol
        elif schema.type == "fixed":
            written["size"] = schema.size
        else:
            written["fields"] = list(self.fields(schema, inner))
        return written

    def fields(self, schema: Schema, namespace: str) -> Iterator[dict[str, Any]]:
        for declared in schema.fields:
            written: dict[str, Any] = {
                **declared.properties,
                "name": declared.name,
                "type": self.value(declared.schema, namespace),
            }
            if declared.has_default:
                written["default"] = declared.default
            if declared.doc is not None:
                written["doc"] = declared.doc
            if declared.aliases:
                written["aliases"] = sorted(declared.aliases)
            if declared.order != "ascending":
                written["order"] = declared.order
            yield written
