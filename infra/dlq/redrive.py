"""Redrive: dead letters back onto the topic they came from, each once, paced, and with a trace.

A letter is marked `sending` before it is produced and `redriven` once the broker has it. Where a redrive is
killed in between, the next one looks into the topic for the header that each redriven record carries before
it decides whether to send again. Should a record come twice all the same (its producer was thought dead, and
was not), processors and sinks drop it by its event id, as any duplicate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import KafkaError, KafkaException, Message

from infra.broker import admin, producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.dlq import edits, letters
from infra.dlq.letters import OPEN, REDRIVEN, SENDING, DlqError, Letter
from infra.postgres import Connection, connect
from infra.settings import Settings
from infra.topic_log import at_time, ends, partitions, read
from schemas.declare import FUTURE_MS, Pipelines, Topic

HEADER = "millrace-redrive"
"""Header of a redriven record: the letter's id and the redrive's, as `17/203`."""

LOCK = 0x72656472  # "redr": one redrive at a time
LOCK_SECONDS = 5.0
CHUNK_RECORDS = 100
CLOCK_MARGIN_MS = 60_000
"""How far the clocks of database and broker may lie apart when a redriven record is looked for."""
ACKNOWLEDGE_MS = 20_000
FLUSH_SECONDS = 30.0

_NEVER_WRITTEN = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_MSG_SIZE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.POLICY_VIOLATION,
}
"""Reports after which the record is certainly not in the log; after any other it may be."""


class RedriveInterrupted(ConnectionError):
    """The broker did not answer for some letters; they stay `sending`, and the next redrive finds out."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a redrive does with a letter: the record it sends, or `problem`, for which it sends none."""

    letter: Letter
    topic: Topic | None = None
    key: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a letter. `place` is where it stands now; `recovered`: an earlier redrive sent it."""

    letter: int
    place: str | None = None
    problem: str | None = None
    recovered: bool = False


def plan(codec: Codec, pipelines: Pipelines, letter: Letter, now: datetime) -> Plan:
    """Whether the letter can be sent as it stands, and under which key. Raises `RegistryUnavailable`.

    What its readers are sure to refuse again is held back: bytes that still cannot be decoded, and event
    times that still lie ahead. Whether a decision or a constraint accepts it now, only they can tell.
    """
    if letter.status == REDRIVEN:
        return Plan(
            letter=letter, problem="it was redriven already; if it was refused again, that is a new letter"
        )
    if letter.status != OPEN:
        return Plan(
            letter=letter, problem=f"it is {letter.status}; `millrace dlq reopen` opens a discarded one"
        )
    topic = edits.topic_of(pipelines, letter)
    if topic is None:
        return Plan(letter=letter, problem=f"no pipeline declares topic {letter.topic}; discard it")
    content = edits.read(codec, topic, letter.to_value)
    if content.fault is not None or content.event is None:
        return Plan(letter=letter, problem=f"{content.fault}; correct it with `millrace dlq edit`")
    ahead_ms = content.event[topic.event_time] // topic.event_time_unit_per_ms - now.timestamp() * 1000
    if ahead_ms > FUTURE_MS:
        return Plan(
            letter=letter,
            problem=f"its {topic.event_time} lies {ahead_ms / 1000:.0f} s ahead; edit it, or wait until then",
        )
    # The event's own key: a record under another one is what its processor refused.
    return Plan(letter=letter, topic=topic, key=str(content.event[topic.key]).encode())


def redrive(
    settings: Settings,
    pipelines: Pipelines,
    ids: Sequence[int],
    *,
    actor: str,
    note: str | None = None,
    rate: float | None = None,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Send letters to their topics, at most `rate` a second; returns what became of each.

    First settles what an earlier redrive left `sending`. Calling again with the same ids sends nothing twice.
    Raises `DlqError` where another redrive runs, `RedriveInterrupted`, `LogUnreadable`,
    `RegistryUnavailable`, `psycopg.Error`.
    """
    if rate is not None and rate <= 0:
        raise DlqError(f"a rate of {rate:g} sends nothing; give records a second, as 50")
    with connect(settings.database_url, "millrace-redrive") as connection:
        # Not at the first try: the server takes a moment to see that the last one was killed.
        until = time.monotonic() + LOCK_SECONDS
        while connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() != (True,):
            if time.monotonic() > until:
                raise DlqError("another redrive runs; wait for its end, then look at `millrace dlq list`")
            time.sleep(0.1)
        codec = Codec(settings.schema_registry_url)
        try:
            outcomes = recover(settings, pipelines, connection, actor)
            for outcome in outcomes:
                progress(outcome)
            sender = _Sender(settings, pipelines, connection, codec, actor, note)
            arrived = {o.letter for o in outcomes}
            wanted = [i for i in ids if i not in arrived]
            started, sent = time.monotonic(), 0
            size = max(1, min(CHUNK_RECORDS, int(rate or CHUNK_RECORDS)))
            for chunk in letters.chunks(wanted, size):
                if rate is not None and (ahead := sent / rate - (time.monotonic() - started)) > 0:
                    time.sleep(ahead)
                for outcome in sender.send(chunk):
                    sent += outcome.place is not None
                    outcomes.append(outcome)
                    progress(outcome)
            return outcomes
        finally:
            codec.close()


