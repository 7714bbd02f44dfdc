"""A processor as a stage of a replay: without Faust or a group, its state in the run's own schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.broker import PartitionBatch, result_producer
from infra.checkpoints import Claim, LogBounds, TopicPartition
from infra.codec import Codec
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import Pipeline, Processor
from streams.decide import Logic
from streams.runner import Runner


class ProcessorStage:
    """Decides like the live processor, by the same runner. `processor` is that of the replayed pipeline.

    Its checkpoints, state and activations are those that `database_url` finds: the run's own.
    """

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        processor: Processor,
        logic: Logic[Any],
        codec: Codec,
        database_url: str,
        held_back: frozenset[str],
    ) -> None:
        self.name = processor.name
        self.topics = processor.sources
        most = settings.number("batch_records")
        self.batch_records = min(most, processor.batch_records or most)
        self._runner = Runner(
            pipeline,
            processor,
            logic,
            codec,
            result_producer(settings.kafka),
            database_url,
            Progress(processor.name, [t.name for t in processor.sources], Health()),
            held_back=held_back,
        )

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> Mapping[TopicPartition, Claim]:
        return self._runner.claim(logs)

    def process(self, batches: list[PartitionBatch]) -> None:
        self._runner.apply(self._runner.prepare(batches))

    def checkpoint(self) -> None:
        self._runner.checkpoint()

    def close(self) -> None:
        self._runner.close()
