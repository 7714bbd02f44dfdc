"""What a letter's bytes say, and how they are corrected: nothing here reaches a topic."""

from __future__ import annotations

import builtins
import copy
import datetime
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.codec import Codec, Event, Undecodable, Unencodable
from infra.dlq.letters import OPEN, DlqError, Letter, act, load
from infra.postgres import Connection
from schemas import json_bytes
from schemas.declare import Pipelines, Topic

Change = Callable[[Event], Event]
"""A correction: the new event from the old one, which it must not change."""


@dataclass(frozen=True)
class Content:
    """What a record's bytes say. `fault` is why the topic's readers cannot read it; then `event` may be
    what its writer's schema alone makes of it, or None.
    """

    event: Event | None
    fault: str | None = None


def topic_of(pipelines: Pipelines, letter: Letter) -> Topic | None:
    """The declared topic that the letter's record came from; None where none is declared (any more)."""
    return next((t for p in pipelines for t in p.topics if t.name == letter.topic), None)


def read(codec: Codec, topic: Topic | None, value: bytes | None, read_as: int | None = None) -> Content:
    """Decode a record, as well as it goes. With `read_as`, by that schema whatever id the bytes name.

    Raises `RegistryUnavailable`.
    """
    fault = f"no pipeline declares its topic{' any more' if read_as else ''}"
    if topic is not None and read_as is None:
        try:
            return Content(codec.decode(topic, value).event)
        except Undecodable as error:
            fault = error.reason
    try:
        return Content(codec.decode_as_written(value, read_as), fault if read_as is None else None)
    except Undecodable as error:
        return Content(None, fault if read_as is None else error.reason)


def to_json(event: Any) -> str:
    """An event as JSON that people can edit; bytes become `{"base64": ...}`."""
    return json.dumps(event, indent=2, ensure_ascii=False, default=json_bytes.to_json)


def from_json(text: str) -> Any:
    """What `to_json` wrote. Raises `DlqError` for text that is no JSON."""
    try:
        return json.loads(text, object_hook=json_bytes.of_json)
    except (json.JSONDecodeError, ValueError) as error:
        raise DlqError(f"this is not JSON: {error}; correct it") from error


# Corrections


def setting(assignments: Sequence[str]) -> Change:
    """A change that gives fields other values, from `field=value` with JSON values (or plain text)."""
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DlqError(f"{text!r} sets nothing; write field=value, the value in JSON")
        try:
            values[name] = json.loads(value, object_hook=json_bytes.of_json)
        except ValueError:
            values[name] = value
    return lambda event: {**event, **values}


def expression(text: str) -> Change:
    """A change by a Python expression of `event` (a copy), with the modules re, json, math and datetime.

    It runs with the operator's own rights: the missing builtins guard against slips, not against malice.
    Raises `DlqError` where it cannot be compiled; the change raises it where it fails or gives no event.
    """
    try:
        code = compile(text, "--transform", "eval")
    except (SyntaxError, ValueError) as error:
        raise DlqError(
            f"--transform is no Python expression: {error}; write one such as"
            " \"event | {'currency': event['currency'].upper()}\""
        ) from error
    withheld = {
        "open",
        "exec",
        "eval",
        "compile",
        "__import__",
        "input",
        "breakpoint",
        "exit",
        "quit",
        "print",
    }
    known = {name: value for name, value in vars(builtins).items() if name not in withheld}
    modules = {"re": re, "json": json, "math": math, "datetime": datetime}

    def change(event: Event) -> Event:
        try:
            made = eval(code, {"__builtins__": known, **modules, "event": copy.deepcopy(event)})  # noqa: S307 -- the operator's own expression
        except Exception as error:
            raise DlqError(f"--transform fails with {type(error).__name__}: {error}; correct it") from error
        if not isinstance(made, dict):
            raise DlqError(
                f"--transform gives {type(made).__name__}, no event; let it give a dict, as event | {{...}}"
            )
        return made

    return change


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What an edit would make of a letter: `before` and `after`, or `problem` for why it cannot be made."""

    letter: Letter
    before: Event | None = None
    after: Event | None = None
    key: bytes | None = None
    value: bytes | None = None
    problem: str | None = None

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """What differs, as `changes` tells it."""
        return changes(self.before or {}, self.after or {})


def changes(before: Event, after: Event) -> dict[str, tuple[Any, Any]]:
    """Fields that differ: name to (before, after); a field that is absent stands as `...`."""
    names = dict.fromkeys((*before, *after))
    pairs = {name: (before.get(name, ...), after.get(name, ...)) for name in names}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def propose(
    codec: Codec,
    pipelines: Pipelines,
    letter: Letter,
    corrections: Sequence[Change],
    *,
    whole: Event | None = None,
    read_as: int | None = None,
) -> Edit:
    """What `corrections`, one after the other, make of a letter: written with the topic's newest schema.

    Starts from the last edit. `whole` is an event to start from instead; `read_as` the id of the schema by
    which to read the bytes, where the one they name is wrong or not registered. Raises `RegistryUnavailable`.
    """
    if letter.status != OPEN:
        return Edit(letter=letter, problem=f"it is {letter.status}, and only open letters can be edited")
    topic = topic_of(pipelines, letter)
    if topic is None:
        return Edit(
            letter=letter, problem=f"no pipeline declares topic {letter.topic}; it can only be discarded"
        )
    content = Content(whole) if whole is not None else read(codec, topic, letter.to_value, read_as)
    if content.event is None:
        return Edit(
            letter=letter,
            problem=f"{content.fault}; name the schema it was written with (--read-as), or give the event"
            " (--file)",
        )
    before = read(codec, topic, letter.to_value, read_as).event if whole is not None else content.event
    try:
        after = content.event
        for change in corrections:
            after = change(after)
        value = codec.encode(topic, after)
        after = codec.decode(topic, value).event  # with the defaults of what was left out
    except (DlqError, Unencodable) as error:
        return Edit(letter=letter, before=before, problem=str(error))
    return Edit(letter=letter, before=before, after=after, key=str(after[topic.key]).encode(), value=value)


def store(connection: Connection, edits: Sequence[Edit], actor: str, note: str | None) -> list[int]:
    """Store edits that have no problem; returns the ids of letters that meanwhile were no longer open."""
    wanted = {e.letter.id: e for e in edits if e.problem is None}
    with connection.transaction(), connection.cursor() as cursor:
        open_ = {x.id for x in load(connection, list(wanted), lock=True) if x.status == OPEN}
        cursor.executemany(
            "INSERT INTO dead_letter_actions (letter, action, actor, note, key, value)"
            " VALUES (%s, 'edit', %s, %s, %s, %s)",
            [(i, actor, note, e.key, e.value) for i, e in wanted.items() if i in open_],
        )
    return [i for i in wanted if i not in open_]


def revert(connection: Connection, ids: Sequence[int], actor: str, note: str | None) -> list[int]:
    """Take edits back: the letters stand with their own bytes again; returns the ids it was done for."""
    with connection.transaction():
        edited = [x.id for x in load(connection, ids, lock=True) if x.edited and x.status == OPEN]
        act(connection, edited, "revert", actor, note)
    return edited
