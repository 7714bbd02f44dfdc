"""What changed between two versions of a schema, in sentences about fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schemas.avro import Field, Schema, parse


@dataclass(frozen=True)
class Difference:
    """One change. `field` is its dotted path; `meaning` marks one that Avro's rules let pass although the
    same bytes then mean something else.
    """

    field: str
    text: str
    meaning: bool = False

    def __str__(self) -> str:
        return f"{self.field or 'the schema'}: {self.text}"


def differences(old: Any, new: Any) -> list[Difference]:
    """Everything that changed from `old` to `new` (parsed JSON) but documentation. Raises SchemaError."""
    return list(_compare(parse(old), parse(new), "", set()))


def _compare(old: Schema, new: Schema, path: str, seen: set[tuple[int, int]]) -> Iterator[Difference]:
    if (id(old), id(new)) in seen:
        return
    seen.add((id(old), id(new)))
    if old.type != new.type:
        yield Difference(path, f"type changed from {old} to {new}")
        return
    if old.name != new.name:
        yield Difference(path, f"{old.type} {old.name} is now called {new.name}")
    yield from _aliases(old, new, path)
    before, after = old.properties.get("logicalType"), new.properties.get("logicalType")
    if before != after:
        text = f"logical type changed from {before or 'none'} to {after or 'none'}: the same number means"
        yield Difference(path, f"{text} something else", meaning=True)
    if old.type == "record":
        yield from _record(old, new, path, seen)
    elif old.type == "union":
        yield from _union(old, new, path, seen)
    elif old.type == "enum":
        yield from _enum(old, new, path)
    elif old.type == "fixed" and old.size != new.size:
        yield Difference(path, f"size changed from {old.size} to {new.size} bytes")
    elif old.element is not None and new.element is not None:
        yield from _compare(old.element, new.element, f"{path}[]", seen)


def _record(old: Schema, new: Schema, path: str, seen: set[tuple[int, int]]) -> Iterator[Difference]:
    before = {f.name: f for f in old.fields}
    matched = {}
    for declared in new.fields:
        here = f"{path}.{declared.name}".lstrip(".")
        earlier = next((before[n] for n in (declared.name, *declared.aliases) if n in before), None)
        if earlier is None:
            yield Difference(here, f"added, {declared.schema}{_default(declared)}")
            continue
        matched[earlier.name] = declared
        if earlier.name != declared.name:
            yield Difference(here, f"was called {earlier.name}")
        yield from _aliases(earlier, declared, here)
        yield from _compare(earlier.schema, declared.schema, here, seen)
        if _default(earlier) != _default(declared):
            yield Difference(here, f"was{_default(earlier)}, is now{_default(declared)}")
    for name, earlier in before.items():
        if name not in matched:
            yield Difference(
                f"{path}.{name}".lstrip("."), f"removed, was {earlier.schema}{_default(earlier)}"
            )


def _aliases(old: Field | Schema, new: Field | Schema, path: str) -> Iterator[Difference]:
    if set(old.aliases) != set(new.aliases):
        before, after = (", ".join(x.aliases) or "none" for x in (old, new))
        yield Difference(path, f"aliases changed from {before} to {after}")


def _default(declared: Field) -> str:
    return f" with default {json.dumps(declared.default)}" if declared.has_default else " without default"


def _union(old: Schema, new: Schema, path: str, seen: set[tuple[int, int]]) -> Iterator[Difference]:
    before = {b.name or b.type: b for b in old.branches}
    after = {b.name or b.type: b for b in new.branches}
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            yield Difference(path, f"no longer takes {name}")
        elif name not in before:
            yield Difference(path, f"now takes {name} as well")
        else:
            yield from _compare(before[name], after[name], path, seen)


def _enum(old: Schema, new: Schema, path: str) -> Iterator[Difference]:
    if gained := [s for s in new.symbols if s not in old.symbols]:
        yield Difference(path, f"gained {', '.join(gained)}")
    if lost := [s for s in old.symbols if s not in new.symbols]:
        yield Difference(path, f"lost {', '.join(lost)}")
    if old.default_symbol != new.default_symbol:
        before, after = old.default_symbol or "none", new.default_symbol or "none"
        yield Difference(path, f"default symbol changed from {before} to {after}")
