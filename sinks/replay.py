"""The sink as a stage of a replay: the same writer, into the run's own tables or, in place, the live ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.broker import PartitionBatch, result_producer
from infra.checkpoints import Claim, LogBounds, TopicPartition
from infra.codec import Codec
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import Pipeline, Topic
from sinks.rows import RowMapping
from sinks.writer import Writer


class SinkStage:
    """Stores results and dead letters of a replay. Positions are those that `database_url` finds."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        mappings: Sequence[RowMapping],
        codec: Codec,
        database_url: str,
        *,
        in_place: bool,
    ) -> None:
        self.name = pipeline.sink_name
        letters = {t.dlq.name: t.dlq for t in pipeline.topics}
        self.topics: tuple[Topic, ...] = (*pipeline.sink_topics, *letters.values())
        self.batch_records = settings.number("batch_records")
        self._writer = Writer(
            pipeline,
            mappings,
            codec,
            result_producer(settings.kafka),
            database_url,
            Progress(self.name, [t.name for t in pipeline.sink_topics], Health()),
            replaying=not in_place,
        )

    def claim(self, logs: Mapping[TopicPartition, LogBounds]) -> Mapping[TopicPartition, Claim]:
        return self._writer.claim(logs)

    def process(self, batches: list[PartitionBatch]) -> None:
        self._writer.write(batches)

    def checkpoint(self) -> None:
        """Nothing: every batch was committed."""

    def close(self) -> None:
        self._writer.close()
