"""Looks at the platform from time to time, in threads of its own, so that nobody who shows it has to wait.

Each part is asked by a thread that may hang as long as that part does; every look takes the newest answer of
each. Figures are for people who watch: whether the promise holds is `millrace verify`'s to say.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException

import psutil
from confluent_kafka.admin import AdminClient

from api.console import scrape
from api.console.parts import Part, trouble_of
from infra.broker import CONNECTING, LIBRDKAFKA
from infra.checkpoints import TopicPartition
from infra.codec import RegistryUnavailable
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.supervisor import ProcessState, State, read_report
from infra.topic_log import ends, partitions, starts
from schemas.declare import Pipeline, Pipelines

WATCHED_S = 2.0
UNWATCHED_S = 15.0
WATCHED_FOR_S = 10.0
"""How long after the last sign of a watcher looks stay frequent."""
UNWATCHED_FOR_S = 1800.0
"""How long they go on at all, so that plots have a past."""
SILENT_S = 6.0
"""A part that has not answered for this long is said to be away."""
PATIENCE_S = 1.0
"""How long a look waits for its parts; who answers later is in the next one."""
STARTS_AGAIN_S = 60.0
RATE_S = 6.0
REMEMBERED = 450


@dataclass(frozen=True, slots=True)
class Position:
    """Where a consumer stands in a partition."""

    next_offset: int
    epoch: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Flow:
    """A consumer's reading of a topic. `lag_s` is how long the oldest record that it has still to read has
    been waiting; `at_least` marks one that waited before anybody looked. Quantiles are those
    of a sink's batches, or of a processor's checkpoints."""

    records_per_s: float | None
    lag_records: int | None
    lag_s: float | None
    at_least: bool
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class ProcessLook:
    """A supervised process. `ready` is None where it was not asked or does not answer."""

    name: str
    role: str
    pipeline: str
    state: str
    pid: int | None
    started: float | None
    restarts: int
    port: int
    ready: bool | None
    failing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The platform at one moment, as far as its parts have answered."""

    number: int = 0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    at_s: float = 0.0
    troubles: Mapping[Part, str] = field(default_factory=dict)
    starts: Mapping[TopicPartition, int] = field(default_factory=dict)
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)
    positions: Mapping[tuple[str, TopicPartition], Position] | None = None
    letters: Mapping[str, int] | None = None
    processes: tuple[ProcessLook, ...] = ()
    watermarks: Mapping[tuple[str, TopicPartition], float] = field(default_factory=dict)
    flows: Mapping[tuple[str, str], Flow] = field(default_factory=dict)
    arrivals: Mapping[str, float] = field(default_factory=dict)
    produced: Mapping[tuple[str, str], float] = field(default_factory=dict)
    duplicates: Mapping[str, float] = field(default_factory=dict)

    def position(self, consumer: str, at: TopicPartition) -> int | None:
        """The next offset to read; the log's start where nothing was read yet, None where it is unknown."""
        if self.positions is None:
            return None
        known = self.positions.get((consumer, at))
        return known.next_offset if known is not None else self.starts.get(at)


@dataclass(frozen=True, slots=True)
class Counts:
    """Raw counts of a look, of which the next looks make rates."""

    at_s: float
    ends: Mapping[TopicPartition, int]
    read: Mapping[tuple[str, str], int]
    produced: Mapping[tuple[str, str], float]
    buckets: Mapping[tuple[str, str], Mapping[float, float]]


class _Asker(threading.Thread):
    """Asks one part whenever it is told to, and keeps the last answer, or why there is none."""

    def __init__(self, part: Part, ask: Callable[[], object], end: Callable[[], None] = lambda: None) -> None:
        super().__init__(name=f"console-{part}", daemon=True)
        self.part = part
        self.answer: object | None = None
        self._ask, self._end = ask, end
        self._trouble: str | None = None
        self._asked_s: float | None = None
        self._wake = threading.Event()
        self._over = False

    @property
    def trouble(self) -> str | None:
        asked = self._asked_s
        if asked is not None and time.monotonic() - asked > SILENT_S:
            return f"{self.part} has not answered for {time.monotonic() - asked:.0f} s."
        return self._trouble

    @property
    def busy(self) -> bool:
        return self._wake.is_set() or self._asked_s is not None

    def again(self) -> None:
        """Ask again, now or once the answer that is awaited has come."""
        if self._asked_s is None:
            self._wake.set()

    def close(self) -> None:
        self._over = True
        self._wake.set()

    def run(self) -> None:
        while True:
            self._wake.wait()
            self._asked_s = time.monotonic()
            self._wake.clear()
            if self._over:
                self._end()
                return
            try:
                self.answer = self._ask()
                self._trouble = None
            except Exception as error:
                told = trouble_of(error)
                self._trouble = told.sentence if told else f"{self.part} cannot be asked ({error!r})."
            finally:
                self._asked_s = None


