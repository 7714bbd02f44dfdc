"""Rows of files as events: what a domain declares (`FileSource`), and the engine of `millrace ingest`.

Every record carries the header `millrace-ingest`: which file it comes from and which of the file's events
it is. What is in the topic is therefore the truth about what was sent; an ingest that was killed reads it
and goes on with the first event that is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from confluent_kafka import KafkaError, KafkaException, Message

from infra.broker import admin, producer, topic_ids
from infra.codec import Codec, RegistryUnavailable, Unencodable
from infra.columns import Columns
from infra.settings import Settings
from infra.topic_log import LogUnreadable, ends, partitions, read, starts
from schemas.declare import Pipeline, Topic

Event = dict[str, Any]
"""A decoded value: timestamps are integers in the schema's unit (UTC), never datetimes."""

Events = Callable[[pa.RecordBatch, int], Iterator[tuple[Topic, Event]]]
"""Events of a batch of rows, in row order; the integer is the file's row number of the first row.

Pure and deterministic: the same file gives the same events with the same ids in the same order, or a
second ingest could not know what the first has sent.
"""

EventColumns = Callable[[pa.RecordBatch, int], pa.RecordBatch | None]
"""The same events as the columns of their topic's schema (`infra.columns`), where each row of the batch gives
exactly one, of the source's own topic; None where these rows must be made into events one by one."""

HEADER = "millrace-ingest"
BATCH_ROWS = 8_192
NOTE_EVENTS = 100_000
NOTE_S = 5.0
SETTLE_S = 0.5
"""Requests of a killed ingest may still be on their way into the log for a moment."""
DELIVERY_S = 120.0
REFUSED_SHOWN = 10


