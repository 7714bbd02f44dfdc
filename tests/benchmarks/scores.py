"""Scores as records on their topic, for tests of checkers."""

from __future__ import annotations

from typing import Any

from benchmarks.transactions import topic
from infra.codec import write_body

SCORES = topic("scores", "scores")


def record(event: dict[str, Any]) -> bytes:
    """The value of a score's record."""
    return b"\0\0\0\0\1" + write_body(SCORES.schema, event)
