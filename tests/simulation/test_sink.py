"""The sink against a model made of dicts: whatever happens between two statements, both say the same."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infra.broker import PartitionBatch
from infra.checkpoints import Fenced, LogBounds, PositionRefused, TopicPartition
from infra.codec import Codec
from infra.dead_letters import envelope
from infra.postgres import connect
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from sinks.writer import Transient, Writer, id_hash
from tests.accounts import Accounts
from tests.simulation.broker import START_MS, Broker, SimulatedProducer
from tests.simulation.database import Crash, Fault, Faults
from tests.simulation.machine import Step, simulate, steps

PARTITIONS = 2
OUTCOMES = ("committed", "fenced", "killed", "cut off", "answers lost", "dead letters", "duplicates")
DAY_MS = 86_400_000
OVERSIZED = random.Random(1).randbytes(4500).hex()
"""Beyond a btree's row size: refused in the merge, where no line is named, so that it must be bisected."""
UNKNOWN_SCHEMA = b"\0\xff\xff\xff\xff"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SPOILT: dict[str, dict[str, Any]] = {
    "refused": {"amount_minor": 13},
    "nul": {"event_id": "nul\0"},
    "oversized": {"account": OVERSIZED},
    "oversized id": {"event_id": OVERSIZED},
    "timeless": {"occurred_at": 1 << 61},
}
# What may stand on the result topic, most often something good. (kind, id, account, amount, version)
results = st.tuples(
    st.sampled_from(
        ["good"] * 12
        + ["refused", "refused", "nul", "oversized", "oversized id"]
        + ["timeless", "bytes", "unknown", "marker"]
    ),
    st.integers(0, 15),
    st.sampled_from("abc"),
    st.integers(100, 102),
    st.integers(1, 6),
)
letters = st.tuples(st.sampled_from(["letter", "letter", "bytes"]), st.integers(0, 9))
faults = st.one_of(
    st.just((Fault.NONE, 0)),
    st.tuples(st.sampled_from([*Fault, Fault.ANSWER_LOST, Fault.ANSWER_LOST]), st.integers(0, 12)),
)
instances = st.sampled_from(["one"] * 8 + ["two"] * 2 + ["three"])
shares = st.integers(0, 99)
"""Of what there is then, by remainder or by share."""

STEPS = steps(
    {
        "results_come": (
            3,
            {"partition": st.integers(0, PARTITIONS - 1), "some": st.lists(results, min_size=1, max_size=8)},
        ),
        "letters_come": (1, {"some": st.lists(letters, min_size=1, max_size=4)}),
        "write": (
            8,
            {
                "name": instances,
                "most": st.lists(st.integers(0, 12), min_size=4, max_size=4),
                "fault": faults,
                "away": st.integers(0, 9),
                "stale": st.integers(0, 9),
                "arrives": shares,
            },
        ),
        "claim": (2, {"name": instances, "chosen": st.sets(st.integers(0, 3), min_size=1), "fault": faults}),
        "claim_of_another_log": (1, {"which": shares, "another": st.booleans()}),
        "release": (1, {"name": instances, "chosen": st.sets(st.integers(0, 3), min_size=1)}),
        "kill": (1, {"name": instances}),
    }
)


@dataclass
class Model:
    """What the database must hold, by the promises alone."""

    epochs: dict[TopicPartition, int] = field(default_factory=dict)
    positions: dict[TopicPartition, int] = field(default_factory=dict)
    ledger: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    latest: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    letters: dict[tuple[str, int, int, str], tuple[Any, ...]] = field(default_factory=dict)
    ranges: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass
class Instance:
    """A sink process: its writer, and what its source would know."""

    writer: Writer
    producer: SimulatedProducer
    epochs: dict[TopicPartition, int] = field(default_factory=dict)
    reading: dict[TopicPartition, int] = field(default_factory=dict)
    told: dict[TopicPartition, int] = field(default_factory=dict)
    """Positions as of the last answer that it had."""


