"""A processor's state, outputs and positions against a fold of its log over dicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from infra import versions
from infra.broker import PartitionBatch
from infra.checkpoints import Checkpoints, Fenced, TopicPartition
from infra.codec import Codec
from infra.postgres import connect
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.declare import FUTURE_MS
from streams.database import Transient
from streams.decide import KeyedState
from streams.restore import restore
from streams.runner import Prepared, Runner
from tests.accounts import Account, Accounts
from tests.simulation.broker import START_MS, Broker, SimulatedProducer
from tests.simulation.database import Crash, Fault, Faults
from tests.simulation.machine import Step, simulate, steps

PARTITIONS = 2
OUTCOMES = (
    "committed",
    "worked meanwhile",
    "fenced",
    "killed",
    "cut off",
    "answers lost",
    "versions applied",
    "snapshots",
)
SNAPSHOT_BYTES = 1200
"""A new snapshot after about this many bytes of deltas, so that a history of some steps has several."""
NO_LIMIT = 1 << 62
KEPT = ("event_id", "tenant", "occurred_at", "account", "amount_minor")

# (kind, id, account, amount)
deposits = st.tuples(
    st.sampled_from(["deposit"] * 10 + ["bytes", "wrong key", "future", "marker"]),
    st.integers(0, 40),
    st.sampled_from("abcd"),
    st.sampled_from([-5, 10, 20, 30, 40, 50]),
)
faults = st.one_of(
    st.just((Fault.NONE, 0)),
    st.tuples(st.sampled_from([*Fault, Fault.ANSWER_LOST, Fault.ANSWER_LOST]), st.integers(0, 6)),
)
instances = st.sampled_from(["one"] * 8 + ["two"] * 2 + ["three"])
shares = st.integers(0, 99)
"""Of what there is then, by share."""

STEPS = steps(
    {
        "deposits_come": (3, {"some": st.lists(deposits, min_size=1, max_size=8)}),
        "publish": (1, {"limit_minor": st.sampled_from([15, 25, 35, 45])}),
        "work": (
            8,
            {
                "name": instances,
                "number": st.integers(0, PARTITIONS - 1),
                "most": st.integers(1, 10),
                "fault": faults,
                "stops": st.integers(0, 3),
                "arrives": shares,
            },
        ),
        "checkpoint": (
            5,
            {"name": instances, "fault": faults, "away": st.integers(0, 6), "again": st.booleans()},
        ),
        "work_meanwhile": (
            4,
            {
                "name": instances,
                "number": st.integers(0, PARTITIONS - 1),
                "most": st.integers(1, 10),
                "fault": faults,
                "arrives": shares,
            },
        ),
        "claim": (
            1,
            {
                "name": instances,
                "chosen": st.sets(st.integers(0, PARTITIONS - 1), min_size=1),
                "fault": faults,
            },
        ),
        "release": (1, {"name": instances, "fault": faults}),
        "kill": (1, {"name": instances, "arrives": shares}),
    }
)

Folded = tuple[int, int, dict[str, dict[str, Any]]]
"""Balance, version, and the answer to each event id."""


@dataclass
class Partition:
    """What is known of a partition, by the promises alone."""

    epoch: int = 0
    position: int = 0
    activations: dict[int, int] = field(default_factory=dict)
    """From which offset which version of the limits applies."""


@dataclass
class Held:
    """A partition as a process believes to hold it."""

    epoch: int
    committed: int
    """As of the last answer that it had from the database."""
    stored: int
    """What it has committed indeed, whether it was told or not."""
    applied: int
    reading: int
    activations: dict[int, int]
    undecided_from: int
    """Nobody can have answered from here on before the process took the partition."""
    fetched_to: int | None = None
    """Where its log ends for it, once another process has taken the partition: what it had fetched."""


@dataclass
class Instance:
    """A processor's process; `prepared` is the batch that it stands still with."""

    runner: Runner
    producer: SimulatedProducer
    held: dict[TopicPartition, Held] = field(default_factory=dict)
    prepared: list[Prepared] = field(default_factory=list)


