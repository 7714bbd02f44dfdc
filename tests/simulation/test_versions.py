"""What begins with a new version, where processes die and databases do not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from infra import versions
from infra.broker import PartitionBatch
from infra.checkpoints import LogBounds, TopicPartition
from infra.codec import Codec
from infra.postgres import Connection, connect
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from streams.database import Transient
from streams.runner import Runner
from tests.accounts import Accounts
from tests.simulation.broker import START_MS, Broker, SimulatedProducer
from tests.simulation.database import Fault, Faults


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    with connect(database.database_url) as connection:
        yield connection


class Bank:
    """Partition 0 of the example pipeline's deposits, and the processes that read it one after another."""

    def __init__(self, settings: Settings, codec: Codec, accounts: Accounts) -> None:
        self.settings, self.codec, self.accounts = settings, codec, accounts
        self.at = TopicPartition(accounts.deposits.name, 0)
        self.broker = Broker(
            {t.name: 1 for t in (accounts.deposits, accounts.balances, accounts.deposits.dlq)}
        )

    def deposit(self, *numbers: int) -> None:
        for n in numbers:
            event = {
                "event_id": f"e{n}",
                "tenant": "default",
                "occurred_at": START_MS,
                "account": "a",
                "amount_minor": 100,
            }
            self.broker.append(self.at.topic, self.codec.encode(self.accounts.deposits, event), b"a")

    def runner(self) -> Runner:
        return Runner(
            self.accounts.pipeline,
            self.accounts.processor,
            self.accounts.logic(),
            self.codec,
            SimulatedProducer(self.broker).as_producer,
            self.settings.database_url,
            Progress(self.accounts.processor.name, [self.at.topic], Health()),
        )

    def log(self) -> dict[TopicPartition, LogBounds]:
        return {self.at: self.broker.bounds(self.at)}

    def batch(self, epoch: int, start: int) -> PartitionBatch:
        messages, end = self.broker.read(self.at, start, 1_000)
        return PartitionBatch(self.at, epoch, messages, end)

    def answers(self) -> list[tuple[str, int]]:
        """Event id and version of the limits of each answer."""
        events = [
            self.codec.decode(self.accounts.balances, m.value()).event
            for m in self.broker.records(self.accounts.balances.name)
        ]
        return [(e["event_id"], e["limits_version"]) for e in events]


def publish(connection: Connection, accounts: Accounts, limit_minor: int) -> None:
    versions.publish(connection, accounts.pipeline.name, "limits", {"limit_minor": limit_minor})


def test_what_a_dead_process_may_have_answered_is_answered_by_the_same_version(
    database: Settings, codec: Codec, accounts: Accounts, connection: Connection
) -> None:
    """Answers were sent, the process died before its checkpoint, a version was published: the same records
    get the same answers again, and the version begins with what came after."""
    bank = Bank(database, codec, accounts)
    bank.deposit(1, 2)
    with closing(bank.runner()) as first:
        epoch = first.claim(bank.log())[bank.at].epoch
        first.apply(first.prepare([bank.batch(epoch, 0)]))
        first.producer.flush()
    publish(connection, accounts, 500)
    with closing(bank.runner()) as second:
        epoch = second.claim(bank.log())[bank.at].epoch
        bank.deposit(3)
        second.apply(second.prepare([bank.batch(epoch, 0)]))
        second.checkpoint()
    assert bank.answers() == [("e1", 0), ("e2", 0), ("e1", 0), ("e2", 0), ("e3", 1)]


def test_a_version_that_was_published_before_the_first_record_begins_with_it(
    database: Settings, codec: Codec, accounts: Accounts, connection: Connection
) -> None:
    """Where nobody has ever read, nothing can have been answered: the whole log is by the newest version."""
    publish(connection, accounts, 500)
    bank = Bank(database, codec, accounts)
    bank.deposit(1, 2)
    with closing(bank.runner()) as first:
        epoch = first.claim(bank.log())[bank.at].epoch
        first.apply(first.prepare([bank.batch(epoch, 0)]))
        first.checkpoint()
    assert bank.answers() == [("e1", 1), ("e2", 1)]


def test_a_version_whose_commit_was_not_answered_is_written_down_once(
    database: Settings,
    codec: Codec,
    accounts: Accounts,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process tries again and goes on, by a still newer version where there is one by then."""
    faults = Faults(connection)
    monkeypatch.setattr("streams.database.connect", faults.connect)
    monkeypatch.setattr("streams.runner.VERSIONS_SECONDS", 0.0)
    publish(connection, accounts, 500)
    bank = Bank(database, codec, accounts)
    bank.deposit(1)
    with closing(bank.runner()) as first:
        epoch = first.claim(bank.log())[bank.at].epoch
        faults.arm(Fault.ANSWER_LOST)
        with pytest.raises(Transient):
            first.prepare([bank.batch(epoch, 0)])
        publish(connection, accounts, 400)
        first.apply(first.prepare([bank.batch(epoch, 0)]))
        first.checkpoint()
        found = versions.read_activations(connection, first.processor.name, bank.at, ["limits"])["limits"]
    assert bank.answers() == [("e1", 2)]
    assert (found.offsets, found.versions) == ([0], [2])
