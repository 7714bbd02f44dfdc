"""The loop of a sink process: poll, write, hint; wait out what passes."""

from __future__ import annotations

import logging
import threading
import time

from infra.broker import PartitionBatch, Source, result_producer
from infra.codec import Codec, RegistryUnavailable
from infra.dead_letter_limit import DeadLetterLimit
from infra.generations import sink_url
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.telemetry.metrics import TRANSIENT_ERRORS
from schemas.declare import Pipeline
from sinks.outbox import Outbox, Told
from sinks.rows import RowMapping
from sinks.writer import Transient, Writer

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
GATHERING = {"fetch.min.bytes": 131_072, "fetch.wait.max.ms": 100}
"""What comes within this time is fetched at once and stored by one transaction: each waits for the disk."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
OBSERVE_SECONDS = 1.0


class Sink:
    """The sink of one pipeline in one process. `instance` tells workers apart; `told` goes to the outbox."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        mappings: tuple[RowMapping, ...],
        health: Health,
        instance: str = "0",
        told: Told | None = None,
    ) -> None:
        self._health = health
        self._batch_records = settings.number("batch_records")
        self.ending = threading.Event()
        self.progress = Progress(pipeline.sink_name, [t.name for t in pipeline.sink_topics], health)
        self._codec = Codec(settings.schema_registry_url)
        self.writer = Writer(
            pipeline,
            mappings,
            self._codec,
            result_producer(settings.kafka),
            lambda: sink_url(settings.database_sink_url),
            self.progress,
            DeadLetterLimit(pipeline.sink_name, settings.number("dead_letter_limit_pct")),
            outbox=Outbox(told, told.table.topic.name, pipeline.sink_name) if told else None,
        )
        self._source = Source(
            settings.kafka,
            pipeline.sink_name,
            self.writer.topics,
            claim=self.writer.claim,
            release=self.writer.release,
            instance_id=f"{pipeline.sink_name}-{instance}",
            **GATHERING,
        )

    def run(self) -> None:
        """Run until `ending` is set, then leave the group. Raises what no waiting mends."""
        self._health.ok("running")
        failures = 0
        observed = 0.0
        try:
            while not self.ending.is_set():
                batches: list[PartitionBatch] = []
                try:
                    batches = self._source.poll(self._batch_records, POLL_SECONDS)
                    self.writer.forget_lost(self._source.assignment)
                    if batches:
                        self._source.hint(self.writer.write(batches).positions)
                    failures = 0
                except (Transient, RegistryUnavailable) as error:
                    wait = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
                    failures += 1
                    TRANSIENT_ERRORS.labels(self.writer.name, "").inc()
                    log.warning(
                        "waiting for a service",
                        extra={"consumer": self.writer.name, "reason": str(error), "seconds": wait},
                    )
                    self.progress.waits(wait)
                    self._source.rewind(batches)
                    self._source.idle(wait)
                if time.monotonic() - observed >= OBSERVE_SECONDS:
                    observed = time.monotonic()
                    self.progress.observe(self._source.end_offsets())
        finally:
            self._source.close()
            self.writer.close()
            self._codec.close()
