"""What the fault cases share: processes to kill, traffic to survive it, and the account of what must hold.

The example pipeline `tests.accounts` runs in real processes on real services. What must come of its input is
folded here once more from the recorded log, with nothing of the runtime: that is the undisturbed run.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Message, Producer
from psycopg import sql

from infra import exit_codes
from infra.broker import TopicSpec, admin, ensure_topics
from infra.codec import Codec, Undecodable
from infra.forkserver import Birth, ForkServer, adopt_orphans
from infra.kafka_access import KafkaAccess
from infra.postgres import connect
from infra.settings import Settings
from infra.topic_log import LogUnreadable, ends, partitions, read, starts
from schemas.declare import RECORD_BYTES, Topic
from tests.accounts import Accounts

Place = tuple[str, int, int]
"""Topic, partition, offset."""

ACCOUNTS = 40
REFUSED_BY_TABLE = 13
"""An amount that the processor takes and the ledger's CHECK does not."""
DRAIN_SECONDS = 60.0
RESTING = {exit_codes.FENCED, exit_codes.POSITION}
START_MS = 1_700_000_000_000
LETTER = {
    "pipeline": "none",
    "consumer": "none",
    "topic": "none",
    "partition": 0,
    "offset": 0,
    "error_class": "none",
    "error": "none",
}


IMPORTS = (
    "tests.faults.worker",
    "streams.fraud",
    "sinks.fraud",
    "connectors.gateway",
    "connectors.fraud.http",
)
_ONE_BY_ONE = threading.Lock()


@functools.cache
def _fork_server() -> ForkServer:
    adopt_orphans()
    server = ForkServer(IMPORTS, dict(os.environ), 2)
    until(server.loaded, 60, "the fork server is loaded")
    return server


def fork(birth: Birth) -> int:
    """A process of ours as in production, the child of this one; returns its pid."""
    with _ONE_BY_ONE:
        pid = _fork_server().start(birth)
    assert pid is not None, f"{birth.name} is there already"
    return pid


class Process:
    """A process of ours that is started again when it dies, as the supervisor would, unless it must rest.

    Its n-th start dies at the n-th of `places`; later ones live.
    """

    def __init__(
        self, module: Sequence[str], environ: dict[str, str], log: Path, places: Sequence[str] = ()
    ) -> None:
        self.module, self.environ, self.log = list(module), environ, log
        self._places = list(places)
        self.starts = 0
        self.exits: list[int] = []
        self._ending = False
        self.pid = self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def resting(self) -> bool:
        """Whether it ended with a code after which nobody starts it again."""
        return bool(self.exits) and self.exits[-1] in RESTING

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> int | None:
        """Stop it for good; the exit code of the last one, None where it had to be killed."""
        self._ending = True
        self.kill(signal.SIGCONT)
        self.kill(signal.SIGTERM)
        self._thread.join(30)
        if self._thread.is_alive():
            self.kill()
            self._thread.join()
            return None
        return self.exits[-1]

    def _start(self) -> int:
        self.starts += 1
        environ = self.environ | ({"DIE_AT": self._places.pop(0)} if self._places else {})
        module, *arguments = self.module
        # A name for each: here even twins are wanted, whom the broker and the table have to tell apart.
        name = f"{self.log.stem}-{id(self)}-{self.starts}"
        lock = self.log.with_name(f"{name}.lock")
        return fork(Birth(name, module, arguments, environ, str(self.log), str(lock)))

    def _watch(self) -> None:
        while True:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.exits.append(code)
            if self._ending or code in RESTING:
                return
            time.sleep(0.2)
            self.pid = self._start()
            if self._ending:
                self.kill(signal.SIGTERM)