class StateMachine(RuleBasedStateMachine):
    """Up to three processes of one processor; any may be killed, cut off, or stand still and come back."""

    def __init__(
        self, settings: Settings, codec: Codec, accounts: Accounts, faults: Faults, outcomes: Counter[str]
    ) -> None:
        super().__init__()
        self.outcomes, self.database = outcomes, faults.other
        self.settings, self.codec, self.accounts, self.faults = settings, codec, accounts, faults
        self.name = accounts.processor.name
        topics = (accounts.deposits, accounts.balances)
        self.broker = Broker({t.name: PARTITIONS for t in topics} | {accounts.deposits.dlq.name: 1})
        self.places = self.broker.places(accounts.deposits.name)
        self.what: dict[TopicPartition, dict[int, tuple[str, dict[str, Any]]]] = {
            at: {} for at in self.places
        }
        self.known = {at: Partition() for at in self.places}
        self.limits: list[int] = []
        self.accounts_of: dict[str, dict[str, Any]] = {}
        self.running: dict[str, Instance] = {}
        for table in ("checkpoints", "state_chunks", "version_activations"):
            self.database.execute(f"DELETE FROM {table} WHERE consumer = %s".encode(), (self.name,))
        self.database.execute("DELETE FROM versions WHERE pipeline = %s", (accounts.pipeline.name,))

    def teardown(self) -> None:
        for instance in self.running.values():
            instance.runner.close()

    # What comes

    @initialize(some=st.lists(deposits, min_size=8, max_size=16))
    def something_is_there(self, some: list[tuple[str, int, str, int]]) -> None:
        """A log to begin with."""
        self._append(some)

    @rule(step=STEPS)
    def happens(self, step: Step) -> None:
        """One of the methods below."""
        name, arguments = step
        getattr(self, name)(**arguments)

    def deposits_come(self, some: list[tuple[str, int, str, int]]) -> None:
        """Deposits, resent ones among them, and what is none."""
        self._append(some)

    def _append(self, some: list[tuple[str, int, str, int]]) -> None:
        for kind, n, account, amount_minor in some:
            event: dict[str, Any] = {
                "event_id": f"e{n}",
                "tenant": "default",
                "occurred_at": START_MS,
                "account": account,
                "amount_minor": amount_minor,
            }
            # A resent event is the event that it was.
            event = self.accounts_of.setdefault(event["event_id"], event)
            at = self.places[ord(event["account"]) % PARTITIONS]
            key = event["account"].encode()
            if kind == "marker":
                self.broker.mark(at)
                continue
            if kind == "future":
                event = {**event, "event_id": f"f{n}", "occurred_at": self.broker.now_ms + FUTURE_MS + 1000}
            value = b"bytes" if kind == "bytes" else self.codec.encode(self.accounts.deposits, event)
            if kind == "wrong key":
                key = b"another"
            message = self.broker.append(at.topic, value, key, at.partition)
            self.what[at][int(message.offset() or 0)] = (kind, event)

    def publish(self, limit_minor: int) -> None:
        """A new version of the limits, whoever is at work."""
        self.limits.append(limit_minor)
        pipeline = self.accounts.pipeline.name
        versions.publish(self.database, pipeline, "limits", {"limit_minor": limit_minor})

    # Taking partitions

    def claim(self, name: str, chosen: set[int], fault: tuple[Fault, int]) -> None:
        """A process, new or running, takes partitions; whoever had them before is not told."""
        self._take(name, [self.places[n] for n in sorted(chosen)], fault)

    def _take(self, name: str, wanted: list[TopicPartition], fault: tuple[Fault, int]) -> None:
        instance = self.running.get(name) or self._start(name)
        wanted = [at for at in wanted if at not in instance.held]
        ends = {at: self.broker.bounds(at) for at in wanted}
        self.faults.arm(*fault)
        claims = None
        try:
            claims = instance.runner.claim(ends)
        except Crash:
            self._end(name)
        except Transient:
            assert self.faults.happened
            # Claimed in part, perhaps; a source that gets no answer claims all of it anew.
            instance.runner.forget_lost({at: held.epoch for at, held in instance.held.items()})
        if self.faults.committed:
            for at in wanted:
                known = self.known[at]
                known.epoch += 1
                for other in self.running.values():
                    if (held := other.held.get(at)) is not None and held.fetched_to is None:
                        held.fetched_to = ends[at].end
        for at in wanted if claims is not None else ():
            known, claim = self.known[at], claims[at]  # type: ignore[index]
            assert (claim.epoch, claim.next_offset) == (known.epoch, known.position)
            instance.held[at] = Held(
                epoch=claim.epoch,
                committed=known.position,
                stored=known.position,
                applied=known.position,
                reading=known.position,
                activations=dict(known.activations),
                undecided_from=0 if claim.epoch == 1 else ends[at].end,
            )
        self.faults.disarm()

    def release(self, name: str, fault: tuple[Fault, int]) -> None:
        """A rebalance takes all partitions from a process, which commits what it can."""
        if (instance := self.running.get(name)) is not None:
            going = list(instance.held)
            self._committing(name, fault, lambda: instance.runner.release(going))
            instance.held.clear()
            instance.prepared.clear()

    def kill(self, name: str, arrives: int) -> None:
        """At any time; some of what it had produced may still arrive."""
        if name in self.running:
            producer = self.running[name].producer
            producer.deliver(len(producer) * arrives // 99)
            self._end(name)

    # Deciding

    def work(
        self, name: str, number: int, most: int, fault: tuple[Fault, int], stops: int, arrives: int
    ) -> None:
        """A process reads on in one partition and decides, or stands still in between for a while."""
        if name in self.running and self.running[name].prepared:
            self._apply(name, arrives)
            return
        at = self.places[number]
        if name not in self.running or at not in self.running[name].held:
            self._take(name, self.places, (Fault.NONE, 0))
        self._prepare(name, at, most, fault)
        if stops and name in self.running:
            self._apply(name, arrives)

    def _prepare(self, name: str, at: TopicPartition, most: int, fault: tuple[Fault, int]) -> None:
        """Read, and find out which versions apply."""
        instance = self.running[name]
        held, known = instance.held[at], self.known[at]
        messages, end = self.broker.read(at, held.reading, most)
        if held.fetched_to is not None:
            messages = [m for m in messages if int(m.offset() or 0) < held.fetched_to]
            end = min(end, held.fetched_to)
        if end == held.reading:
            return
        newest = len(self.limits)
        begins = self._begins(at, held, messages, newest)
        self.faults.arm(*fault)
        try:
            prepared = instance.runner.prepare([PartitionBatch(at, held.epoch, messages, end)])
        except Crash:
            self._end(name)
        except Transient:
            assert self.faults.happened
        except Fenced:
            assert begins is not None and held.epoch != known.epoch, "its epoch was the newest"
            self._end(name)
        else:
            assert begins is None or held.epoch == known.epoch, "a zombie wrote a version down"
            instance.prepared, held.reading = prepared, end
            if begins is not None:
                held.activations[begins] = newest
        if self.faults.committed and begins is not None:
            assert held.epoch == known.epoch
            known.activations[begins] = newest
            self.outcomes["versions applied"] += 1
        self.faults.disarm()

    def _begins(self, at: TopicPartition, held: Held, messages: list[Message], newest: int) -> int | None:
        """From which offset the newest limits begin to apply with these records, if they do."""
        usable = [o for m in messages if self.what[at][o := int(m.offset() or 0)][0] == "deposit"]
        latest = max(held.activations, default=-1)
        if not usable or newest <= held.activations.get(latest, 0):
            return None
        begins = max(usable[0], held.undecided_from)
        return begins if latest < usable[0] and begins <= usable[-1] else None

    def _apply(self, name: str, arrives: int) -> None:
        """Decide, and send the answers, of which any number arrives at once."""
        instance = self.running[name]
        instance.runner.apply(instance.prepared)
        for work in instance.prepared:
            instance.held[work.batch.at].applied = work.batch.next_offset
        instance.prepared = []
        instance.producer.deliver(len(instance.producer) * arrives // 99)

    # Committing

    def checkpoint(self, name: str, fault: tuple[Fault, int], away: int, again: bool) -> None:
        """A process, perhaps a zombie, commits what it has applied, perhaps at once again."""
        if (instance := self.running.get(name)) is not None:
            self._committing(name, fault, instance.runner.checkpoint, away == 0)
            if again and name in self.running:
                self._committing(name, (Fault.NONE, 0), instance.runner.checkpoint)

    def work_meanwhile(
        self, name: str, number: int, most: int, fault: tuple[Fault, int], arrives: int
    ) -> None:
        """A process decides on while what it had applied before is being committed."""
        at = self.places[number]
        if name in self.running and not self.running[name].prepared and at in self.running[name].held:
            self._prepare(name, at, most, (Fault.NONE, 0))
        if (instance := self.running.get(name)) is None:
            return

        def checkpoint() -> None:
            self.faults.gate.clear()
            try:
                instance.runner.begin_checkpoint()
                if instance.prepared:
                    self.outcomes["worked meanwhile"] += instance.runner.checkpointing
                    self._apply(name, arrives)
            finally:
                self.faults.gate.set()
            instance.runner.end_checkpoint()

        self._committing(name, fault, checkpoint)

    def _committing(
        self, name: str, fault: tuple[Fault, int], call: Callable[[], object], away: bool = False
    ) -> None:
        instance = self.running[name]
        moved = {at: held for at, held in instance.held.items() if held.applied != held.committed}
        reached = {at: held.applied for at, held in moved.items()}
        fenced = [held for at, held in moved.items() if held.epoch != self.known[at].epoch]
        instance.producer.away = away
        self.faults.arm(*fault)
        try:
            call()
        except Crash:
            self.outcomes["killed"] += 1
            self._end(name)
        except Transient:
            self.outcomes["answers lost" if self.faults.committed else "cut off"] += 1
            assert self.faults.happened or (away and instance.producer), "nothing kept it from committing"
        except Fenced:
            self.outcomes["fenced"] += 1
            assert fenced, "its epochs were the newest"
            self._end(name)
        else:
            self.outcomes["committed"] += bool(moved)
            # (One that had nothing to commit, and may have found that out, need not look.)
            assert all(reached[at] == held.stored for at, held in moved.items() if held in fenced), (
                "a zombie committed"
            )
            for at, held in moved.items():
                held.committed = reached[at]
        for at, held in moved.items() if self.faults.committed else ():
            if held.epoch == self.known[at].epoch:
                assert reached[at] >= self.known[at].position, "a position went back"
                self.known[at].position = held.stored = reached[at]
        instance.producer.away = False
        self.faults.disarm()

    # What must hold after every step

    @invariant()
    def positions_and_versions_are_the_models(self) -> None:
        """Epoch, position and activations of each partition, and nothing of a process that was fenced."""
        stored = {
            (topic, partition): (epoch, position)
            for topic, partition, epoch, position in self.database.execute(
                "SELECT topic, partition, epoch, next_offset FROM checkpoints WHERE consumer = %s",
                (self.name,),
            )
        }
        assert stored == {
            (at.topic, at.partition): (known.epoch, known.position)
            for at, known in self.known.items()
            if known.epoch
        }
        for at, known in self.known.items():
            found = versions.read_activations(self.database, self.name, at, ["limits"])["limits"]
            assert dict(zip(found.offsets, found.versions, strict=True)) == known.activations

    @invariant()
    def what_is_restored_is_the_state_of_the_position(self) -> None:
        """Snapshot and deltas give what a fold of the log up to the stored position gives."""
        for at, known in self.known.items():
            state = KeyedState(Account)
            restore(state, Checkpoints(self.name).read_state(self.database, at))
            self.outcomes["snapshots"] += self.database.execute(
                "SELECT FROM state_chunks WHERE consumer = %s AND topic = %s AND partition = %s"
                " AND is_snapshot LIMIT 1",
                (self.name, at.topic, at.partition),
            ).rowcount
            restored = {key: (a.balance_minor, a.version, a.applied) for key, a in state.items()}
            assert restored == self._fold(at, known.position)[0]

    @invariant()
    def every_answer_is_that_of_an_undisturbed_run(self) -> None:
        """Byte for byte, whoever sent it and however often; all of what is committed, in the keys' order."""
        answers: dict[str, set[bytes]] = {}
        order: dict[str, list[str]] = {}
        for message in self.broker.records(self.accounts.balances.name):
            event_id = self.codec.decode(self.accounts.balances, message.value()).event["event_id"]
            if event_id not in answers:
                order.setdefault((message.key() or b"").decode(), []).append(event_id)
            answers.setdefault(event_id, set()).add(message.value() or b"")
        letters = set()
        for message in self.broker.records(self.accounts.deposits.dlq.name):
            said = self.codec.decode(self.accounts.deposits.dlq, message.value()).event
            letters.add((said["partition"], said["offset"], said["error_class"]))
        for at, known in self.known.items():
            _, expected, refused = self._fold(at)
            mine = {i: v for i, v in answers.items() if self.places[ord(self._account(i)) % PARTITIONS] == at}
            encoded = {i: self.codec.encode(self.accounts.balances, e) for i, (_, e) in expected.items()}
            assert mine == {i: {encoded[i]} for i in mine if i in encoded}
            assert {i for i, (offset, _) in expected.items() if offset < known.position} <= mine.keys()
            for account, ids in order.items():
                wanted = [i for i, (_, e) in expected.items() if e["account"] == account]
                if wanted:
                    assert ids == wanted[: len(ids)]
            dead = {(o, error_class) for n, o, error_class in letters if n == at.partition}
            assert {(o, c) for o, c in refused.items() if o < known.position} <= dead <= refused.items()

    # Small parts

    def _fold(
        self, at: TopicPartition, end: int | None = None
    ) -> tuple[dict[str, Folded], dict[str, tuple[int, dict[str, Any]]], dict[int, str]]:
        """State, answers by event id with the offset they are due at, and refusals by offset."""
        state: dict[str, Folded] = {}
        answers: dict[str, tuple[int, dict[str, Any]]] = {}
        refused: dict[int, str] = {}
        activations = self.known[at].activations
        version, limit = 0, NO_LIMIT
        for offset in range(self.broker.bounds(at).end if end is None else end):
            if offset in activations:
                version = activations[offset]
                limit = self.limits[version - 1]
            if offset not in self.what[at]:
                continue
            kind, event = self.what[at][offset]
            if kind != "deposit":
                refused[offset] = "undecodable" if kind == "bytes" else "invalid"
                continue
            balance, count, applied = state.get(event["account"], (0, 0, {}))
            if event["event_id"] in applied:
                continue
            if not 0 < event["amount_minor"] <= limit:
                refused[offset] = "invalid"
                continue
            answer = {name: event[name] for name in KEPT} | {
                "input_id": event["event_id"],
                "balance_minor": balance + event["amount_minor"],
                "version": count + 1,
                "limits_version": version,
            }
            state[event["account"]] = (
                balance + event["amount_minor"],
                count + 1,
                applied | {event["event_id"]: answer},
            )
            answers[event["event_id"]] = (offset, answer)
        return state, answers, refused

    def _account(self, event_id: str) -> str:
        return str(self.accounts_of[event_id]["account"])

    def _start(self, name: str) -> Instance:
        producer = SimulatedProducer(self.broker)
        runner = Runner(
            self.accounts.pipeline,
            self.accounts.processor,
            self.accounts.logic(),
            self.codec,
            producer.as_producer,
            self.settings.database_url,
            Progress(self.name, [self.accounts.deposits.name], Health()),
        )
        self.running[name] = Instance(runner, producer)
        return self.running[name]

    def _end(self, name: str) -> None:
        self.running.pop(name).runner.close()


@pytest.mark.short_faults
@pytest.mark.timeout(900)
def test_the_state_is_what_a_fold_gives(
    database: Settings, codec: Codec, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, cut off, fenced or unanswered anywhere: what is restored, and what was sent, is the fold's."""
    outcomes: Counter[str] = Counter()
    monkeypatch.setattr("streams.runner.SNAPSHOT_FLOOR_BYTES", SNAPSHOT_BYTES)
    monkeypatch.setattr("streams.runner.VERSIONS_SECONDS", 0.0)
    with connect(database.database_url) as connection:
        faults = Faults(connection)
        monkeypatch.setattr("streams.database.connect", faults.connect)
        simulate(lambda: StateMachine(database, codec, accounts, faults, outcomes), histories=25)
    print(dict(outcomes))  # noqa: T201
    never = [kind for kind in OUTCOMES if not outcomes[kind]]
    assert not never, f"never happened, so nothing was shown about it: {never}"
