"""Random pairs of Avro schemas, the second mostly a changed copy of the first, and data for them."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

from schemas.avro import Schema

PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
NAMES = ("A", "B", "C", "D")
FIELDS = ("f", "g", "h", "i", "j")
SYMBOLS = ("RED", "GREEN", "BLUE", "GREY")

Json = Any


def schema(rng: Random, depth: int = 3, namespaces: tuple[str, ...] = ("",)) -> Json:
    """A record schema with up to `depth` levels of nesting, some of it recursive."""
    return _Maker(rng, namespaces).record(depth)


def pair(rng: Random, namespaces: tuple[str, ...] = ("",)) -> tuple[Json, Json]:
    """Two schemas: mostly an original and a changed copy, sometimes two of independent origin.

    Both usually parse; a change may also break one (a name defined twice, a dangling reference).
    """
    first = schema(rng, namespaces=namespaces)
    if rng.random() < 0.1:
        return first, schema(rng, namespaces=namespaces)
    maker = _Maker(rng, namespaces)
    maker.defined = sorted(_defined(first))
    return first, maker.changed(copy.deepcopy(first), rng.choice((0.03, 0.1, 0.25)))


class EndlessError(Exception):
    """A schema without a finite value: a record that must contain itself."""


def datum(rng: Random, node: Schema, depth: int = 6) -> Any:
    """A value of a parsed schema, in the form fastavro writes; recursion ends where `depth` does."""
    if depth < -20:
        raise EndlessError
    match node.type:
        case "null":
            return None
        case "boolean":
            return rng.random() < 0.5
        case "int":
            return rng.choice((0, -1, 2**31 - 1, -(2**31), rng.randrange(1000)))
        case "long" if "logicalType" in node.properties:
            return rng.randrange(10**12)
        case "long":
            return rng.choice((0, -1, 2**63 - 1, -(2**63), rng.randrange(1000)))
        case "float" | "double":
            return rng.choice((0.0, -1.5, 3.0e8))
        case "bytes":
            return rng.choice((b"", b"abc", "gr\u00fcn".encode()))
        case "string":
            return rng.choice(("", "abc", "gr\u00fcn"))
        case "fixed":
            return bytes(node.size)
        case "enum":
            return rng.choice(node.symbols)
        case "union":
            branches = [b for b in node.branches if b.type == "null"] if depth <= 0 else list(node.branches)
            branch = rng.choice(branches or list(node.branches))
            value = datum(rng, branch, depth - 1)
            return (branch.name, value) if branch.type == "record" else value
        case "array":
            assert node.element is not None
            return [datum(rng, node.element, depth - 1) for _ in range(rng.randrange(3) if depth > 0 else 0)]
        case "map":
            assert node.element is not None
            return {
                k: datum(rng, node.element, depth - 1)
                for k in ("x", "y")[: rng.randrange(3) if depth > 0 else 0]
            }
        case _:
            return {f.name: datum(rng, f.schema, depth - 1) for f in node.fields}


class _Maker:
    def __init__(self, rng: Random, namespaces: tuple[str, ...]) -> None:
        self.rng = rng
        self.namespaces = namespaces
        self.defined: list[str] = []
        self.enclosing: list[str] = []

    def name(self) -> str | None:
        names = [f"{space}.{name}" if space else name for space in self.namespaces for name in NAMES]
        free = [name for name in names if name not in self.defined]
        if not free:
            return None
        chosen = self.rng.choice(free)
        self.defined.append(chosen)
        return chosen

    def type(self, depth: int) -> Json:
        rng = self.rng
        kind = rng.choice(
            ("primitive",) * 5
            + (("array", "map", "union", "record", "enum", "fixed", "self") if depth > 0 else ())
        )
        if kind == "array":
            return {"type": "array", "items": self.type(depth - 1)}
        if kind == "map":
            return {"type": "map", "values": self.type(depth - 1)}
        if kind == "union":
            return self.union(depth)
        if kind == "record" and len(self.defined) < len(NAMES) - 1:
            return self.record(depth - 1)
        if kind == "enum" and (name := self.name()):
            made: dict[str, Json] = {"type": "enum", "name": name, "symbols": self.symbols()}
            if rng.random() < 0.4:
                made["default"] = made["symbols"][0]
            return made
        if kind == "fixed" and (name := self.name()):
            return {"type": "fixed", "name": name, "size": rng.randrange(1, 4)}
        if kind == "self" and self.enclosing:
            return rng.choice((["null", self.enclosing[-1]], {"type": "array", "items": self.enclosing[0]}))
        return self.primitive()

    def primitive(self) -> Json:
        if self.rng.random() < 0.15:
            return {"type": "long", "logicalType": self.rng.choice(("timestamp-millis", "timestamp-micros"))}
        return self.rng.choice(PRIMITIVES)

    def union(self, depth: int) -> Json:
        branches: list[Json] = []
        for _ in range(self.rng.randrange(1, 4)):
            branch = self.type(depth - 1)
            if not isinstance(branch, list) and not any(_same_branch(branch, other) for other in branches):
                branches.append(branch)
        return branches or ["null"]

    def symbols(self) -> list[str]:
        return self.rng.sample(SYMBOLS, self.rng.randrange(1, len(SYMBOLS)))

    def record(self, depth: int) -> Json:
        name = self.name()
        if name is None:
            return "string"
        self.enclosing.append(name)
        fields = [self.field(field, depth) for field in self.rng.sample(FIELDS, self.rng.randrange(1, 4))]
        self.enclosing.pop()
        return {"type": "record", "name": name, "fields": fields}

    def field(self, name: str, depth: int) -> Json:
        made = {"name": name, "type": self.type(depth)}
        if self.rng.random() < 0.4:
            default = _default(made["type"])
            if default is not None:
                made["default"] = default[0]
        return made

    def changed(self, node: Json, rate: float) -> Json:
        """`node` with each of its parts changed at this rate."""
        hit = self.rng.random() < rate
        if isinstance(node, str):
            return self.changed_primitive(node) if hit and node in PRIMITIVES else node
        if isinstance(node, list):
            branches = [self.changed(branch, rate) for branch in node]
            if hit:
                self.rng.shuffle(branches)
                if self.rng.random() < 0.5 and len(branches) > 1:
                    branches.pop()
                else:
                    branches.append(self.type(1))
            return branches
        if hit and self.rng.random() < 0.3:
            return ["null", node]
        match node["type"]:
            case "array":
                node["items"] = self.changed(node["items"], rate)
            case "map":
                node["values"] = self.changed(node["values"], rate)
            case "record":
                return self.changed_record(node, rate, hit)
            case "enum" if hit:
                if self.rng.random() < 0.5:
                    node["symbols"] = self.symbols()
                    node.pop("default", None)
                if self.rng.random() < 0.6:
                    node["default"] = self.rng.choice(node["symbols"])
                self.rename(node)
            case "fixed" if hit:
                if self.rng.random() < 0.5:
                    node["size"] += 1
                self.rename(node)
        return node

    def changed_primitive(self, node: str) -> Json:
        wider = {
            "int": ("long", "float", "double"),
            "long": ("float", "double", "int"),
            "float": ("double", "int"),
            "string": ("bytes",),
            "bytes": ("string",),
        }
        kind = self.rng.random()
        if kind < 0.6 and node in wider:
            return self.rng.choice(wider[node])
        if kind < 0.9:
            return [node] if node == "null" else ["null", node]
        return self.rng.choice(PRIMITIVES)

    def changed_record(self, node: Json, rate: float, hit: bool) -> Json:
        fields = [field | {"type": self.changed(field["type"], rate)} for field in node["fields"]]
        for field in fields:
            if "default" in field and self.rng.random() < 0.9:
                default = _default(field["type"])
                field.pop("default")
                if default is not None:
                    field["default"] = default[0]
            if self.rng.random() < rate:
                if self.rng.random() < 0.7:
                    field["aliases"] = self.rng.sample(
                        (field["name"], *FIELDS[:2]), self.rng.choice((1, 1, 2))
                    )
                field["name"] = self.rng.choice(FIELDS)
        if hit:
            match self.rng.randrange(4):
                case 0:
                    fields.insert(self.rng.randrange(len(fields) + 1), self.field(self.rng.choice(FIELDS), 1))
                case 1 if len(fields) > 1:
                    fields.pop(self.rng.randrange(len(fields)))
                case 2:
                    self.rng.shuffle(fields)
                case _:
                    self.rename(node)
        return node | {"fields": fields}

    def rename(self, node: Json) -> None:
        if self.rng.random() < 0.5:
            return
        old, new = node["name"], self.name()
        if new is None:
            return
        if self.rng.random() < 0.6:
            node["aliases"] = [old]
        node["name"] = new


def _same_branch(one: Json, other: Json) -> bool:
    def key(branch: Json) -> Json:
        return (branch.get("name") or branch["type"]) if isinstance(branch, dict) else branch

    return bool(key(one) == key(other))


def _default(node: Json) -> tuple[Json] | None:
    """A default of this type, in a tuple as it may be null; None for a type that has no simple one."""
    if isinstance(node, list):
        return _default(node[0]) if node else None
    if isinstance(node, dict):
        match node["type"]:
            case "array":
                return ([],)
            case "map":
                return ({},)
            case "enum":
                return (node["symbols"][0],)
            case "record":
                return None
            case "fixed":
                return ("\u0000" * node["size"],)
            case primitive:
                return _default(primitive)
    simple: dict[str, Json] = {
        "null": None,
        "boolean": True,
        "int": 1,
        "long": 2,
        "float": 1.5,
        "double": 2.5,
    }
    simple |= {"bytes": "ab", "string": "ab"}
    return (simple[node],) if node in simple else None


def _defined(node: Json) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_defined, node))
    if not isinstance(node, dict):
        return set()
    names = {node["name"]} if node.get("type") in ("record", "enum", "fixed") else set()
    for part in ("items", "values", "fields", "type"):
        if isinstance(node.get(part), list | dict):
            names |= _defined(node[part])
    return names