@dataclass
class Traffic:
    """Events of a seed, sent by a producer that waits for the broker: resends, disorder, poison among them.

    `acknowledged` has what the broker confirmed: place and bytes of each record.
    """

    topic: Topic
    codec: Codec
    access: KafkaAccess
    seed: int
    events_total: int
    seconds: float
    resent: float = 0.05
    """The share of records that are sent a second time, and of those that come late."""
    acknowledged: dict[Place, bytes] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def start(self) -> Traffic:
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._began = time.monotonic()
        self._thread.start()
        return self

    @property
    def sent(self) -> float:
        """How much of it has been sent, 0 to 1."""
        return min(1.0, (time.monotonic() - self._began) / self.seconds)

    def reach(self, share: float) -> None:
        """Wait until this share has been sent."""
        time.sleep(max(0.0, share * self.seconds - (time.monotonic() - self._began)))

    def finish(self) -> None:
        """Wait for the last acknowledgement."""
        self._thread.join(self.seconds + 180)
        assert not self._thread.is_alive()
        assert not self.failed, self.failed[:3]
        assert len(self.acknowledged) == len(list(self.records())), "the sender stopped halfway"

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Key and value of every record to send."""
        rng = random.Random(self.seed)
        held: list[tuple[str, bytes]] = []
        sent: list[tuple[str, bytes]] = []
        for n in range(self.events_total):
            account = f"a{rng.randrange(ACCOUNTS)}"
            event = {
                "event_id": f"{self.seed}-{n}",
                "tenant": "default",
                "occurred_at": START_MS + n,
                "account": account,
                "amount_minor": rng.choice((REFUSED_BY_TABLE, -5)) if rng.random() < 0.01 else 1 + n % 500,
            }
            if event["amount_minor"] == REFUSED_BY_TABLE and rng.random() < 0.5:
                event["amount_minor"] = 14
            record = (account, self.codec.encode(self.topic, event))
            if rng.random() < self.resent:
                held.append(record)  # comes late, behind its successors
            else:
                sent.append(record)
                yield record
            if held and rng.random() < self.resent:
                sent.append(held[0])
                yield held.pop(rng.randrange(len(held)))
            if rng.random() < self.resent and sent:
                yield rng.choice(sent[-200:])
            if rng.random() < 0.01:
                yield account, self._poison(rng, event)
            if n == self.events_total // 2:
                yield account, self.codec.encode(self.topic, {**event, "tenant": "t" * RECORD_BYTES})
        yield from held

    def _poison(self, rng: random.Random, event: dict[str, Any]) -> bytes:
        """Random bytes, or an event under a schema id that nobody knows, or under another topic's."""
        value = self.codec.encode(self.topic, event)
        common = {name: event[name] for name in ("event_id", "tenant", "occurred_at")}
        foreign = self.codec.encode(self.topic.dlq, LETTER | common)
        unknown = rng.randrange(1 << 30, 1 << 32).to_bytes(4, "big")
        return rng.choice(
            (
                rng.randbytes(rng.randrange(0, 60)),
                b"\0" + unknown + value[5:],
                foreign,
            )
        )

    def _send(self) -> None:
        # Patient: what a broken broker leaves unacknowledged is sent until it is acknowledged.
        producer = Producer(
            {
                **self.access.config(),
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "delivery.timeout.ms": 170_000,
                "partitioner": "murmur2_random",
                "compression.type": "lz4",
                "message.max.bytes": 8 * RECORD_BYTES,  # as nobody should: the broker weighs it compressed
            }
        )
        records = list(self.records())
        for n, (key, value) in enumerate(records):
            producer.produce(self.topic.name, value, key, on_delivery=self._delivered)
            producer.poll(0)
            behind = self.seconds * n / len(records) - (time.monotonic() - self._began)
            if behind > 0:
                producer.poll(behind)
        producer.flush(175)

    def _delivered(self, error: object, message: Message) -> None:
        if error is not None:
            self.failed.append(str(error))
            return
        place = (str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
        self.acknowledged[place] = bytes(message.value() or b"")


@dataclass
class Rig:
    """The example pipeline under names of its own, on the services of `settings`."""

    settings: Settings
    codec: Codec
    accounts: Accounts
    folder: Path
    running: list[Process] = field(default_factory=list)

    def prepare(self) -> None:
        """Topics, schemas and tables."""
        topics = [x for t in self.accounts.pipeline.topics for x in (t, t.dlq)]
        ensure_topics(self.settings.kafka, [TopicSpec.of(t) for t in topics])
        for topic in topics:
            self.codec.register(topic)
        with connect(self.settings.database_url) as connection:
            connection.execute(self.accounts.ddl)

    def start(
        self,
        role: str,
        instance: str = "0",
        places: Sequence[str] = (),
        **environ: str,
    ) -> Process:
        """Start the pipeline's processor or sink. `places`: see `tests.faults.worker`."""
        name = self.accounts.processor.name.removesuffix("-accounting")
        process = Process(
            ["tests.faults.worker", role, name],
            {**self.settings.environ, "MILLRACE_INSTANCE": instance, **environ},
            self.folder / f"{name}-{role}-{instance}.log",
            places,
        )
        self.running.append(process)
        return process

    def traffic(
        self, seed: int, events_total: int = 3_000, seconds: float = 6.0, resent: float = 0.05
    ) -> Traffic:
        """Start sending."""
        return Traffic(
            self.accounts.deposits,
            self.codec,
            self.settings.kafka,
            seed,
            events_total,
            seconds,
            resent,
        ).start()

    def drain(self, seconds: float = DRAIN_SECONDS) -> float:
        """Wait until everything is read; the seconds it took. Fails with who has not read what."""
        began = time.monotonic()
        lag: object = "nothing was seen"
        while time.monotonic() < began + seconds:
            with suppress(psycopg.OperationalError, LogUnreadable):
                lag = self._lag()
                if not lag:
                    return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"not drained within {seconds:.0f} s: {lag}\n{self._last_words()}")

    def _last_words(self) -> str:
        """What each process said last, but for the broker's library."""
        said = []
        for log in sorted(self.folder.glob("*.log")):
            lines = [line for line in log.read_text().splitlines() if '"librdkafka"' not in line]
            said += [f"{log.name}:", *lines[-12:]]
        return "\n".join(said)

    def _lag(self) -> dict[str, int]:
        processor, sink = self.accounts.processor.name, self.accounts.pipeline.sink_name
        lag = self._behind(processor, [self.accounts.deposits])
        # Only then the outputs are all there.
        return lag or self._behind(
            sink, [self.accounts.balances, *(t.dlq for t in self.accounts.pipeline.topics)]
        )

    def _behind(self, consumer: str, topics: Sequence[Topic]) -> dict[str, int]:
        client = admin(self.settings.kafka)
        wanted = partitions(topics)
        with connect(self.settings.database_url) as connection:
            positions = {
                (topic, partition): position
                for topic, partition, position in connection.execute(
                    "SELECT topic, partition, next_offset FROM checkpoints WHERE consumer = %s", (consumer,)
                )
            }
        return {
            f"{consumer} {at}": lag
            for at, end in ends(client, wanted).items()
            if (lag := end - int(str(positions.get((at.topic, at.partition), 0))))
        }

    def waiting(self) -> bool:
        """Whether a process of the rig has said that it waits for a service."""
        return any("waiting for a service" in p.log.read_text() for p in self.running)

    def end(self) -> None:
        """Stop every process of the rig."""
        for process in self.running:
            process.end()

    # The account

    def log(self, topic: Topic) -> list[tuple[Place, bytes, bytes]]:
        """Every record of a topic: place, key, value; each partition in order."""
        client, wanted = admin(self.settings.kafka), partitions([topic])
        found = [
            (
                (topic.name, int(m.partition() or 0), int(m.offset() or 0)),
                bytes(m.key() or b""),
                bytes(m.value() or b""),
            )
            for messages in read(self.settings.kafka, starts(client, wanted), ends(client, wanted))
            for m in messages
        ]
        return sorted(found)

    def check(self, traffic: Sequence[Traffic]) -> dict[str, int]:
        """Assert that everything holds (L D O T C X of the fault matrix); returns what was compared."""
        inputs = self.log(self.accounts.deposits)
        at_place = {place: value for place, _, value in inputs}
        acknowledged = {p: v for t in traffic for p, v in t.acknowledged.items()}
        assert acknowledged.items() <= at_place.items(), "an acknowledged record is not in the topic"

        expected, poison = self._fold(inputs)
        outputs = self.log(self.accounts.balances)
        answers: dict[str, set[bytes]] = defaultdict(set)
        first: dict[str, list[str]] = defaultdict(list)
        occurrences: dict[str, list[Place]] = defaultdict(list)
        for place, key, value in outputs:
            event_id = self.codec.decode(self.accounts.balances, value).event["event_id"]
            answers[event_id].add(value)
            if event_id not in occurrences:
                first[key.decode()].append(event_id)
            occurrences[event_id].append(place)
        wanted = {i: {self.codec.encode(self.accounts.balances, e)} for i, e in expected.items()}
        assert answers == wanted, "outputs differ from those of an undisturbed run"
        order: dict[str, list[str]] = defaultdict(list)
        for event_id, event in expected.items():
            order[event["account"]].append(event_id)
        assert first == order, "the outputs of a key are out of order"

        refused = {i for i, e in expected.items() if e["amount_minor"] == REFUSED_BY_TABLE}
        dead = poison | {place for i in refused for place in occurrences[i]}
        self._check_tables({i: e for i, e in expected.items() if i not in refused})
        repeated = sum(len(places) - 1 for i, places in occurrences.items() if i not in refused)
        self._check_letters(dead)
        self._check_ranges(repeated)
        return {
            "inputs": len(inputs),
            "acknowledged": len(acknowledged),
            "outputs": len(outputs),
            "distinct": len(expected),
            "dead_letters": len(dead),
        }

    def _fold(self, inputs: list[tuple[Place, bytes, bytes]]) -> tuple[dict[str, Any], set[Place]]:
        """Expected answers by event id in the order of the log, and the places of what no answer is for."""
        expected: dict[str, Any] = {}
        poison: set[Place] = set()
        balance: dict[str, int] = defaultdict(int)
        version: dict[str, int] = defaultdict(int)
        for place, _, value in inputs:
            if len(value) > RECORD_BYTES:
                poison.add(place)
                continue
            try:
                event = self.codec.decode(self.accounts.deposits, value).event
            except Undecodable:
                poison.add(place)
                continue
            if event["event_id"] in expected:
                continue
            if event["amount_minor"] <= 0:
                poison.add(place)
                continue
            account = event["account"]
            balance[account] += event["amount_minor"]
            version[account] += 1
            expected[event["event_id"]] = {
                **event,
                "input_id": event["event_id"],
                "balance_minor": balance[account],
                "version": version[account],
                "limits_version": 0,
            }
        return expected, poison

    def _check_tables(self, expected: dict[str, Any]) -> None:
        ledger, latest = self.accounts.ledger.name, self.accounts.latest.name
        columns = ("event_id", "account", "amount_minor", "balance_minor")
        rows = self._ask(
            sql.SQL("SELECT {} FROM {}").format(
                sql.SQL(", ").join(map(sql.Identifier, columns)), sql.Identifier(ledger)
            )
        )
        assert sorted(rows) == sorted(tuple(e[c] for c in columns) for e in expected.values()), (
            "the ledger is not what was decided"
        )
        newest: dict[str, Any] = {}
        for event in expected.values():
            newest[event["account"]] = (event["account"], event["balance_minor"], event["version"])
        rows = self._ask(
            sql.SQL("SELECT account, balance_minor, version FROM {}").format(sql.Identifier(latest))
        )
        assert sorted(rows) == sorted(newest.values()), "the latest balances are not the newest"

    def _check_letters(self, dead: set[Place]) -> None:
        query = sql.SQL('SELECT topic, partition, "offset" FROM dead_letters WHERE pipeline = {}')
        stored = self._ask(query.format(sql.Literal(self.accounts.pipeline.name)))
        assert len(stored) == len(set(stored)), "a record has two dead letters"
        assert set(stored) == dead, "the dead letters are not exactly the poison"
        mirrored = set()
        for topic in self.accounts.pipeline.topics:
            for _, _, value in self.log(topic.dlq):
                letter = self.codec.decode(topic.dlq, value).event
                mirrored.add((letter["topic"], letter["partition"], letter["offset"]))
        assert mirrored == dead, "the mirror topics hold other dead letters than the table"

    def _check_ranges(self, repeated: int) -> None:
        sink = self.accounts.pipeline.sink_name
        counted = self._ask(
            sql.SQL(
                "SELECT sum(duplicates_total) FROM range_records WHERE consumer = {} AND topic = {}"
            ).format(sql.Literal(sink), sql.Literal(self.accounts.balances.name))
        )
        assert counted == [(repeated,)], f"{repeated} outputs were sent again, counted were {counted}"
        query = sql.SQL(
            "SELECT topic, partition, from_offset, to_offset FROM range_records WHERE consumer = {}"
            " ORDER BY topic, partition, from_offset"
        )
        covered: dict[tuple[str, int], int] = defaultdict(int)
        for topic, partition, first, end in self._ask(query.format(sql.Literal(sink))):
            assert first == covered[(topic, partition)] < end, (
                f"gap or overlap in {topic}/{partition} at {first}"
            )
            covered[(topic, partition)] = end
        topics = [self.accounts.balances, *(t.dlq for t in self.accounts.pipeline.topics)]
        client = admin(self.settings.kafka)
        for at, end in ends(client, partitions(topics)).items():
            assert covered[(at.topic, at.partition)] == end, (
                f"{at} is covered up to another offset than {end}"
            )

    def _ask(self, query: sql.Composed) -> list[tuple[Any, ...]]:
        with connect(self.settings.database_url) as connection:
            return connection.execute(query).fetchall()


@contextmanager
def pipeline(settings: Settings, codec: Codec, name: str, folder: Path) -> Iterator[Rig]:
    """A rig under this name whose processes are stopped at the end."""
    rig = Rig(settings, codec, Accounts(name), folder)
    rig.prepare()
    try:
        yield rig
    finally:
        rig.end()


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition; fails naming it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
