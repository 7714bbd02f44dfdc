"""How far a consumer has come in each partition: metrics, and readiness that tells the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass

from infra.checkpoints import TopicPartition
from infra.telemetry.health import Health
from infra.telemetry.metrics import (
    ASSIGNED_PARTITIONS,
    END_OFFSET,
    LAG_MS,
    LAG_RECORDS,
    POSITION,
    WATERMARK_MS,
)

WAITING_SECONDS = 30.0
"""How long saying that one waits for a service holds."""
STILL_SECONDS = 15.0
"""A partition with lag whose position has not moved for this long makes the process not ready."""


@dataclass(slots=True)
class _Place:
    position: int
    moved_at: float
    waiting_ms: float
    """Nothing that was appended before this time waits."""
    event_ms: int = 0


class Progress:
    """The progress of one consumer. Called once a batch and about once a second, never per record."""

    def __init__(self, consumer: str, topics: list[str], health: Health) -> None:
        self._consumer = consumer
        self._topics = topics
        self._health = health
        self._places: dict[TopicPartition, _Place] = {}
        self._waits_until = 0.0

    def positions(self) -> dict[TopicPartition, int]:
        """Where each partition stands; safe to call from another thread."""
        return {at: place.position for at, place in self._places.copy().items()}

    def waits(self, seconds: float) -> None:
        """The consumer waits for a service for so long, and knows it: nothing is stuck."""
        self._waits_until = time.monotonic() + seconds + WAITING_SECONDS

    @property
    def is_waiting(self) -> bool:
        """Whether the consumer has said lately that it waits; safe to call from another thread."""
        return time.monotonic() < self._waits_until

    def taken(self, at: TopicPartition, position: int) -> None:
        """The partition was assigned and is read from `position`."""
        self._places[at] = _Place(position, time.monotonic(), time.time() * 1000)
        self._assigned(at.topic)

    def given_up(self, at: TopicPartition) -> None:
        """The partition was revoked or lost."""
        self._places.pop(at, None)
        self._health.forget(str(at))
        labels = (self._consumer, at.topic, str(at.partition))
        for gauge in (POSITION, END_OFFSET, LAG_RECORDS, LAG_MS, WATERMARK_MS):
            try:
                gauge.remove(*labels)
            except KeyError:
                pass  # never observed
        self._assigned(at.topic)

    def moved(self, at: TopicPartition, position: int, append_ms: int | None = None) -> None:
        """Everything below `position` has taken effect; `append_ms` is the last record's append time."""
        place = self._places.get(at)
        if place is None:
            return
        place.position = position
        place.moved_at = time.monotonic()
        if append_ms is not None:
            place.waiting_ms = append_ms

    def reached(self, at: TopicPartition, event_ms: int) -> None:
        """A batch holds events up to this event time (UTC); older ones than before change nothing."""
        place = self._places.get(at)
        if place is not None and event_ms > place.event_ms:
            place.event_ms = event_ms
            WATERMARK_MS.labels(self._consumer, at.topic, str(at.partition)).set(event_ms)

    def observe(self, ends: dict[TopicPartition, int]) -> None:
        """Compare positions with end offsets: set the gauges, and say which partition stands still."""
        now, now_ms = time.monotonic(), time.time() * 1000
        for at, place in self._places.items():
            end = ends.get(at, place.position)
            lag = max(0, end - place.position)
            labels = (self._consumer, at.topic, str(at.partition))
            POSITION.labels(*labels).set(place.position)
            END_OFFSET.labels(*labels).set(end)
            LAG_RECORDS.labels(*labels).set(lag)
            if lag == 0:
                # After a quiet hour a new record has not been waiting for an hour.
                place.moved_at, place.waiting_ms = now, now_ms
            LAG_MS.labels(*labels).set(max(0.0, now_ms - place.waiting_ms))
            still = now - place.moved_at
            if still > STILL_SECONDS:
                self._health.failing(
                    str(at),
                    f"position {place.position} has stood still for {still:.0f} s, {lag} records wait",
                )
            else:
                self._health.ok(str(at))

    def _assigned(self, topic: str) -> None:
        ASSIGNED_PARTITIONS.labels(self._consumer, topic).set(sum(at.topic == topic for at in self._places))
