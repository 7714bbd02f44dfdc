"""Simulated traffic: the steps that a domain's `connectors/<domain>/traffic.py` yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from schemas.declare import Topic


@dataclass(frozen=True, slots=True)
class Http:
    """A request to the gateway. It is sent again, byte for byte, until it is answered with 2xx or 4xx.

    So its body must carry the event's id. Give one of `json`, `files` (multipart form: field name to file
    name, content and content type) or `content` (with its Content-Type in `headers`).
    """

    method: str
    path: str
    json: Any = None
    files: Mapping[str, tuple[str, bytes, str]] | None = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mqtt:
    """A message to the MQTT broker, quality of service 1."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """A record put on the topic past every connector: how poison reaches the processors."""

    topic: Topic
    key: bytes
    value: bytes


Step = Http | Mqtt | Raw

Steps = Callable[[Random, Callable[[], int]], Iterator[Step]]
"""A domain's `steps(rng, now_ms)`: endless lifelike traffic, drawn from `rng` and the clock alone."""