class IngestError(RuntimeError):
    """A file that cannot be ingested, or not to its end; the message names the reason and the remedy."""


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A kind of file that a domain can ingest, recognised by its columns.

    `topic` is the topic that most rows go to. `whole` names a column whose consecutive equal values
    belong together (the lines of an invoice): batches are never cut between such rows. `event_columns` is
    for large files: what it gives for a batch must be what `events` gives.
    """

    name: str
    topic: Topic
    columns: frozenset[str]
    events: Events
    whole: str | None = None
    event_columns: EventColumns | None = None


@dataclass(kw_only=True)
class Ingested:
    """How far an ingest is. `already` counts events that an earlier run had sent; `refused` says which
    rows are no events, the first few with their reason."""

    source: str
    rows_total: int | None
    rows: int = 0
    events: int = 0
    sent: int = 0
    already: int = 0
    refused_total: int = 0
    refused: list[str] = field(default_factory=list)
    seconds: float = 0.0
    finished_before: str | None = None


@dataclass
class _Note:
    """What is written down now and then: all events before `durable` are in the topics, those after it
    lie at or after `next`. Without it the topics would have to be read from their start."""

    topics: dict[str, str]
    durable: int = 0
    next: dict[str, int] = field(default_factory=dict)
    finished: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


def ingest(
    settings: Settings,
    pipeline: Pipeline,
    path: Path,
    *,
    sources: Iterable[FileSource] | None = None,
    events_per_second: float | None = None,
    progress: Callable[[Ingested], None] = lambda _: None,
) -> Ingested:
    """Send the file's events into the pipeline's topics, each exactly once over any number of runs.

    `sources` are the domain's own, `connectors/<domain>/files.py`, unless given. `progress` is called
    often with how far it is. Raises `IngestError`; the same call then goes on where this one ended.
    """
    began = time.monotonic()
    rows, source, rows_total = _open(path, tuple(sources or _sources(pipeline.name)))
    ingest_id = _identify(path, f"{pipeline.name}/{source.name}")
    folder = settings.home_path / "ingest"
    folder.mkdir(parents=True, exist_ok=True)
    done = Ingested(source=source.name, rows_total=rows_total)
    try:
        with (
            _alone(folder / f"{ingest_id}.lock", path),
            closing(Codec(settings.schema_registry_url)) as codec,
        ):
            run = _Run(settings, pipeline, source, codec, ingest_id, folder / f"{ingest_id}.json", done)
            if not run.finished_before():
                run.send(rows, events_per_second, progress)
    except (KafkaException, LogUnreadable, RegistryUnavailable) as error:
        raise IngestError(
            f"{path.name}: {error}; run the same command again, it goes on from there"
        ) from error
    done.seconds = time.monotonic() - began
    return done


class _Run:
    """One run of an ingest, under its lock."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        source: FileSource,
        codec: Codec,
        ingest_id: str,
        note_path: Path,
        done: Ingested,
    ) -> None:
        self.access = settings.kafka
        self.source = source
        self.ingest_id = ingest_id
        self.done = done
        self.codec = codec
        self.columns = Columns(codec, source.topic) if source.event_columns is not None else None
        self.admin = admin(self.access)
        self.partitions = partitions({t.name: t for t in (source.topic, *pipeline.inputs)}.values())
        self.note_path = note_path
        ids = topic_ids(self.access, {p.topic for p in self.partitions})
        note = _read_note(note_path)
        # Topics that were created anew hold nothing of what was once sent.
        self.note = note if note is not None and note.topics == ids else _Note(ids)
        self.failure: KafkaError | None = None

    def finished_before(self) -> bool:
        """Whether an earlier run has sent the whole file; then its figures are in `done`."""
        if self.note.finished is None:
            return False
        self.done.finished_before = self.note.finished
        self.done.rows = self.note.result["rows"]
        self.done.events = self.done.already = self.note.result["events"]
        self.done.refused_total = self.note.result["refused_total"]
        return True

    def send(
        self,
        rows: Iterator[pa.RecordBatch],
        events_per_second: float | None,
        progress: Callable[[Ingested], None],
    ) -> None:
        sent_before = self._sent_before()
        self.sender = producer(
            self.access,
            **{
                "linger.ms": 50,
                "delivery.report.only.error": True,
                "message.timeout.ms": int(DELIVERY_S * 1000),
            },
        )
        done, first_row = self.done, 0
        began = noted = time.monotonic()
        noted_events = 0
        try:
            for batch in whole_batches(rows, self.source.whole):
                for topic, key, value in self._records(batch, first_row):
                    number = done.events
                    done.events += 1
                    if number < self.note.durable or sent_before.has(number):
                        done.already += 1
                        continue
                    if isinstance(value, Unencodable):
                        self._refuse(number, value)
                        continue
                    self._produce(topic, key, value, number)
                    if events_per_second is not None:
                        self._wait_until(began + done.sent / events_per_second, progress)
                first_row = done.rows = first_row + batch.num_rows
                progress(done)
                now = time.monotonic()
                if done.sent and (now > noted + NOTE_S or done.sent > noted_events + NOTE_EVENTS):
                    self._note()
                    noted, noted_events = time.monotonic(), done.sent
        finally:
            # Also after an error or a Ctrl-C: what was handed over is either in the topic or reported.
            self.sender.flush(DELIVERY_S)
        self._note(finished=True)
        progress(done)

    def _wait_until(self, due: float, progress: Callable[[Ingested], None]) -> None:
        # In slices, so that progress is shown however slow the rate is.
        while (early_s := due - time.monotonic()) > 0.001:
            self.sender.poll(min(early_s, 0.2))
            progress(self.done)

    def _records(
        self, batch: pa.RecordBatch, first_row: int
    ) -> Iterator[tuple[Topic, bytes, bytes | Unencodable]]:
        """Topic, key and value of each event of these rows; why it has no value where it cannot be one."""
        topic = self.source.topic
        by_column = self._by_column(batch, first_row)
        if by_column is not None:
            yield from ((topic, key, value) for key, value in zip(*by_column, strict=True))
            return
        for topic, event in self._events(batch, first_row):
            key = str(event[topic.key]).encode()
            try:
                yield topic, key, self.codec.encode(topic, event)
            except Unencodable as error:
                yield topic, key, error

    def _by_column(self, batch: pa.RecordBatch, first_row: int) -> tuple[list[bytes], list[bytes]] | None:
        """Keys and values of the rows, or None where they must be made into events one by one."""
        if self.columns is None or self.source.event_columns is None:
            return None
        try:
            events = self.source.event_columns(batch, first_row)
            if events is None:
                return None
            keys = events.column(self.source.topic.key).cast(pa.binary()).to_pylist()
            return keys, self.columns.encode_strictly(events)
        except (KeyError, TypeError, ValueError, ArithmeticError, pa.ArrowException):
            return None  # one by one the row at fault is named

    def _events(self, batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
        try:
            yield from self.source.events(batch, first_row)
        except (KeyError, TypeError, ValueError, ArithmeticError, pa.ArrowException) as error:
            raise IngestError(
                f"rows {first_row} to {first_row + batch.num_rows - 1} are not {self.source.name}"
                f" ({type(error).__name__}: {error}); correct the file"
            ) from error

    def _refuse(self, number: int, error: Unencodable) -> None:
        self.done.refused_total += 1
        if len(self.done.refused) < REFUSED_SHOWN:
            self.done.refused.append(f"event {number}: {error}")

    def _produce(self, topic: Topic, key: bytes, value: bytes, number: int) -> None:
        header: list[tuple[str, str | bytes | None]] = [(HEADER, f"{self.ingest_id}/{number}".encode())]
        while True:
            try:
                self.sender.produce(topic.name, value, key, headers=header, on_delivery=self._report)
                break
            except BufferError:
                self.sender.poll(0.1)
            self._raise_failure()
        self.done.sent += 1
        if self.done.sent % 1_000 == 0:
            self.sender.poll(0)
            self._raise_failure()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        self.failure = error or self.failure

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise KafkaException(self.failure)

    def _note(self, *, finished: bool = False) -> None:
        """Wait until everything handed over is in the topics, then write down that it is."""
        waiting = self.sender.flush(DELIVERY_S)
        self._raise_failure()
        if waiting:
            raise IngestError(f"{waiting} records are not acknowledged; run the same command again")
        self.note.durable = self.done.events
        self.note.next = {str(p): o for p, o in ends(self.admin, self.partitions).items()}
        if finished:
            self.note.finished = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            self.note.result = asdict(self.done)
        self._write_note()

    def _write_note(self) -> None:
        partial = self.note_path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self.note)))
        partial.replace(self.note_path)

    def _sent_before(self) -> _Numbers:
        """The numbers of this file's events that lie in the topics after the last note."""
        found = _Numbers()
        first = starts(self.admin, self.partitions)
        for at in first:
            first[at] = max(first[at], self.note.next.get(str(at), 0))
        while True:
            end = ends(self.admin, self.partitions)
            news = False
            for messages in read(self.access, first, end):
                for message in messages:
                    number = self._number(message)
                    if number is not None:
                        found.add(number)
                        news = True
            if not news:
                break
            first = end
            time.sleep(SETTLE_S)
        if found.empty:
            # Nothing of this file lies before the ends as they are: a next run need not look there.
            self.note.next = {str(p): o for p, o in end.items()}
            self._write_note()
        return found

    def _number(self, message: Message) -> int | None:
        headers = message.headers()
        for name, value in headers if isinstance(headers, list) else ():
            if name == HEADER and isinstance(value, bytes):
                ingest_id, _, number = value.decode().partition("/")
                return int(number) if ingest_id == self.ingest_id else None
        return None


