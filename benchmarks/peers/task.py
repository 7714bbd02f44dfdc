"""What every Python peer is given: its job, fastavro behind two functions, one window, one client setting.

A peer's program holds only what its framework asks for, in the form that its documentation shows. This file
needs nothing but fastavro: it runs in each peer's own environment.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro

JOB: dict[str, Any] = json.loads(os.environ["BENCH_JOB"])

PRODUCER = {
    "acks": "all",
    "enable.idempotence": "true",
    "linger.ms": "5",
    "compression.type": "lz4",
    "partitioner": "murmur2_random",
    "queue.buffering.max.messages": "200000",
}
"""Settings of the producers of all subjects that use librdkafka, ours among them."""

RECOVERING: bool = JOB.get("recovering", False)
"""Whether the peer shall come back after a kill, by the means that its documentation has for it."""

RECOVERY_SECONDS = 1.0
"""How often such a peer saves itself, where it can be told."""

DAY_MS = 24 * 60 * 60 * 1000


def _schema(path: str) -> Any:
    """Without logical types: all subjects handle times as integers, which is faster."""

    def bare(schema: Any) -> Any:
        if isinstance(schema, dict):
            return {k: bare(v) for k, v in schema.items() if k != "logicalType"}
        return [bare(s) for s in schema] if isinstance(schema, list) else schema

    return fastavro.parse_schema(bare(json.loads(Path(path).read_text())))


_target = _schema(JOB.get("target_schema", JOB["source_schema"]))
_header = struct.pack(">bI", 0, JOB.get("target_schema_id", 0))


def decoder(path: str) -> Callable[[bytes], dict[str, Any]]:
    """What makes the event of a record of this schema."""
    schema = _schema(path)

    def decode(value: bytes) -> dict[str, Any]:
        body = io.BytesIO(value)
        body.seek(5)
        return fastavro.schemaless_reader(body, schema)  # type: ignore[return-value]

    return decode


decode = decoder(JOB["source_schema"])
"""The event in a record of the source."""


def encode(event: dict[str, Any]) -> bytes:
    """The record of the target."""
    out = io.BytesIO()
    out.write(_header)
    fastavro.schemaless_writer(out, _target, event)
    return out.getvalue()


Window = list[Any]
"""Times and amounts of the last 24 hours, oldest first, and the amounts' sum; any framework can store it."""


def empty() -> Window:
    return [[], [], 0]


def score(window: Window, event: dict[str, Any]) -> dict[str, Any]:
    """Take the event into its card's window; returns it with the three results."""
    times, amounts, total = window
    at_ms, amount = event["occurred_at"], event["amount_minor"]
    while times and times[0] <= at_ms - DAY_MS:
        del times[0]
        total -= amounts.pop(0)
    times.append(at_ms)
    amounts.append(amount)
    window[2] = total = total + amount
    count = len(times)
    ratio = amount * count / (total + 10_000.0)
    return {**event, "count_24h": count, "sum_24h_minor": total, "score": ratio / (1.0 + ratio)}