class SinkMachine(RuleBasedStateMachine):
    """Up to three sink processes over one log; any may be killed, cut off, or stand still and come back."""

    def __init__(
        self, settings: Settings, codec: Codec, accounts: Accounts, faults: Faults, outcomes: Counter[str]
    ) -> None:
        super().__init__()
        self.outcomes = outcomes
        self.settings, self.codec, self.accounts = settings, codec, accounts
        self.balances, self.letters = accounts.balances, accounts.deposits.dlq
        self.sink = accounts.pipeline.sink_name
        self.broker = Broker(
            {self.balances.name: PARTITIONS, self.letters.name: 1, self.balances.dlq.name: 1}
        )
        self.what: dict[tuple[str, int, int], tuple[Any, ...]] = {}
        """Kind and event of each record of the result topic, as it was meant."""
        self.model = Model()
        self.faults, self.database = faults, faults.other
        self.running: dict[str, Instance] = {}
        self.everything = [
            *self.broker.places(self.balances.name),
            *self.broker.places(self.letters.name),
            *self.broker.places(self.balances.dlq.name),
        ]
        for table in (accounts.ledger.name, accounts.latest.name):
            self.database.execute(f"DELETE FROM {table}".encode())
        for table, column in (
            ("checkpoints", "consumer"),
            ("range_records", "consumer"),
            ("dead_letters", "pipeline"),
        ):
            name = self.sink if column == "consumer" else accounts.pipeline.name
            self.database.execute(f"DELETE FROM {table} WHERE {column} = %s".encode(), (name,))

    def teardown(self) -> None:
        for instance in self.running.values():
            instance.writer.close()

    # What comes

    @initialize(some=st.lists(results, min_size=4, max_size=12))
    def something_is_there(self, some: list[tuple[str, int, str, int, int]]) -> None:
        """A log to begin with."""
        self._append(0, some)

    @rule(step=STEPS)
    def happens(self, step: Step) -> None:
        """One of the methods below."""
        name, arguments = step
        getattr(self, name)(**arguments)

    def results_come(self, partition: int, some: list[tuple[str, int, str, int, int]]) -> None:
        """Results, repeated ones and several versions of an account among them, and what is none."""
        self._append(partition, some)

    def _append(self, partition: int, some: list[tuple[str, int, str, int, int]]) -> None:
        for kind, n, account, amount_minor, version in some:
            event: dict[str, Any] = {
                "event_id": f"e{n}",
                "input_id": f"e{n}",
                "tenant": "default",
                "occurred_at": START_MS + n * DAY_MS,
                "account": account,
                "amount_minor": amount_minor,
                "balance_minor": amount_minor + version,
                "version": version,
                "limits_version": 0,
            }
            match kind:
                case "marker":
                    self.broker.mark(TopicPartition(self.balances.name, partition))
                    continue
                case "bytes":
                    value = f"bytes {n}".encode()
                case "unknown":
                    value = UNKNOWN_SCHEMA + f"{n}".encode()
                case _:
                    event |= SPOILT.get(kind, {})
                    value = self.codec.encode(self.balances, event)
            message = self.broker.append(self.balances.name, value, account.encode(), partition)
            self.what[self._place(message)] = (kind, event)

    def letters_come(self, some: list[tuple[str, int]]) -> None:
        """A processor's dead letters, as it sends them again after a crash, and bytes that are none."""
        for kind, offset in some:
            refused = Message(
                topic=self.accounts.deposits.name,
                partition=0,
                offset=offset,
                key=b"k",
                value=f"refused {offset}".encode(),
                timestamp=(2, START_MS),
            )
            letter = envelope(
                self.accounts.pipeline.name,
                self.accounts.processor.name,
                refused,
                self.accounts.deposits,
                "invalid",
                "said so",
                event={"event_id": f"d{offset}", "tenant": "default"},
            )
            value = self.codec.encode(self.letters, letter) if kind == "letter" else b"somebody's bytes"
            message = self.broker.append(self.letters.name, value, b"k")
            self.what[self._place(message)] = (kind, letter)

    # Taking partitions

    def claim(self, name: str, chosen: set[int], fault: tuple[Fault, int]) -> None:
        """A process, new or running, takes partitions; whoever had them before is not told."""
        self._take(name, [self.everything[n] for n in sorted(chosen)], fault)

    def _take(self, name: str, wanted: list[TopicPartition], fault: tuple[Fault, int]) -> None:
        instance = self.running.get(name) or self._start(name)
        wanted = [at for at in wanted if at not in instance.epochs]
        after = copy.deepcopy(self.model)
        for at in wanted:
            after.epochs[at] = after.epochs.get(at, 0) + 1
            after.positions.setdefault(at, 0)
        self.faults.arm(*fault)
        try:
            claims = instance.writer.claim({at: self.broker.bounds(at) for at in wanted})
        except Crash:
            self._end(name)
        except Transient:
            assert self.faults.happened
        else:
            for at in wanted:
                assert claims[at].epoch == after.epochs[at] and claims[at].next_offset == after.positions[at]
                instance.epochs[at] = claims[at].epoch
                instance.reading[at] = instance.told[at] = claims[at].next_offset
        self._commit_if_the_database_did(after)

    def claim_of_another_log(self, which: int, another: bool) -> None:
        """A log that was deleted, or cut off before the position: refused, and the owner keeps its epoch."""
        known = sorted(at for at, position in self.model.positions.items() if position)
        if not known:
            return
        at = known[which % len(known)]
        log = self.broker.bounds(at)
        log = LogBounds("another", 0, log.end) if another else LogBounds(log.topic_id, 0, 0)
        instance = self._start("stranger")
        with pytest.raises(PositionRefused):
            instance.writer.claim({at: log})
        self._end("stranger")

    def release(self, name: str, chosen: set[int]) -> None:
        """A rebalance takes partitions away from a process."""
        if (instance := self.running.get(name)) is not None:
            going = [self.everything[n] for n in chosen if self.everything[n] in instance.epochs]
            instance.writer.release(going)
            for at in going:
                del instance.epochs[at]

    def kill(self, name: str) -> None:
        """Between two batches."""
        if name in self.running:
            self._end(name)

    # Writing

    def write(
        self, name: str, most: list[int], fault: tuple[Fault, int], away: int, stale: int, arrives: int
    ) -> None:
        """A process, perhaps a zombie, writes what it reads next of each of its partitions."""
        if name not in self.running or not self.running[name].epochs:
            self._take(name, self.everything, (Fault.NONE, 0))
        instance = self.running[name]
        batches = []
        for at, records in zip(self.everything, most, strict=True):
            if at in instance.epochs:
                messages, end = self.broker.read(at, instance.reading[at], records)
                epoch = instance.epochs[at] - (stale == 0)  # polled before the partition was taken anew
                batches.append(PartitionBatch(at, epoch, messages, end))
        effective = [
            b
            for b in batches
            if b.epoch == instance.epochs[b.at] and (b.messages or b.next_offset > instance.told[b.at])
        ]
        is_fenced = any(b.epoch != self.model.epochs[b.at] for b in effective)
        after = copy.deepcopy(self.model)
        own = 0 if is_fenced else self._apply(after, effective)
        instance.producer.away = away == 0
        self.faults.arm(*fault)
        try:
            written = instance.writer.write(batches)
        except Crash:
            self.outcomes["killed"] += 1
            instance.producer.deliver(len(instance.producer) * arrives // 99)
            self._end(name)
        except Transient:
            self.outcomes["answers lost" if self.faults.committed else "cut off"] += 1
            assert self.faults.happened or (instance.producer.away and own), "nothing kept it from committing"
        except Fenced:
            self.outcomes["fenced"] += 1
            assert is_fenced, "its epochs were the newest"
            self._end(name)
        else:
            self.outcomes["committed"] += bool(effective)
            self.outcomes["dead letters"] += own
            self.outcomes["duplicates"] += written.duplicates
            assert not is_fenced, "a zombie committed"
            assert written.dead == own
            assert written.positions == {b.at: after.positions[b.at] for b in effective}
            instance.told.update(written.positions)
            instance.reading.update(
                {b.at: b.next_offset for b in batches if b.epoch == instance.epochs[b.at]}
            )
        assert not (is_fenced and self.faults.committed)
        self._commit_if_the_database_did(after)

    def _apply(self, model: Model, batches: Sequence[PartitionBatch]) -> int:
        """Let the batches take effect in the model, record by record; returns the sink's own dead letters."""
        for batch in batches:
            if batch.at.topic != self.balances.name:
                self._apply_letters(model, batch)
        dead_total = 0
        effects: dict[TopicPartition, list[int]] = {}
        for batch in batches:
            before = model.positions[batch.at]
            if batch.next_offset <= before:
                continue
            fresh = [m for m in batch.messages if int(m.offset() or 0) >= before]
            dead = duplicates = ids = 0
            for message in fresh if batch.at.topic == self.balances.name else ():
                _, partition, offset = place = self._place(message)
                kind, event = self.what[place]
                error_class = {
                    "bytes": "undecodable",
                    "unknown": "undecodable",
                    "timeless": "invalid",
                    "refused": "constraint",
                    "nul": "constraint",
                    "oversized": "constraint",
                    "oversized id": "constraint",
                }.get(kind)
                if error_class is not None:
                    dead += 1
                    model.letters.setdefault((*place, self.sink), (error_class, message.value()))
                    continue
                ids += id_hash(event["event_id"])
                key = (event["event_id"], event["occurred_at"])
                if key in model.ledger:
                    duplicates += 1
                else:
                    model.ledger[key] = (event["account"], event["amount_minor"], partition, offset)
                newest = model.latest.get(event["account"])
                if newest is None or event["version"] > newest[1]:
                    model.latest[event["account"]] = (
                        event["balance_minor"], event["version"], partition, offset
                    )  # fmt: skip
            effects[batch.at] = [len(fresh), dead, duplicates, ids]
            dead_total += dead
        for batch in batches:
            if batch.at in effects:
                records, dead, duplicates, ids = effects[batch.at]
                signed = (ids + (1 << 63)) % (1 << 64) - (1 << 63)
                begin = model.positions[batch.at]
                span = (batch.at.topic, batch.at.partition, begin, batch.next_offset)
                model.ranges.append((*span, records, dead, duplicates, signed, batch.epoch))
                model.positions[batch.at] = batch.next_offset
        return dead_total

    def _apply_letters(self, model: Model, batch: PartitionBatch) -> None:
        for message in batch.messages:
            if batch.at.topic == self.letters.name:
                place = self._place(message)
                kind, letter = self.what[place]
                if kind == "bytes":
                    model.letters.setdefault((*place, self.sink), ("undecodable", message.value()))
                else:
                    at = (letter["topic"], letter["partition"], letter["offset"], letter["consumer"])
                    model.letters.setdefault(at, (letter["error_class"], letter["value"]))
            else:
                # The sink's own, read back. It may stand on the topic without having been committed.
                said = self.codec.decode(self.balances.dlq, message.value()).event
                at = (said["topic"], said["partition"], said["offset"], said["consumer"])
                model.letters.setdefault(at, (said["error_class"], said["value"]))

    # What must hold after every step

    @invariant()
    def the_database_holds_what_the_model_holds(self) -> None:
        """Rows, dead letters, range records, epochs and positions: all of them, and nothing else."""
        ask = self._ask
        assert ask(
            "SELECT topic, partition, epoch, next_offset FROM checkpoints WHERE consumer = %s"
        ) == sorted(
            (at.topic, at.partition, epoch, self.model.positions[at])
            for at, epoch in self.model.epochs.items()
        )
        ledger, latest = self.accounts.ledger.name, self.accounts.latest.name
        assert self._rows(
            "SELECT event_id, occurred_at, account, amount_minor, source_partition, source_offset"
            f" FROM {ledger}"
        ) == sorted(
            (event_id, _EPOCH + timedelta(milliseconds=ms), *row)
            for (event_id, ms), row in self.model.ledger.items()
        )
        assert self._rows(
            f"SELECT account, balance_minor, version, source_partition, source_offset FROM {latest}"
        ) == sorted((account, *row) for account, row in self.model.latest.items())
        assert ask(
            "SELECT topic, partition, from_offset, to_offset, records_total, dead_total, duplicates_total,"
            " ids_hash, epoch FROM range_records WHERE consumer = %s"
        ) == sorted(self.model.ranges)
        assert self._rows(
            'SELECT topic, partition, "offset", consumer, error_class, value FROM dead_letters'
            f" WHERE pipeline = '{self.accounts.pipeline.name}'"
        ) == sorted((*at, *letter) for at, letter in self.model.letters.items())

    @invariant()
    def range_records_cover_every_offset_once(self) -> None:
        """Without gap or overlap, from the first offset up to the position."""
        for at, position in self.model.positions.items():
            ends = [0]
            for begin, end in self._ask(
                "SELECT from_offset, to_offset FROM range_records WHERE consumer = %s"
                " AND topic = %s AND partition = %s",
                at.topic,
                at.partition,
            ):
                assert begin == ends[-1] < end
                ends.append(end)
            assert ends[-1] == position

    @invariant()
    def no_letter_is_committed_before_the_broker_has_it(self) -> None:
        """The mirror topic holds every dead letter of the sink that the table holds, and none of others."""
        mirrored = set()
        for message in self.broker.records(self.balances.dlq.name):
            said = self.codec.decode(self.balances.dlq, message.value()).event
            mirrored.add((said["topic"], said["partition"], said["offset"], said["consumer"]))
        own = {at for at in self.model.letters if at[0] == self.balances.name}
        assert own <= mirrored
        assert {self.what[at[:3]][0] for at in mirrored}.isdisjoint({"good"})

    # Small parts

    def _start(self, name: str) -> Instance:
        producer = SimulatedProducer(self.broker)
        writer = Writer(
            self.accounts.pipeline,
            # By column and row by row, what one leaves the other goes on with.
            self.accounts.row_by_row if name == "two" else self.accounts.rows,
            self.codec,
            producer.as_producer,
            self.settings.database_url,
            Progress(self.sink, [self.balances.name], Health()),
        )
        self.running[name] = Instance(writer, producer)
        return self.running[name]

    def _end(self, name: str) -> None:
        self.running.pop(name).writer.close()

    def _commit_if_the_database_did(self, after: Model) -> None:
        if self.faults.committed:
            for at, position in self.model.positions.items():
                assert after.positions[at] >= position, "a position went back"
            self.model = after
        self.faults.arm(Fault.NONE)

    def _place(self, message: Message) -> tuple[str, int, int]:
        return str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)

    def _ask(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return sorted(self.database.execute(query.encode(), (self.sink, *args)).fetchall())

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return sorted(self.database.execute(query.encode()).fetchall())


@pytest.mark.short_faults
@pytest.mark.timeout(900)
def test_the_sink_does_what_the_model_does(
    database: Settings, codec: Codec, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, cut off, fenced, unanswered, fed poison and repeats: rows, letters, ranges are the model's."""
    outcomes: Counter[str] = Counter()
    with connect(database.database_url) as connection:
        faults = Faults(connection)
        monkeypatch.setattr("sinks.writer.connect", faults.connect)
        simulate(lambda: SinkMachine(database, codec, accounts, faults, outcomes), histories=20)
    print(dict(outcomes))  # noqa: T201
    never = [kind for kind in OUTCOMES if not outcomes[kind]]
    assert not never, f"never happened, so nothing was shown about it: {never}"
