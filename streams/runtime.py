"""Faust supervises; batches flow. One worker process runs all processors of a pipeline.

Faust starts and stops the agents, restarts one that fails, and runs the timers. It does not consume: its
own consumer commits past records in flight and clears every channel when its group rebalances. A feeder
per processor polls `infra.broker.Source` and hands whole batches to the agent through a channel, holding
each batch until the agent has answered for it: an agent that is restarted never loses the batch in hand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import faust
from faust.app.base import BootStrategy

from infra.broker import PartitionBatch, Source, result_producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec, RegistryUnavailable
from infra.dead_letter_limit import DeadLetterLimit
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.telemetry.metrics import TRANSIENT_ERRORS
from schemas.declare import Pipeline
from streams.compaction import Compactor
from streams.database import Transient
from streams.decide import LogicFactory
from streams.runner import Prepared, Runner

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
GATHERING = {"fetch.min.bytes": 16_384, "fetch.wait.max.ms": 25}
"""What comes within this time is fetched and decided at once: a batch of few records costs broker and
processor nearly what one of many does, and most of two cores at 5,000 records a second."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
OBSERVE_SECONDS = 1.0
HOLD_SECONDS = 0.3
"""How often it is asked whether a swap holds the processor."""
TAKEN_SECONDS = 1.0

T = TypeVar("T")


@dataclass(slots=True)
class Work:
    """A batch on its way to the agent, and the promise that the agent keeps when it is applied."""

    prepared: list[Prepared]
    done: asyncio.Future[None]
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class _BatchBoot(BootStrategy):
    """Agents, and nothing of Faust's own Kafka clients, web server or sensors (they count single events)."""

    enable_kafka = False
    enable_kafka_consumer = False
    enable_kafka_producer = False
    enable_web = False
    enable_sensors = False


class BatchApp(faust.App):
    """A Faust app whose agents are fed batches through channels."""

    BootStrategy = _BatchBoot


class Feeder:
    """Polls one processor's source, hands the batches to its agent and checkpoints. One per processor."""

    def __init__(self, settings: Settings, runner: Runner, app: BatchApp, instance_id: str) -> None:
        self.runner = runner
        self.name = runner.processor.name
        self._channel = app.channel(maxsize=1)
        app.agent(self._channel, name=self.name)(self._serve)
        self._checkpoint_seconds = settings.number("checkpoint_interval_ms") / 1000
        most = settings.number("batch_records")
        self._batch_records = min(most, runner.processor.batch_records or most)
        # One thread: whatever blocks (poll, decode, database) is in order, and never in the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=runner.processor.name)
        self._source = Source(
            settings.kafka,
            runner.processor.name,
            [t.name for t in runner.processor.sources],
            claim=runner.claim,
            release=runner.release,
            instance_id=instance_id,
            **GATHERING,
        )
        self._stopping = False
        self._failures = 0

    async def _serve(self, works: faust.StreamT[Work]) -> None:
        """The agent. No exception leaves it: Faust would restart it without the batch it held."""
        async for work in works:
            if work.taken.is_set():
                continue  # handed over twice around a restart of the agent
            work.taken.set()
            try:
                self.runner.apply(work.prepared)
            except Exception as error:
                work.done.set_exception(error)
            else:
                work.done.set_result(None)

    async def feed(self) -> None:
        """Run until `stop`; leave the group with everything committed. Raises what no retry mends."""
        try:
            await self._feed()
            await self._blocking(self._source.close)
        finally:
            # Not the source: its group would be left with a checkpoint, after a defect of a torn state.
            await self._blocking(self.runner.close)

    async def _feed(self) -> None:
        loop = asyncio.get_running_loop()
        checkpointed = observed = asked = loop.time()
        while not self._stopping:
            work: Work | None = None
            batches: list[PartitionBatch] = []
            try:
                if self._failures and self.runner.dirty:
                    # What was applied before the failure is committed first, or a long outage would pile up.
                    await self._hint(await self._blocking(self.runner.checkpoint))
                batches = await self._blocking(self._source.poll, self._batch_records, POLL_SECONDS)
                self.runner.forget_lost(self._source.assignment)
                if batches:
                    work = Work(await self._blocking(self.runner.prepare, batches), loop.create_future())
                    await self._hand_over(work)
                if self.runner.committed:
                    await self._hint(await self._blocking(self.runner.end_checkpoint))
                if (
                    self.runner.dirty
                    and not self.runner.checkpointing
                    and loop.time() - checkpointed >= self._checkpoint_seconds
                ):
                    checkpointed = loop.time()
                    await self._blocking(self.runner.begin_checkpoint)
                if loop.time() - asked >= HOLD_SECONDS:
                    asked = loop.time()
                    if await self._blocking(self.runner.give_up_for_swap):
                        await self._blocking(self._source.give_back)
                self._failures = 0
            except (Transient, RegistryUnavailable) as error:
                # Applied batches keep their place in the state; others are read again.
                await self._wait_out(error, [] if work is not None else batches)
            if loop.time() - observed >= OBSERVE_SECONDS:
                observed = loop.time()
                self.runner.progress.observe(await self._blocking(self._source.end_offsets))

    def stop(self) -> None:
        self._stopping = True

    async def _hand_over(self, work: Work) -> None:
        while not work.taken.is_set():
            # An agent that is being restarted has no queue, and what is sent then goes nowhere.
            await self._channel.send(value=work)
            try:
                await asyncio.wait_for(work.taken.wait(), TAKEN_SECONDS)
            except TimeoutError:
                log.warning("the agent takes no batch", extra={"consumer": self.name})
        await work.done

    async def _hint(self, positions: Mapping[TopicPartition, int]) -> None:
        if positions:
            await self._blocking(self._source.hint, positions)

    async def _wait_out(self, error: Exception, unread: list[PartitionBatch]) -> None:
        """Pause but go on polling (the group must not take us for dead); read unapplied batches again."""
        wait = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
        self._failures += 1
        for topic in {t.name for t in self.runner.processor.sources}:
            TRANSIENT_ERRORS.labels(self.name, topic).inc()
        log.warning(
            "waiting for a service",
            extra={"consumer": self.name, "reason": str(error), "seconds": wait},
        )
        self.runner.progress.waits(wait)
        await self._blocking(self._source.rewind, unread)
        await self._blocking(self._source.idle, wait)

    async def _blocking(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args))


