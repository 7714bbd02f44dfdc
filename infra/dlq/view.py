"""A dead letter for people: the reason, and the record beside it. Nothing of it can steer a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from infra.dlq.edits import Content, changes, to_json
from infra.dlq.letters import Letter

MOST_BYTES = 256
"""How much of undecodable bytes is shown."""
TIME = "%Y-%m-%d %H:%M:%S"


def lines(
    letter: Letter, content: Content, edited: Content | None, history: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """The letter, its record as it was refused and as it was edited, and what was done to it."""
    field = f", {letter.field}" if letter.field else ""
    yield f"letter {letter.id} ({letter.status}): {safe(letter.place)}, pipeline {safe(letter.pipeline)}"
    yield f"  refused by   {safe(letter.consumer)} at {letter.created_at:{TIME} %Z}"
    yield f"  reason       {safe(letter.error_class + field)}: {safe(letter.error)}"
    size = len(letter.value or b"")
    yield (
        f"  record       appended {letter.append_time:{TIME}.%f %Z}, schema {letter.schema_id},"
        f" key {text(letter.key)}, {size} bytes"
    )
    if content.fault:
        yield f"  its readers  {safe(content.fault)}"
    if content.event is None:
        yield "  bytes"
        yield from (f"    {line}" for line in dump(letter.value or b""))
    else:
        yield "  event" if content.fault is None else "  event, as its writer's schema tells it"
        for name, value in content.event.items():
            shown = to_json(value).replace("\n", "\n    ")
            yield f"  {'▶' if name == letter.field else ' '} {name}: {shown}"
    if edited is not None:
        yield "  edited (a redrive sends this)"
        yield from (f"    {line}" for line in difference(content.event or {}, edited.event or {}))
    if history:
        yield "  what was done"
    for step in history:
        place = f" to {step['topic']}/{step['partition']}/{step['offset']}" if step["topic"] else ""
        note = f": {safe(step['note'])}" if step["note"] else ""
        again = f"; refused again: letter {step['refused_again']}" if step["refused_again"] else ""
        yield f"    {step['at']:{TIME}} {step['action']}{place} by {safe(step['actor'])}{note}{again}"


def difference(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Each field that differs, as it was and as it is."""
    for name, (old, new) in changes(before, after).items():
        yield f"{safe(name)}: {_value(old)} → {_value(new)}"


def text(data: bytes | None) -> str:
    """A key: as text where it is some, otherwise in hexadecimal."""
    if data is None:
        return "none"
    try:
        return repr(data.decode())
    except UnicodeDecodeError:
        return data.hex()


def dump(data: bytes) -> Iterator[str]:
    """Bytes as hexadecimal with their text beside it."""
    for start in range(0, min(len(data), MOST_BYTES), 16):
        part = data[start : start + 16]
        beside = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        yield f"{start:06x}  {part.hex(' '):<47}  {beside}"
    if len(data) > MOST_BYTES:
        yield f"... {len(data) - MOST_BYTES} bytes more"


def safe(told: str) -> str:
    """Text in which what is not printable is escaped: a refused record may hold a terminal's commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told)


def _value(value: Any) -> str:
    return "(absent)" if value is ... else " ".join(to_json(value).split())