def recover(settings: Settings, pipelines: Pipelines, connection: Connection, actor: str) -> list[Outcome]:
    """Find out what became of letters that a redrive left `sending`; returns those that had arrived.

    The others are open again.
    """
    rows = connection.execute(
        "SELECT l.id, l.topic, a.id, a.at FROM dead_letters l JOIN LATERAL (SELECT id, at FROM"
        " dead_letter_actions WHERE letter = l.id AND action = 'send' ORDER BY id DESC LIMIT 1) a ON true"
        " WHERE l.status = 'sending'"
    ).fetchall()
    if not rows:
        return []
    headers = {f"{letter}/{action}".encode(): int(str(letter)) for letter, _, action, _ in rows}
    topics = {t.name: t for p in pipelines for t in p.topics}
    wanted = partitions([topics[name] for name in {str(topic) for _, topic, _, _ in rows} if name in topics])
    since = min(at for *_, at in rows if isinstance(at, datetime))
    client = admin(settings.kafka)
    first = at_time(client, wanted, int(since.timestamp() * 1000) - CLOCK_MARGIN_MS)
    found: dict[int, TopicPartition] = {}
    offsets: dict[int, int] = {}
    for messages in read(settings.kafka, first, ends(client, wanted)):
        for message in messages:
            letter = headers.get(_redrive_of(message) or b"")
            if letter is not None and letter not in found:
                found[letter] = TopicPartition(str(message.topic()), message.partition() or 0)
                offsets[letter] = message.offset() or 0
    outcomes = []
    with connection.transaction():
        for letter in headers.values():
            at = found.get(letter)
            if at is None:
                _unsent(connection, letter, actor, "an interrupted redrive had not reached the topic")
            else:
                _redriven(connection, letter, actor, "found by its header", at, offsets[letter])
                outcomes.append(Outcome(letter=letter, place=f"{at}/{offsets[letter]}", recovered=True))
    return outcomes


class _Sender:
    def __init__(
        self,
        settings: Settings,
        pipelines: Pipelines,
        connection: Connection,
        codec: Codec,
        actor: str,
        note: str | None,
    ) -> None:
        self._producer = producer(
            settings.kafka,
            **{"message.timeout.ms": ACKNOWLEDGE_MS, "client.id": "millrace-redrive"},
        )
        self._pipelines, self._connection, self._codec = pipelines, connection, codec
        self._actor, self._note = actor, note

    def send(self, ids: Sequence[int]) -> list[Outcome]:
        """Send these letters; returns when the broker has answered for each."""
        outcomes: list[Outcome] = []
        begun: list[tuple[Plan, int]] = []
        with self._connection.transaction():
            for letter in letters.load(self._connection, ids, lock=True):
                planned = plan(self._codec, self._pipelines, letter, datetime.now(UTC))
                if planned.topic is None:
                    outcomes.append(Outcome(letter=letter.id, problem=planned.problem))
                    continue
                self._connection.execute(
                    "UPDATE dead_letters SET status = %s WHERE id = %s", (SENDING, letter.id)
                )
                row = self._connection.execute(
                    "INSERT INTO dead_letter_actions (letter, action, actor, note)"
                    " VALUES (%s, 'send', %s, %s) RETURNING id",
                    (letter.id, self._actor, self._note),
                ).fetchone()
                assert row is not None
                begun.append((planned, int(str(row[0]))))
        reports: dict[int, KafkaError | Message] = {}
        for planned, action in begun:
            self._produce(planned, action, reports)
        self._producer.flush(FLUSH_SECONDS)
        unknown = []
        with self._connection.transaction():
            for planned, _ in begun:
                id_, report = planned.letter.id, reports.get(planned.letter.id)
                if isinstance(report, Message):
                    at = TopicPartition(str(report.topic()), report.partition() or 0)
                    offset = report.offset() or 0
                    _redriven(self._connection, id_, self._actor, self._note, at, offset)
                    outcomes.append(Outcome(letter=id_, place=f"{at}/{offset}"))
                elif report is not None and report.code() in _NEVER_WRITTEN:
                    _unsent(self._connection, id_, self._actor, report.str())
                    outcomes.append(Outcome(letter=id_, problem=f"the broker refuses it: {report.str()}"))
                else:
                    unknown.append((id_, report.str() if report is not None else "no answer"))
        if unknown:
            raise RedriveInterrupted(
                f"the broker has not acknowledged {len(unknown)} letters, the first {unknown[0][0]}"
                f" ({unknown[0][1]}); redrive again: what has arrived is found, and not sent twice"
            )
        return outcomes

    def _produce(self, planned: Plan, action: int, reports: dict[int, KafkaError | Message]) -> None:
        letter = planned.letter
        assert planned.topic is not None

        def delivered(error: KafkaError | None, message: Message) -> None:
            reports[letter.id] = message if error is None else error

        try:
            self._producer.produce(
                planned.topic.name,
                letter.to_value,
                planned.key,
                headers={HEADER: f"{letter.id}/{action}".encode()},
                on_delivery=delivered,
            )
        except KafkaException as error:
            reports[letter.id] = error.args[0]


def _redrive_of(message: Message) -> bytes | None:
    value = dict(message.headers() or ()).get(HEADER)
    return value.encode() if isinstance(value, str) else value


def _redriven(
    connection: Connection, letter: int, actor: str, note: str | None, at: TopicPartition, offset: int
) -> None:
    connection.execute(
        'INSERT INTO dead_letter_actions (letter, action, actor, note, topic, partition, "offset")'
        " VALUES (%s, 'redriven', %s, %s, %s, %s, %s)",
        (letter, actor, note, at.topic, at.partition, offset),
    )
    connection.execute(
        "UPDATE dead_letters SET status = %s WHERE id = %s AND status = %s", (REDRIVEN, letter, SENDING)
    )


def _unsent(connection: Connection, letter: int, actor: str, reason: str) -> None:
    letters.act(connection, [letter], "unsent", actor, reason)
    connection.execute(
        "UPDATE dead_letters SET status = %s WHERE id = %s AND status = %s", (OPEN, letter, SENDING)
    )
