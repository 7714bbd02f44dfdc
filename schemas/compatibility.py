"""Whether one Avro schema reads what another wrote, with the verdicts of Java Avro's SchemaCompatibility.

The rules are the specification's "Schema Resolution" as `SchemaCompatibility` applies them, that is:
records, enums and fixed match by *unqualified* name, or by an alias of the reader that equals the
writer's full name; logical types, docs and custom attributes play no part; a reader's field without
counterpart needs a default of its own (an enum's default symbol does not stand in for it); a field
that matches several of the writer's by name and aliases makes the pair incompatible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NoReturn

from schemas.avro import Field, Schema, SchemaError, parse


class Level(StrEnum):
    """What a new version of a schema owes the earlier ones (Confluent's names)."""

    NONE = "NONE"
    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions in which records must be readable."""
        match self.value.partition("_")[0]:
            case "BACKWARD":
                return (Direction.BACKWARD,)
            case "FORWARD":
                return (Direction.FORWARD,)
            case "FULL":
                return (Direction.BACKWARD, Direction.FORWARD)
            case _:
                return ()

    @property
    def transitive(self) -> bool:
        """Whether every earlier version counts, not only the latest."""
        return self.value.endswith("_TRANSITIVE")


class Direction(StrEnum):
    """Who reads whom: backward, the new schema reads old records; forward, the old one reads new records."""

    BACKWARD = "backward"
    FORWARD = "forward"


class Kind(StrEnum):
    """Java's SchemaIncompatibilityType, and AMBIGUOUS_FIELD where Java raises an exception instead."""

    NAME_MISMATCH = "NAME_MISMATCH"
    FIXED_SIZE_MISMATCH = "FIXED_SIZE_MISMATCH"
    MISSING_ENUM_SYMBOLS = "MISSING_ENUM_SYMBOLS"
    READER_FIELD_MISSING_DEFAULT_VALUE = "READER_FIELD_MISSING_DEFAULT_VALUE"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    MISSING_UNION_BRANCH = "MISSING_UNION_BRANCH"
    AMBIGUOUS_FIELD = "AMBIGUOUS_FIELD"


@dataclass(frozen=True)
class Incompatibility:
    """One reason why records cannot be read.

    `path` is a JSON pointer into the reader's schema (inside a union it counts the writer's
    branches), which is the new schema when `direction` is backward and the earlier one when it is
    forward. `earlier` is the index of the earlier schema in what was given to `check_evolution`.
    """

    kind: Kind
    path: str
    message: str
    direction: Direction
    earlier: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def check(
    reader: Schema | Any, writer: Schema | Any, direction: Direction = Direction.BACKWARD
) -> list[Incompatibility]:
    """Why `reader` cannot read every record of `writer`; empty if it can.

    Takes schemas or their parsed JSON. `direction` says which of the two is the newer one and so
    decides how the sentences are put. Raises SchemaError for JSON that is no schema.
    """
    checker = _Checker(direction)
    try:
        return list(checker.pair(_schema(reader), _schema(writer), _Place("", "the schema")))
    except _AmbiguousFieldError as ambiguity:
        return [ambiguity.reason]
    except RecursionError:
        raise SchemaError(
            "the schemas refer to themselves in too many combinations to be compared; simplify the recursion"
        ) from None


def check_evolution(
    new: Schema | Any, earlier: Sequence[Schema | Any], level: Level = Level.FULL_TRANSITIVE
) -> list[Incompatibility]:
    """Why `new` may not follow `earlier` (oldest first) at this level; the latest version's reasons first."""
    candidate = _schema(new)
    indexes = range(len(earlier)) if level.transitive else range(max(0, len(earlier) - 1), len(earlier))
    found: list[Incompatibility] = []
    for index in reversed(indexes):
        previous = _schema(earlier[index])
        for direction in level.directions:
            backward = direction is Direction.BACKWARD
            reader, writer = (candidate, previous) if backward else (previous, candidate)
            found += [replace(reason, earlier=index) for reason in check(reader, writer, direction)]
    return found


def _schema(source: Schema | Any) -> Schema:
    return source if isinstance(source, Schema) else parse(source)


_PROMOTIONS = {
    "long": {"int"},
    "float": {"int", "long"},
    "double": {"int", "long", "float"},
    "bytes": {"string"},
    "string": {"bytes"},
}


class _AmbiguousFieldError(Exception):
    def __init__(self, reason: Incompatibility) -> None:
        super().__init__(reason.message)
        self.reason = reason


@dataclass(frozen=True)
class _Place:
    path: str
    owner: str

    def down(self, *tokens: str | int) -> _Place:
        return replace(self, path="".join((self.path, *(f"/{token}" for token in tokens))))


class _Checker:
    """Walks both graphs as Java does, with its memory of pairs: a pair under way counts as compatible."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.backward = direction is Direction.BACKWARD
        self.seen: dict[tuple[int, int], list[Incompatibility]] = {}

    def pair(self, reader: Schema, writer: Schema, place: _Place) -> list[Incompatibility]:
        key = (id(reader), id(writer))
        if key not in self.seen:
            self.seen[key] = []
            self.seen[key] = self.compare(reader, writer, place)
        return self.seen[key]

    def compare(self, reader: Schema, writer: Schema, place: _Place) -> list[Incompatibility]:
        if writer.type == "union":
            return [
                reason
                for index, branch in enumerate(writer.branches)
                for reason in self.pair(reader, branch, place.down(index))
            ]
        if reader.type == "union":
            return self.some_branch(reader, writer, place)
        if reader.type != writer.type:
            promoted = writer.type in _PROMOTIONS.get(reader.type, ())
            return [] if promoted else [self.type_mismatch(reader, writer, place)]
        if reader.element is not None and writer.element is not None:
            token = "items" if reader.type == "array" else "values"
            return self.pair(reader.element, writer.element, place.down(token))
        if not reader.name:
            return []
        found = []
        if reader.unqualified != writer.unqualified and writer.name not in reader.aliases:
            found.append(self.name_mismatch(reader, writer, place))
        if reader.type == "fixed" and reader.size != writer.size:
            found.append(self.size_mismatch(reader, writer, place))
        if reader.type == "enum" and reader.default_symbol is None:
            unknown = sorted(set(writer.symbols) - set(reader.symbols))
            if unknown:
                found.append(self.missing_symbols(reader, unknown, place))
        return found + [
            reason
            for position, field in enumerate(reader.fields)
            for reason in self.field(field, writer, place.down("fields", position))
        ]

    def some_branch(self, reader: Schema, writer: Schema, place: _Place) -> list[Incompatibility]:
        nearest: Incompatibility | None = None
        for branch in reader.branches:
            reasons = self.pair(branch, writer, place)
            if not reasons:
                return []
            if branch.type == writer.type and branch.unqualified == writer.unqualified:
                nearest = reasons[0]
        return [self.missing_branch(reader, writer, place, nearest)]

    def field(self, field: Field, writer: Schema, place: _Place) -> list[Incompatibility]:
        names = (field.name, *field.aliases)
        sources = [candidate for name in names for candidate in writer.fields if candidate.name == name]
        here = _Place(place.path, f"field `{field.name}`")
        if len(sources) > 1:
            self.ambiguous(field, [source.name for source in sources], here)
        if sources:
            return self.pair(field.schema, sources[0].schema, here.down("type"))
        return [] if field.has_default else [self.missing_default(field, here)]

    def reason(self, kind: Kind, place: _Place, backward: str, forward: str) -> Incompatibility:
        at = place.path or "/"
        where = f"{place.owner} at {at}" if self.backward else f"{place.owner} at {at} of the earlier schema"
        return Incompatibility(kind, at, f"{where} {backward if self.backward else forward}", self.direction)

    def missing_default(self, field: Field, place: _Place) -> Incompatibility:
        return self.reason(
            Kind.READER_FIELD_MISSING_DEFAULT_VALUE,
            place,
            "was added without a default: old records cannot be read; give it a default",
            "was removed but has no default there: readers of the earlier schema cannot read new records;"
            " keep the field",
        )

    def type_mismatch(self, reader: Schema, writer: Schema, place: _Place) -> Incompatibility:
        return self.reason(
            Kind.TYPE_MISMATCH,
            place,
            f"changed from {writer} to {reader}: old records cannot be read;"
            f" keep {writer}, or add a new field with a default",
            f"changed from {reader} to {writer}: readers of the earlier schema cannot read new records;"
            f" keep {reader}, or add a new field with a default",
        )

    def missing_branch(
        self, reader: Schema, writer: Schema, place: _Place, nearest: Incompatibility | None
    ) -> Incompatibility:
        because = f" ({nearest.message})" if nearest else ""
        return self.reason(
            Kind.MISSING_UNION_BRANCH,
            place,
            f"no longer accepts {writer}, its union is {reader}: old records cannot be read{because};"
            f" keep {writer} in the union",
            f"does not accept {writer}, its union is {reader}: readers of the earlier schema cannot read"
            f" new records{because}; keep to the branches they know, or add a new field with a default",
        )

    def missing_symbols(self, reader: Schema, unknown: list[str], place: _Place) -> Incompatibility:
        listed = ", ".join(unknown)
        return self.reason(
            Kind.MISSING_ENUM_SYMBOLS,
            place.down("symbols"),
            f"lost {listed} from enum {reader}: old records with them cannot be read;"
            " keep the symbols, or give the enum a default",
            f"gained {listed} in enum {reader}, which has no default: readers of the earlier schema cannot"
            " read them; only an enum that had a default from its first version can gain symbols",
        )

    def size_mismatch(self, reader: Schema, writer: Schema, place: _Place) -> Incompatibility:
        old, new = (writer, reader) if self.backward else (reader, writer)
        change = f"changed the size of fixed {reader} from {old.size} to {new.size} bytes"
        remedy = f"keep {old.size}, or add a new field with a default"
        return self.reason(
            Kind.FIXED_SIZE_MISMATCH,
            place.down("size"),
            f"{change}: old records cannot be read; {remedy}",
            f"{change}: readers of the earlier schema cannot read new records; {remedy}",
        )

    def name_mismatch(self, reader: Schema, writer: Schema, place: _Place) -> Incompatibility:
        return self.reason(
            Kind.NAME_MISMATCH,
            place.down("name"),
            f"renamed {reader.type} {writer} to {reader}: old records cannot be read;"
            f" keep the name, or add {writer} to its aliases",
            f"renamed {reader.type} {reader} to {writer}: readers of the earlier schema cannot read new"
            " records; keep the name",
        )

    def ambiguous(self, field: Field, sources: list[str], place: _Place) -> NoReturn:
        listed = ", ".join(f"`{name}`" for name in sources)
        sentence = (
            f"matches more than one field by its name and aliases ({listed}): keep one of these aliases"
        )
        raise _AmbiguousFieldError(self.reason(Kind.AMBIGUOUS_FIELD, place, sentence, sentence))
