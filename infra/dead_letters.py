"""Dead letters: one envelope for every record that was refused, wherever it was refused."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Message

from schemas.declare import LETTER_BYTES, Topic

Event = dict[str, Any]

REASON_HEADER = "millrace-reason"
"""Header of bytes that a connector knew to be no event, and passed on for nothing to be lost: the reason."""

VALUE_BYTES = LETTER_BYTES - (1 << 20)
"""The largest value that a letter repeats, with room for its key and reason."""

COLUMNS = (
    "consumer",
    "topic",
    "partition",
    "offset",
    "pipeline",
    "tenant",
    "schema_id",
    "input_id",
    "error_class",
    "field",
    "error",
    "key",
    "value",
    "append_time",
)
"""The columns of table `dead_letters`, in the order of `row`."""


def envelope(
    pipeline: str,
    consumer: str,
    message: Message,
    topic: Topic,
    error_class: str,
    error: str,
    *,
    field: str | None = None,
    schema_id: int | None = None,
    event: Event | None = None,
) -> Event:
    """The event that tells of a refused record. `event` is its decoded value, where there is one."""
    value = message.value()
    if value is not None and len(value) > VALUE_BYTES:
        error += f"; its value of {len(value)} bytes is too large for a letter and stands on the topic alone"
        value = None
    return {
        "event_id": f"{message.topic()}/{message.partition()}/{message.offset()}/{consumer}",
        "tenant": (event or {}).get("tenant", ""),
        "occurred_at": message.timestamp()[1],
        "pipeline": pipeline,
        "consumer": consumer,
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "schema_id": schema_id,
        # A result names the input that it answers; an input's own id is the one that was acknowledged.
        "input_id": (event or {}).get("input_id") or (event or {}).get(topic.event_id),
        "error_class": error_class,
        "field": field,
        "error": error,
        "key": message.key(),
        "value": value,
    }


def reason_given(message: Message) -> str | None:
    """Why a connector passed these bytes on although they are no event, where it says so."""
    value = dict(message.headers() or ()).get(REASON_HEADER)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def row(event: Event) -> tuple[Any, ...]:
    """The values of an envelope in the order of `COLUMNS`; `append_time` in epoch milliseconds."""
    return tuple(event["occurred_at"] if c == "append_time" else event[c] for c in COLUMNS)
