"""Simulated traffic: the steps that a domain yields, and the engine that sends them at a rate.

The engine is an honest client: it repeats what was not acknowledged, byte for byte, until it is. So a
gateway that is killed loses no step, and a repeated one carries the same event id.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from confluent_kafka import KafkaError, Message, Producer
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from infra.broker import producer
from infra.settings import Settings
from schemas.declare import Pipelines, Topic

STEPS_PER_SECOND = 25.0
"""The rate of a domain whose traffic module names no `STEPS_PER_SECOND` of its own."""
AT_ONCE = 32
"""Most steps of one domain that wait for their acknowledgement; more are held back, none is dropped."""
REQUEST_S = 15.0
PAUSE_FIRST_S = 0.1
PAUSE_MOST_S = 2.0
TRY_AGAIN = frozenset({408, 425, 429})


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


class TrafficError(RuntimeError):
    """Steps were not acknowledged in time; the message says how many, and what they met last."""


@dataclass(slots=True)
class Tally:
    """What became of a domain's steps. `trouble` is what the last repetition or refusal met."""

    acknowledged: int = 0
    refused: int = 0
    repeated: int = 0
    waiting: int = 0
    trouble: str = ""


class Again(Exception):
    """The step was not acknowledged; the outcome is unknown, so it is sent again."""


class Refused(Exception):
    """The step was answered: it is not acceptable and will never be."""


class Sender:
    """Sends steps to one instance. Used on one event loop, as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._http = httpx.AsyncClient(
            base_url=settings.gateway_url,
            timeout=REQUEST_S,
            limits=httpx.Limits(max_connections=64),
            trust_env=False,
        )
        self._proof: dict[str, str] = {}
        self._mqtt: Client | None = None
        self._connecting = asyncio.Lock()
        self._producer: Producer | None = None
        self._published: dict[int, asyncio.Future[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        if self._mqtt is not None:
            self._mqtt.disconnect()
            await asyncio.to_thread(self._mqtt.loop_stop)

    async def send(self, step: Step) -> None:
        """Send once; returns when acknowledged. Raises `Again` where it was not, `Refused` where it
        never will be."""
        match step:
            case Http():
                await self._request(step)
            case Mqtt():
                await self._publish(step)
            case Raw():
                await self._produce(step)

    async def _request(self, step: Http) -> None:
        # A first start makes the key while traffic waits for the gateway.
        self._proof = self._proof or self._settings.client_headers
        try:
            answer = await self._http.request(
                step.method,
                step.path,
                json=step.json,
                files=step.files,
                content=step.content,
                headers={**self._proof, **step.headers},
            )
        except httpx.TransportError as error:
            raise Again(f"{type(error).__name__} {error}".strip()) from error
        if answer.status_code >= 500 or answer.status_code in TRY_AGAIN:
            raise Again(f"{step.method} {step.path}: {answer.status_code} {answer.text[:200]}")
        if answer.status_code >= 400:
            raise Refused(f"{step.method} {step.path}: {answer.status_code} {answer.text[:200]}")

    async def _publish(self, step: Mqtt) -> None:
        async with self._connecting:
            if self._mqtt is None:
                self._mqtt = await asyncio.to_thread(self._connect)
        info = self._mqtt.publish(step.topic, step.payload, qos=1)
        # paho itself repeats it after a reconnect, until the PUBACK comes.
        acknowledged = self._published.setdefault(info.mid, self._loop.create_future())
        await acknowledged
        del self._published[info.mid]

    def _connect(self) -> Client:
        at = urlsplit(self._settings.mqtt_url)
        client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"traffic-{time.time_ns()}", clean_session=False
        )
        if at.username:
            client.username_pw_set(at.username, at.password)
        client.reconnect_delay_set(1, 5)
        client.on_publish = self._on_publish
        try:
            client.connect(at.hostname or "127.0.0.1", at.port or 1883, keepalive=20)
        except OSError as error:
            raise Again(f"MQTT broker: {error}") from error
        client.loop_start()
        return client

    def _on_publish(self, client: Client, userdata: Any, mid: int, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._puback, mid)

    def _puback(self, mid: int) -> None:
        # The PUBACK may overtake the publisher, which then finds its future resolved.
        future = self._published.setdefault(mid, self._loop.create_future())
        if not future.done():
            future.set_result(None)

    async def _produce(self, step: Raw) -> None:
        if self._producer is None:
            self._producer = producer(self._settings.kafka)
        delivered: asyncio.Future[KafkaError | None] = self._loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            delivered.set_result(error)

        self._producer.produce(step.topic.name, step.value, step.key, on_delivery=report)
        while not delivered.done():
            self._producer.poll(0)
            await asyncio.sleep(0.01)
        refused = delivered.result()
        if refused is not None:
            raise Again(f"{step.topic.name}: {refused.str()}")


async def deliver(step: Step, send: Callable[[Step], Awaitable[None]], tally: Tally) -> None:
    """Send a step until it is answered, with growing pauses."""
    pause_s = PAUSE_FIRST_S
    tally.waiting += 1
    try:
        while True:
            try:
                await send(step)
                tally.acknowledged += 1
                return
            except Refused as refused:
                tally.refused += 1
                tally.trouble = str(refused)
                return
            except Again as again:
                tally.repeated += 1
                tally.trouble = str(again)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MOST_S)
    finally:
        tally.waiting -= 1


async def drive(
    steps: Iterator[Step],
    steps_per_second: float,
    send: Callable[[Step], Awaitable[None]],
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """Start a step whenever one is due, whether or not earlier ones are answered (open loop).

    Returns when `stop` is set, or there are no more steps, and every step that was started is answered.
    """
    room = asyncio.Semaphore(AT_ONCE)
    tasks: set[asyncio.Task[None]] = set()
    due = time.monotonic()

    def ended(task: asyncio.Task[None]) -> None:
        room.release()
        tasks.discard(task)

    while not stop.is_set():
        early_s = due - time.monotonic()
        if early_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), early_s)
            continue
        # After a long hold-up the missed steps are not made up for in one burst.
        due = max(due, time.monotonic() - 1.0) + 1.0 / steps_per_second
        step = next(steps, None)
        if step is None:
            break
        await room.acquire()
        task = asyncio.create_task(deliver(step, send, tally))
        tasks.add(task)
        task.add_done_callback(ended)
    if tasks:
        await asyncio.gather(*tasks)


def find_steps(pipelines: Pipelines) -> dict[str, tuple[Steps, float]]:
    """The `steps` of each pipeline's traffic module, with its rate; those without a module are left out."""
    found: dict[str, tuple[Steps, float]] = {}
    for pipeline in pipelines:
        name = f"connectors.{pipeline.name}.traffic"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise
        found[pipeline.name] = (module.steps, getattr(module, "STEPS_PER_SECOND", STEPS_PER_SECOND))
    return found


