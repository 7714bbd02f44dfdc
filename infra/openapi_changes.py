"""What in a new description of an API breaks clients of the published one (OpenAPI 3.1, as of FastAPI).

One question answers it all: is every value that fits one schema a value of another? What clients may send
today must be taken tomorrow; what they are answered tomorrow must be what they are told of today.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
EVERY_TYPE = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EXACT = ("pattern", "format", "multipleOf", "uniqueItems")
_IDENTITY = ("operationId", "x-millrace-scope")
"""What generated clients and grants go by."""


def breaking(published: Json, new: Json) -> list[str]:
    """Each change of `new` that may break who goes by `published`, in one line that names the place."""
    found: list[str] = []
    for path, operations in published["paths"].items():
        for method in (m for m in METHODS if m in operations):
            name = f"{method.upper()} {path}"
            operation = new["paths"].get(path, {}).get(method)
            if operation is None:
                found.append(f"{name} is gone")
            else:
                compared = _Operation(published, new, operations[method], operation)
                found += [f"{name}: {reason}" for reason in compared.breaking()]
    return found


@dataclass
class _Operation:
    """An operation as it was published, and as it is to be."""

    published: Json
    new: Json
    was: Json
    now: Json

    def breaking(self) -> Iterator[str]:
        for name in _IDENTITY:
            if self.was.get(name) != self.now.get(name):
                yield f"{name} is {self.now.get(name)} instead of {self.was.get(name)}"
        yield from self._parameters()
        yield from self._body()
        yield from self._answers()

    def _parameters(self) -> Iterator[str]:
        was, now = ({(p["in"], p["name"]): p for p in o.get("parameters", ())} for o in (self.was, self.now))
        for place, name in was.keys() - now.keys():
            yield f"parameter `{name}` ({place}) is gone"
        for (place, name), parameter in now.items():
            before = was.get((place, name))
            if parameter.get("required") and not (before or {}).get("required"):
                yield f"parameter `{name}` ({place}) is required now"
            if before is not None:
                reasons = self._taken(before.get("schema", {}), parameter.get("schema", {}))
                yield from (f"parameter `{name}` ({place}): {reason}" for reason in reasons)

    def _body(self) -> Iterator[str]:
        was, now = self.was.get("requestBody"), self.now.get("requestBody")
        if now is not None and now.get("required") and not (was or {}).get("required"):
            yield "a body is required now"
        if was is None:
            return
        for kind, content in was.get("content", {}).items():
            taken = (now or {}).get("content", {}).get(kind)
            if taken is None:
                yield f"a body of {kind} is no longer taken"
            else:
                reasons = self._taken(content.get("schema", {}), taken.get("schema", {}))
                yield from (f"body: {reason}" for reason in reasons)

    def _answers(self) -> Iterator[str]:
        for status, was in self.was.get("responses", {}).items():
            now = self.now.get("responses", {}).get(status)
            if now is None:
                yield f"answer {status} is gone"
                continue
            for header in was.get("headers", {}).keys() - now.get("headers", {}).keys():
                yield f"answer {status}: header {header} is gone"
            for kind, content in was.get("content", {}).items():
                given = now.get("content", {}).get(kind)
                if given is None:
                    yield f"answer {status}: {kind} is no longer given"
                else:
                    reasons = self._given(content.get("schema", {}), given.get("schema", {}))
                    yield from (f"answer {status}: {reason}" for reason in reasons)

    def _taken(self, was: Json, now: Json) -> Iterator[str]:
        """Why something that could be sent is not taken any more."""
        return Fit(self.published, self.new, gone="is no longer taken").reasons(was, now)

    def _given(self, was: Json, now: Json) -> Iterator[str]:
        """Why something is answered that nobody was told of."""
        return Fit(self.new, self.published, missing="may be gone").reasons(now, was)


@dataclass
class Fit:
    """Whether every value of one schema is a value of another; `narrow_in` and `wide_in` resolve references.

    Of an object's values those that somebody was told of: a property that nobody knew may get a meaning.
    `gone` says what it means that the wide schema does not know a property; None where that is all the same.
    `missing`: that it knows one which the narrow schema lacks, also where it need not be there.
    """

    narrow_in: Json
    wide_in: Json
    gone: str | None = None
    missing: str | None = None
    _under_way: set[tuple[str, str]] = field(default_factory=set)

    def reasons(self, narrow: Json | bool, wide: Json | bool, at: str = "") -> Iterator[str]:
        """Each way in which a value of `narrow` may not be one of `wide`. None where they fit."""
        if wide is True or wide == {} or narrow is False:
            return
        if narrow is True or wide is False:
            yield f"{_at(at)}can be anything now" if narrow is True else f"{_at(at)}can be nothing now"
            return
        pair = (str(narrow.get("$ref")), str(wide.get("$ref")))
        if "$ref" in narrow or "$ref" in wide:
            if pair in self._under_way:
                return  # as far as is known: a difference is found where the types are first compared
            self._under_way.add(pair)
            narrow, wide = _resolved(self.narrow_in, narrow), _resolved(self.wide_in, wide)
        try:
            yield from self._resolved(narrow, wide, at)
        finally:
            self._under_way.discard(pair)

    def _resolved(self, narrow: Json, wide: Json, at: str) -> Iterator[str]:
        choices = _choices(narrow)
        if choices:
            for choice in choices:
                yield from self.reasons(choice, wide, at)
            return
        others = _choices(wide)
        if others:
            failed = [list(self.reasons(narrow, other, at)) for other in others]
            if all(failed):
                yield from min(failed, key=len)
            return
        yield from self._alone(narrow, wide, at)

    def _alone(self, narrow: Json, wide: Json, at: str) -> Iterator[str]:
        kinds, allowed = _types(narrow), _types(wide)
        if "number" in allowed:
            allowed = allowed | {"integer"}
        if more := kinds - allowed:
            yield f"{_at(at)}can be {', '.join(sorted(more))}, not only {', '.join(sorted(allowed))}"
            return
        values, among = _values(narrow), _values(wide)
        if among is not None and (values is None or not all(v in among for v in values)):
            others = "anything" if values is None else ", ".join(str(v) for v in values if v not in among)
            yield f"{_at(at)}can be {others}, not only {', '.join(map(str, among))}"
        if values is None:
            yield from self._bounds(narrow, wide, at)
        if "array" in kinds and "items" in wide:
            yield from self.reasons(narrow.get("items", True), wide["items"], f"{at}[]")
        if "object" in kinds:
            yield from self._object(narrow, wide, at)

    def _bounds(self, narrow: Json, wide: Json, at: str) -> Iterator[str]:
        for name in (*_LEAST, *_MOST):
            if name in wide and (
                name not in narrow
                or (narrow[name] < wide[name] if name in _LEAST else narrow[name] > wide[name])
            ):
                yield f"{_at(at)}{name} is {narrow.get(name, 'none')} on one side, {wide[name]} on the other"
        for name in _EXACT:
            if name in wide and narrow.get(name) != wide[name]:
                yield f"{_at(at)}{name} is {narrow.get(name, 'none')} on one side, {wide[name]} on the other"

    def _object(self, narrow: Json, wide: Json, at: str) -> Iterator[str]:
        known, allowed = narrow.get("properties", {}), wide.get("properties", {})
        for name in sorted(set(wide.get("required", ())) - set(narrow.get("required", ()))):
            yield f"{_at(_below(at, name))}need not be there on one side, but must on the other"
        for name, schema in known.items():
            if name in allowed:
                yield from self.reasons(schema, allowed[name], _below(at, name))
            elif self.gone is not None:
                yield f"{_at(_below(at, name))}{self.gone}"
            else:
                yield from self.reasons(schema, wide.get("additionalProperties", True), _below(at, name))
        if "additionalProperties" in narrow:
            for name in allowed.keys() - known.keys():
                yield from self.reasons(narrow["additionalProperties"], allowed[name], _below(at, name))
        if self.missing is not None:
            for name in allowed.keys() - known.keys() - set(wide.get("required", ())):
                yield f"{_at(_below(at, name))}{self.missing}"
        if "additionalProperties" in wide:
            others = narrow.get("additionalProperties", True)
            yield from self.reasons(others, wide["additionalProperties"], _below(at, "*"))


def _resolved(document: Json, schema: Json) -> Json:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        schema = found
    return schema


def _choices(schema: Json) -> Sequence[Json]:
    found: Sequence[Json] = schema.get("anyOf") or schema.get("oneOf") or ()
    return found


def _types(schema: Json) -> frozenset[str]:
    declared = schema.get("type")
    if declared is not None:
        return frozenset([declared] if isinstance(declared, str) else declared)
    values = _values(schema)
    if values is None:
        return EVERY_TYPE
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return frozenset(names.get(type(v), "object") for v in values)


def _values(schema: Json) -> list[Any] | None:
    """All values that there are; None where they are not named."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _at(place: str) -> str:
    return f"`{place}` " if place else ""


def _below(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