class _Numbers:
    """A set of event numbers, a bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()

    @property
    def empty(self) -> bool:
        return not self._bits

    def add(self, number: int) -> None:
        missing = number // 8 + 1 - len(self._bits)
        if missing > 0:
            self._bits.extend(bytes(missing + 4096))
        self._bits[number // 8] |= 1 << number % 8

    def has(self, number: int) -> bool:
        return number // 8 < len(self._bits) and bool(self._bits[number // 8] >> number % 8 & 1)


def whole_batches(batches: Iterable[pa.RecordBatch], whole: str | None) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order, cut only where the column `whole` changes its value."""
    if whole is None:
        yield from batches
        return
    held: pa.RecordBatch | None = None
    for batch in batches:
        joined = batch if held is None else _join(held, batch)
        values = joined.column(joined.schema.get_field_index(whole)).to_pylist()
        cut = len(values)
        while cut and values[cut - 1] == values[-1]:
            cut -= 1
        if cut:
            yield joined.slice(0, cut)
        held = joined.slice(cut)
    if held is not None and held.num_rows:
        yield held


def _join(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    table = pa.Table.from_batches([first, second]).combine_chunks()
    joined: pa.RecordBatch = table.to_batches()[0]
    return joined


def _sources(domain: str) -> tuple[FileSource, ...]:
    name = f"connectors.{domain}.files"
    try:
        found: tuple[FileSource, ...] = importlib.import_module(name).FILES
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise IngestError(f"{domain} reads no files; write connectors/{domain}/files.py") from error
        raise
    return found


def choose(sources: Iterable[FileSource], columns: Iterable[str], path: Path) -> FileSource:
    """The source whose columns the file has; of several the one that needs most of them.

    Raises `IngestError` naming what the nearest one misses.
    """
    given = frozenset(columns)
    known = sorted(sources, key=lambda s: (len(s.columns - given), -len(s.columns)))
    nearest = known[0]
    missing = sorted(nearest.columns - given)
    if missing:
        raise IngestError(
            f"{path.name} has no column {', '.join(missing)}, which {nearest.name} needs;"
            f" it has {', '.join(sorted(given))}"
        )
    return nearest


def _open(
    path: Path, sources: tuple[FileSource, ...]
) -> tuple[Iterator[pa.RecordBatch], FileSource, int | None]:
    """The file's rows in batches of a fixed size, its source, and its number of rows where known."""
    if not path.is_file():
        raise IngestError(f"{path} is not a file; give the path of a Parquet or CSV file")
    with path.open("rb") as start:
        is_parquet = start.read(4) == b"PAR1"
    try:
        if is_parquet:
            file = pyarrow.parquet.ParquetFile(path)
            source = choose(sources, file.schema_arrow.names, path)
            return file.iter_batches(BATCH_ROWS), source, file.metadata.num_rows
        reader = pyarrow.csv.open_csv(path)
        return iter(reader), choose(sources, reader.schema.names, path), None
    except pa.ArrowException as error:
        raise IngestError(f"{path.name} is neither Parquet nor CSV with a line of names: {error}") from error


def _identify(path: Path, purpose: str) -> str:
    digest = hashlib.sha256(purpose.encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]


@contextmanager
def _alone(lock: Path, path: Path) -> Iterator[None]:
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IngestError(f"{path.name} is being ingested by another process; wait for it") from None
        yield


def _read_note(path: Path) -> _Note | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
        return _Note(**found)
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