@dataclass(frozen=True, slots=True)
class _FromBroker:
    starts: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class _FromDatabase:
    positions: Mapping[tuple[str, TopicPartition], Position]
    letters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _FromProcesses:
    processes: tuple[ProcessLook, ...]
    watermarks: Mapping[tuple[str, TopicPartition], float]
    waiting_s: Mapping[tuple[str, str], float]
    produced: Mapping[tuple[str, str], float]
    duplicates: Mapping[str, float]
    buckets: Mapping[tuple[str, str], Mapping[float, float]]


class Observer:
    """The looks at one instance. `latest` may be read from any thread; `watched` begins them and keeps them
    frequent."""

    def __init__(self, settings: Settings, pipelines: Pipelines) -> None:
        self._settings = settings
        self._pipelines = pipelines
        topics = [t for p in pipelines for topic in p.topics for t in (topic, topic.dlq)]
        self._partitions = partitions(topics)
        self._by_topic = {t.name: partitions([t]) for t in topics}
        self._readings = [pair for p in pipelines for pair in p.consumers]
        self.latest = Look()
        self.history: deque[Look] = deque(maxlen=REMEMBERED)
        self._counts: deque[Counts] = deque(maxlen=REMEMBERED)
        self._watched_s = float("-inf")
        self._over = threading.Event()
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._admin: AdminClient | None = None
        self._starts: dict[TopicPartition, int] = {}
        self._starts_s = float("-inf")
        self._connection: Connection | None = None

    def watched(self) -> Look:
        """Somebody watches: the newest look. The first ones are empty."""
        now = time.monotonic()
        slow = now - self._watched_s > WATCHED_FOR_S
        self._watched_s = now
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="console-observer", daemon=True)
                self._thread.start()
        if slow:
            self._hurry.set()
        return self.latest

    def first_look(self, seconds: float = 2.5) -> Look:
        """As `watched`, waiting a little for the first look that there is. Blocks."""
        until = time.monotonic() + seconds
        while self.watched().number == 0 and time.monotonic() < until and not self._over.is_set():
            time.sleep(0.05)
        return self.latest

    def close(self) -> None:
        """End the threads; one that hangs in a part that is away ends when that part's time-out does."""
        self._over.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(3.0)

    def _run(self) -> None:
        askers = {
            asker.part: asker
            for asker in (
                _Asker(Part.BROKER, self._ask_broker),
                _Asker(Part.DATABASE, self._ask_database, self._end_database),
                _Asker(Part.PROCESSES, self._ask_processes),
                _Asker(Part.REGISTRY, self._ask_registry),
            )
        }
        for asker in askers.values():
            asker.start()
        try:
            while not self._over.is_set():
                unwatched_s = time.monotonic() - self._watched_s
                if unwatched_s > UNWATCHED_FOR_S:
                    return
                for asker in askers.values():
                    asker.again()
                until = time.monotonic() + PATIENCE_S
                while any(a.busy for a in askers.values()) and time.monotonic() < until:
                    if self._over.wait(0.02):
                        return
                self._take(askers)
                self._hurry.wait(WATCHED_S if unwatched_s < WATCHED_FOR_S else UNWATCHED_S)
                self._hurry.clear()
        finally:
            for asker in askers.values():
                asker.close()
            for asker in askers.values():
                asker.join(1.0)

    # Asking

    def _ask_broker(self) -> _FromBroker:
        if self._admin is None:
            # With a logger: while the broker is away, librdkafka has much to say.
            self._admin = AdminClient(
                {
                    **self._settings.kafka.config(),
                    **CONNECTING,
                    "socket.timeout.ms": 10_000,
                    "log_level": 5,
                },
                logger=LIBRDKAFKA,
            )
        if time.monotonic() - self._starts_s > STARTS_AGAIN_S:
            self._starts = starts(self._admin, self._partitions)
            self._starts_s = time.monotonic()
        return _FromBroker(self._starts, ends(self._admin, self._partitions))

    def _ask_database(self) -> _FromDatabase:
        try:
            if self._connection is None:
                self._connection = connect(self._settings.database_reader_url, "millrace-console")
                self._connection.execute("SET statement_timeout TO '5s'")
            positions = {
                (str(consumer), TopicPartition(str(topic), int(str(n)))): Position(
                    int(str(offset)), int(str(epoch)), at
                )
                for consumer, topic, n, offset, epoch, at in self._connection.execute(
                    "SELECT consumer, topic, partition, next_offset, epoch, updated_at FROM checkpoints"
                )
                if isinstance(at, datetime)
            }
            letters = {
                str(pipeline): int(str(n))
                for pipeline, n in self._connection.execute(
                    "SELECT pipeline, count(*) FROM dead_letters WHERE status IN ('open', 'sending')"
                    " GROUP BY pipeline"
                )
            }
        except Exception:
            self._end_database()
            raise
        return _FromDatabase(positions, letters)

    def _end_database(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _ask_registry(self) -> bool:
        url = f"{self._settings.schema_registry_url}/subjects"
        try:
            with urllib.request.urlopen(url, timeout=3.0) as answer:  # noqa: S310 -- the operator's own address
                return bool(answer.status == 200)
        except (OSError, HTTPException, ValueError) as error:
            raise RegistryUnavailable(str(error)) from error

    def _ask_processes(self) -> _FromProcesses:
        report = read_report(self._settings.home_path)
        found: list[ProcessLook] = []
        watermarks: dict[tuple[str, TopicPartition], float] = {}
        waiting: dict[tuple[str, str], float] = {}
        produced: dict[tuple[str, str], float] = defaultdict(float)
        duplicates: dict[str, float] = defaultdict(float)
        buckets: dict[tuple[str, str], dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for p in report.processes if report else ():
            alive = p.pid is not None and psutil.pid_exists(p.pid)
            # The registry has no metrics, and what the API says of itself is what this page shows.
            asked = alive and p.role in ("connector", "processor", "sink")
            told = scrape.ask(p.port) if asked else None
            found.append(_process(p, alive, told))
            samples = told or {}
            for (consumer, number, topic), ms in samples.get("millrace_watermark_ms", {}).items():
                watermarks[consumer, TopicPartition(topic, int(number))] = ms
            for (consumer, _, topic), ms in samples.get("millrace_lag_ms", {}).items():
                waiting[consumer, topic] = max(waiting.get((consumer, topic), 0.0), ms / 1000)
            for (producer, topic), n in samples.get("millrace_records_produced_total", {}).items():
                produced[producer, topic] += n
            for (consumer, _), n in samples.get("millrace_duplicates_total", {}).items():
                duplicates[consumer] += n
            # A sink's batch is stored as a whole; what a processor does takes effect with its checkpoint.
            timed = "batch" if p.role == "sink" else "checkpoint"
            for (consumer, le, topic), n in samples.get(f"millrace_{timed}_seconds_bucket", {}).items():
                buckets[consumer, topic if p.role == "sink" else ""][float(le)] += n
        return _FromProcesses(
            tuple(found), watermarks, waiting, dict(produced), dict(duplicates),
            {k: dict(v) for k, v in buckets.items()},
        )  # fmt: skip

    # Putting a look together

    def _take(self, askers: Mapping[Part, _Asker]) -> None:
        broker, database = askers[Part.BROKER].answer, askers[Part.DATABASE].answer
        processes = askers[Part.PROCESSES].answer
        troubles = {part: told for part, asker in askers.items() if (told := asker.trouble) is not None}
        # What a part said before it went away is not shown as if it were so now.
        said = broker if isinstance(broker, _FromBroker) and Part.BROKER not in troubles else None
        stored = database if isinstance(database, _FromDatabase) and Part.DATABASE not in troubles else None
        seen = processes if isinstance(processes, _FromProcesses) else None
        if said is None and stored is None and not troubles:
            return  # nobody has answered yet
        end = said.ends if said else {}
        begin = said.starts if said else {}
        read: dict[tuple[str, str], int] = {}
        if stored is not None:
            for consumer, topic in self._readings:
                read[consumer, topic.name] = sum(
                    stored.positions[consumer, at].next_offset
                    if (consumer, at) in stored.positions
                    else begin.get(at, 0)
                    for at in self._by_topic[topic.name]
                )
        now = Counts(time.monotonic(), end, read, seen.produced if seen else {}, seen.buckets if seen else {})
        self._counts.append(now)
        before = next(c for c in self._counts if c.at_s >= now.at_s - RATE_S or c is now)
        look = Look(
            number=self.latest.number + 1,
            at_s=now.at_s,
            troubles=troubles,
            starts=begin,
            ends=end,
            positions=stored.positions if stored else None,
            letters=stored.letters if stored else None,
            processes=seen.processes if seen else (),
            watermarks=seen.watermarks if seen else {},
            flows={
                (consumer, topic.name): self._flow(consumer, topic.name, stored, seen, now, before)
                for consumer, topic in self._readings
            },
            arrivals={
                name: _per_s(sum(end[at] - before.ends[at] for at in ats), now.at_s - before.at_s)
                for name, ats in self._by_topic.items()
                if before is not now and all(at in end and at in before.ends for at in ats)
            },
            produced={
                key: _per_s(n - before.produced[key], now.at_s - before.at_s)
                for key, n in now.produced.items()
                if before is not now and n >= before.produced.get(key, n + 1)
            },
            duplicates=seen.duplicates if seen else {},
        )
        self.history.append(look)
        self.latest = look

    def _flow(
        self,
        consumer: str,
        topic: str,
        stored: _FromDatabase | None,
        seen: _FromProcesses | None,
        now: Counts,
        before: Counts,
    ) -> Flow:
        key, ats = (consumer, topic), self._by_topic[topic]
        passed = (
            _per_s(now.read[key] - before.read[key], now.at_s - before.at_s)
            if before is not now and key in now.read and key in before.read
            else None
        )
        p50 = p95 = None
        timed = key if key in now.buckets else (consumer, "")
        if timed in now.buckets and timed in before.buckets:
            gained = {le: n - before.buckets[timed].get(le, 0.0) for le, n in now.buckets[timed].items()}
            p50, p95 = scrape.quantile(gained, 0.5), scrape.quantile(gained, 0.95)
        if stored is None or not all(at in now.ends for at in ats):
            return Flow(passed, None, None, False, p50, p95)
        lag_records, lag_s, at_least = 0, 0.0, False
        for at in ats:
            known = stored.positions.get((consumer, at))
            position = known.next_offset if known else self._starts.get(at, 0)
            if position >= now.ends[at]:
                continue
            lag_records += now.ends[at] - position
            first = next((c for c in self._counts if c.ends.get(at, -1) > position), now)
            waited = now.at_s - first.at_s
            if waited >= lag_s:
                lag_s, at_least = waited, first is self._counts[0] and first is not now
        told = (seen.waiting_s if seen else {}).get(key, 0.0)
        if lag_records and told > lag_s:
            lag_s, at_least = told, False
        return Flow(passed, lag_records, lag_s, at_least, p50, p95)


def readers(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Who reads what in a pipeline, by name, without the sink's reading of dead letters."""
    letters = {t.dlq.name for t in pipeline.topics}
    for consumer, topic in pipeline.consumers:
        if topic.name not in letters:
            yield consumer, topic.name


def _per_s(gained: float, seconds: float) -> float:
    return max(0.0, gained) / seconds if seconds > 0 else 0.0


def _process(p: ProcessState, alive: bool, samples: scrape.Samples | None) -> ProcessLook:
    state = str(p.state)
    if p.state is State.RUNNING and not alive:
        state = "gone"
    ready = (samples or {}).get("millrace_ready", {}).get(())
    failing = tuple(
        name for (name,), holds in (samples or {}).get("millrace_condition", {}).items() if not holds
    )
    return ProcessLook(
        name=p.name,
        role=p.role,
        pipeline=p.pipeline,
        state=state,
        pid=p.pid if alive else None,
        started=p.started,
        restarts=p.restarts,
        port=p.port,
        ready=None if ready is None else bool(ready),
        failing=failing,
    )