class Traffic:
    """Traffic of several domains at once, on a thread of its own; `tallies` may be read at any time."""

    def __init__(
        self,
        settings: Settings,
        domains: Mapping[str, tuple[Steps, float]],
        *,
        steps_per_second: float | None = None,
        seed: int | None = None,
    ) -> None:
        """`steps_per_second` replaces each domain's own rate. A `seed` repeats a run, ids included."""
        self.tallies = {name: Tally() for name in domains}
        self._settings = settings
        self._domains = domains
        self._rate = steps_per_second
        self._seed = time.time_ns() if seed is None else seed
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._looping.wait()

    def check(self) -> None:
        """Raise what has ended the traffic early, if anything has: a domain's `steps` may be at fault."""
        if self._failure is not None:
            raise self._failure

    def stop(self, deadline_s: float = 60.0) -> None:
        """Start no more steps and wait for those under way. Raises `TrafficError` after the deadline."""
        if self._loop is None:
            return
        with suppress(RuntimeError):  # the loop is closed: the traffic has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(deadline_s)
        self.check()
        if self._thread.is_alive():
            late = {n: t for n, t in self.tallies.items() if t.waiting}
            told = "; ".join(f"{n}: {t.waiting} ({t.trouble or 'no answer'})" for n, t in late.items())
            raise TrafficError(f"steps were not acknowledged within {deadline_s:.0f} s: {told}")

    def _run(self) -> None:
        try:
            asyncio.run(self._drive_all())
        except BaseException as error:
            self._failure = error

    async def _drive_all(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._looping.set()
        async with Sender(self._settings) as sender, asyncio.TaskGroup() as group:
            for name, (steps, rate) in self._domains.items():
                group.create_task(
                    drive(
                        steps(Random(f"{self._seed}/{name}"), _now_ms),  # noqa: S311 - simulation
                        self._rate or rate,
                        sender.send,
                        self.tallies[name],
                        self._stop,
                    )
                )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
