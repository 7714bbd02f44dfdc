"""An event as a form over the fields of its Avro schema, and back.

What a browser cannot carry unharmed (bytes, control characters, the last digit of a float) is kept: a field
whose text comes back as it was sent keeps the value that it had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.console import words
from infra.codec import Event
from infra.dlq.edits import from_json, to_json
from infra.dlq.letters import DlqError
from schemas.avro import Schema, parse
from schemas.declare import Topic

FIELD, NULL = "f.", "n."
"""Before a field's name: its text, and the box that says it is null."""

INTEGERS = {"int": 32, "long": 64}


@dataclass(frozen=True, slots=True)
class Control:
    """One field of the form. `kind` is text, lines, int, float, choice or json."""

    name: str
    kind: str
    type: str
    doc: str
    hint: str
    required: bool
    nullable: bool
    null: bool
    text: str
    choices: tuple[str, ...] = ()


def controls(topic: Topic, event: Mapping[str, Any]) -> list[Control]:
    """The form of an event; of what it lacks, the schema's defaults."""
    return [_control(f, event) for f in parse(topic.schema).fields]


def event_of(
    topic: Topic, before: Mapping[str, Any], form: Mapping[str, str]
) -> tuple[Event, dict[str, str]]:
    """The event that a form says, and what is wrong with it: field to reason."""
    event: Event = {}
    wrong: dict[str, str] = {}
    for field in parse(topic.schema).fields:
        name, control = field.name, _control(field, before)
        text = _as_browsed(form.get(FIELD + name, ""))
        null = control.nullable and NULL + name in form
        if name in before and null == control.null and (null or text == _as_browsed(control.text)):
            event[name] = before[name]
        elif null:
            event[name] = None
        elif FIELD + name in form:
            try:
                event[name] = _value(control, text)
            except ValueError as error:
                wrong[name] = str(error)
        elif not field.has_default:
            wrong[name] = "is missing; give it a value"
    return event, wrong


def _as_browsed(text: str) -> str:
    """Text as a page and a form carry it: new lines of one kind, and no NUL."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")


def _control(field: Any, event: Mapping[str, Any]) -> Control:
    schema: Schema = field.schema
    others = [b for b in schema.branches if b.type != "null"] if schema.type == "union" else []
    nullable = len(others) == 1 and len(schema.branches) == 2
    kind, choices, type_ = _kind(others[0] if nullable else schema)
    default = field.default if field.has_default else None
    value = event.get(field.name, default)
    text = _text(kind, value)
    if kind == "text" and ("\n" in text or "\r" in text):
        kind = "lines"
    if kind == "choice" and text and text not in choices:
        choices = (*choices, text)
    logical = (others[0] if nullable else schema).properties.get("logicalType", "")
    return Control(
        name=field.name,
        kind=kind,
        type=f"{type_} or null" if nullable else type_,
        doc=field.doc or "",
        hint=_hint(str(logical), value),
        required=not field.has_default,
        nullable=nullable,
        null=nullable and value is None,
        text=text,
        choices=choices,
    )


def _kind(schema: Schema) -> tuple[str, tuple[str, ...], str]:
    if schema.type == "string":
        return "text", (), "string"
    if schema.type in INTEGERS:
        logical = schema.properties.get("logicalType")
        return "int", (), f"{schema.type} ({logical})" if logical else schema.type
    if schema.type in ("float", "double"):
        return "float", (), schema.type
    if schema.type == "boolean":
        return "choice", ("true", "false"), "boolean"
    if schema.type == "enum":
        return "choice", tuple(schema.symbols), f"one of {len(schema.symbols)}"
    return "json", (), f"{schema} as JSON"


def _text(kind: str, value: Any) -> str:
    if value is None and kind != "json":
        return ""
    if kind == "json":
        return to_json(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        value
        if isinstance(value, str)
        else json.dumps(value)
        if isinstance(value, int | float)
        else to_json(value)
    )


def _hint(logical: str, value: Any) -> str:
    """A timestamp as people read it."""
    per_ms = {"timestamp-millis": 1, "timestamp-micros": 1000}.get(logical)
    if per_ms is None or not isinstance(value, int):
        return ""
    return f"{words.of_ms(value / per_ms)} UTC"


def _value(control: Control, text: str) -> Any:
    """What the text says. Raises ValueError with the reason and the remedy."""
    if control.kind in ("text", "lines"):
        return text
    if control.kind == "choice":
        if text not in control.choices:
            raise ValueError(f"is none of {', '.join(control.choices)}; choose one")
        return {"true": True, "false": False}[text] if control.type.startswith("boolean") else text
    if control.kind == "int":
        if not re.fullmatch(r"\s*[+-]?\d{1,20}\s*", text):
            raise ValueError(f"{text!r} is no whole number; write digits alone")
        value, bits = int(text), 32 if control.type.startswith("int") else 64
        if not -(1 << bits - 1) <= value < 1 << bits - 1:
            raise ValueError(f"{value} does not fit {bits} bits; give a smaller number")
        return value
    if control.kind == "float":
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{text!r} is no number; write one as 12.5") from None
    try:
        return from_json(text)
    except DlqError as error:
        raise ValueError(str(error)) from None