class Worker:
    """The processors of one pipeline in one process, under Faust. `instance` tells workers apart."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        logics: dict[str, LogicFactory],
        health: Health,
        instance: str = "0",
        compaction: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        """`compaction`: the command that makes a processor's snapshots (see `streams.compaction`)."""
        self._health = health
        data = settings.home_path / "faust" / f"{pipeline.name}-{instance}"
        data.mkdir(parents=True, exist_ok=True)  # Faust makes the last folder only
        self._app = BatchApp(
            f"millrace-{pipeline.name}",
            broker="kafka://127.0.0.1:1",  # never dialled: see _BatchBoot
            web_enabled=False,
            datadir=str(data),
        )
        self._codec = codec = Codec(settings.schema_registry_url)
        self._feeders = [
            Feeder(
                settings,
                Runner(
                    pipeline,
                    processor,
                    logics[processor.name](),
                    codec,
                    result_producer(settings.kafka),
                    lambda: settings.database_url,
                    Progress(processor.name, [t.name for t in processor.sources], health),
                    DeadLetterLimit(processor.name, settings.number("dead_letter_limit_pct")),
                    compactor=Compactor(compaction(processor.name), settings.environ)
                    if compaction is not None and processor.stateful
                    else None,
                ),
                self._app,
                f"{processor.name}-{instance}",
            )
            for processor in pipeline.processors
        ]

    @property
    def progresses(self) -> list[Progress]:
        """How far each processor is, for the watchdog."""
        return [f.runner.progress for f in self._feeders]

    async def run(self, ending: asyncio.Event) -> None:
        """Run until `ending` is set, then checkpoint and leave. Raises what a feeder could not mend."""
        await self._app.start()
        # Without a consumer of Faust's own nobody would ever open the gate that agents wait behind.
        self._app.flow_control.resume()
        feeding = [asyncio.create_task(f.feed(), name=f.name) for f in self._feeders]
        stopping = asyncio.create_task(ending.wait())
        self._health.ok("running")
        try:
            await asyncio.wait([stopping, *feeding], return_when=asyncio.FIRST_COMPLETED)
            for feeder in self._feeders:
                feeder.stop()
            # The others end in order: one processor's failure costs them no checkpoint.
            ended = await asyncio.gather(*feeding, return_exceptions=True)
            for failure in ended:
                if isinstance(failure, BaseException):
                    raise failure
        finally:
            stopping.cancel()
            await self._app.stop()
            # Faust makes its consumer's thread, never started here, an event loop, and leaves it open.
            if (unused := getattr(self._app.consumer, "_thread", None)) is not None:
                unused.thread_loop.close()
            self._codec.close()
