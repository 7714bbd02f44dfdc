"""Reconciling a small real topic with a real table: what breaks the promise is found and named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from infra.broker import producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.postgres import connect
from infra.reconcile import Account, reconcile
from infra.settings import Settings
from infra.watch import Watch
from schemas.declare import Pipelines
from tests.accounts import Accounts


class Bank:
    """The example pipeline without its processes: the test itself appends, stores and refuses."""

    def __init__(self, settings: Settings, codec: Codec, accounts: Accounts) -> None:
        self.settings, self.codec, self.accounts = settings, codec, accounts
        self.producer = producer(settings.kafka)

    def deposit(
        self, event_id: str, amount: int = 5, tenant: str = "default", account: str = "a"
    ) -> tuple[int, int]:
        """Append an event; returns its partition and offset."""
        event = {
            "event_id": event_id,
            "tenant": tenant,
            "occurred_at": 1_700_000_000_000,
            "account": account,
            "amount_minor": amount,
        }
        return self.append(account, self.codec.encode(self.accounts.deposits, event))

    def append(self, key: str, value: bytes) -> tuple[int, int]:
        place: list[tuple[int, int]] = []
        self.producer.produce(
            self.accounts.deposits.name,
            value,
            key.encode(),
            on_delivery=lambda error, m: place.append((m.partition() or 0, m.offset() or 0)),
        )
        self.producer.flush(10)
        return place[0]

    def store(self, *event_ids: str) -> None:
        table = self.accounts.ledger.name
        self.execute(f"SELECT millrace_ensure_partitions('{table}', to_timestamp(0), to_timestamp(1))")
        for event_id in event_ids:
            self.execute(f"INSERT INTO {table} VALUES (%s, to_timestamp(1), 'a', 1, 1, 0, 0, 0)", (event_id,))

    def refuse(self, place: tuple[int, int], input_id: str | None = None, topic: str | None = None) -> None:
        self.execute(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, tenant, input_id,'
            " error_class, error, append_time)"
            " VALUES ('c', %s, %s, %s, %s, 'default', %s, 'invalid', 'no', now())",
            (topic or self.accounts.deposits.name, *place, self.accounts.pipeline.name, input_id),
        )

    def position(self, consumer: str, topic: str, offsets: Iterable[int]) -> None:
        for partition, offset in enumerate(offsets):
            self.execute(
                "INSERT INTO checkpoints (consumer, topic, partition, topic_id, epoch, next_offset)"
                " VALUES (%s, %s, %s, 'x', 1, %s) ON CONFLICT (consumer, topic, partition)"
                " DO UPDATE SET next_offset = EXCLUDED.next_offset",
                (consumer, topic, partition, offset),
            )

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        with connect(self.settings.database_url) as connection:
            connection.execute(statement, values)

    def account(self) -> Account:
        return reconcile(self.settings, self.accounts.pipeline)


@pytest.fixture
def bank(database: Settings, codec: Codec, accounts: Accounts) -> Bank:
    return Bank(database, codec, accounts)


def test_stored_and_refused_events_add_up(bank: Bank) -> None:
    """Acknowledged = in the sink + dead letters, in distinct events, repeats and raw bytes among them."""
    for n in range(20):
        bank.deposit(f"e{n}", account=f"a{n}")
    bank.deposit("e3", account="a3")
    bank.deposit("e3", account="a3")
    bank.store(*(f"e{n}" for n in range(18)))
    bank.refuse(bank.deposit("bad", amount=-1), "bad")
    # Its answer was refused by the sink: the letter is about another topic, and names the input.
    bank.refuse((0, 7), "e18", topic=bank.accounts.balances.name)
    bank.refuse((0, 8), "e19", topic=bank.accounts.balances.name)
    for _ in range(2):
        bank.refuse(bank.append("a", b"\x07 random bytes"))
    found = bank.account()
    assert found.problems == ()
    assert (found.records, found.acknowledged, found.duplicates) == (25, 23, 2)
    assert (found.in_sink, found.dead_letters, found.unaccounted, found.in_both) == (18, 5, 0, 0)
    assert found.balanced


def test_a_lost_event_is_named_with_its_place(bank: Bank) -> None:
    """An event in neither place: not balanced, and the first one is told with partition, offset and id."""
    bank.deposit("kept")
    partition, offset = bank.deposit("lost")
    bank.deposit("lost too")
    bank.store("kept")
    found = bank.account()
    assert not found.balanced
    assert (found.acknowledged, found.in_sink, found.unaccounted) == (3, 1, 2)
    at = TopicPartition(bank.accounts.deposits.name, partition)
    assert f"2 of {at.topic}: the first, {at} offset {offset} (tenant default, id lost)" in found.problems[0]


def test_random_bytes_without_a_dead_letter_are_named(bank: Bank) -> None:
    """A record that is no event and has no dead letter is unaccounted for, like any other."""
    bank.append("a", b"\x00\x7f\xff\xff\xff junk")
    (problem,) = bank.account().problems
    assert "undecodable: schema 2147483647 is not registered" in problem


def test_an_event_in_both_places_is_an_error(bank: Bank) -> None:
    """What is stored and refused as well breaks the promise, though the sums might look right."""
    place = bank.deposit("twofold")
    bank.store("twofold")
    bank.refuse(place, "twofold")
    found = bank.account()
    assert (found.in_both, found.balanced) == (1, False)
    assert "id twofold" in found.problems[0]


def test_the_same_id_sent_again_with_other_content_is_a_duplicate(bank: Bank) -> None:
    """The first is stored, the second refused: one event, in the sink once, nothing wrong."""
    bank.deposit("e")
    bank.store("e")
    bank.refuse(bank.deposit("e", amount=6), "e")
    found = bank.account()
    assert (found.acknowledged, found.duplicates, found.in_sink, found.dead_letters) == (1, 1, 1, 0)
    assert found.balanced


def test_decided_counts_what_lies_below_every_position(bank: Bank) -> None:
    """Only records that the processor's checkpoint covers are decided."""
    places = [bank.deposit(f"e{n}") for n in range(4)]
    bank.position(
        bank.accounts.processor.name,
        bank.accounts.deposits.name,
        [places[2][1] if p == places[0][0] else 0 for p in range(3)],
    )
    assert bank.account().decided == 2


def test_lag_is_named_and_vanishes_when_everything_is_read(bank: Bank) -> None:
    """Watching: a consumer that is behind is named with its place; at the end there is no lag."""
    partition, offset = bank.deposit("e")
    pipeline, deposits = bank.accounts.pipeline, bank.accounts.deposits
    watch = Watch(bank.settings, Pipelines.of(pipeline))
    figures = watch.look()[pipeline.name]
    assert (figures.acknowledged, figures.decided, figures.lag_records) == (1, 0, 1)
    (lag,) = watch.lags(pipeline)
    at = f"{deposits.name}/{partition}"
    assert str(lag) == f"{bank.accounts.processor.name} stands at {offset} of {offset + 1} in {at}"
    watch.look()
    assert watch.look()[pipeline.name].lag_s > 0
    bank.position(
        bank.accounts.processor.name, deposits.name, [offset + 1 if p == partition else 0 for p in range(3)]
    )
    figures = watch.look()[pipeline.name]
    assert (figures.decided, figures.lag_records, figures.lag_s) == (1, 0, 0.0)
    assert watch.lags(pipeline) == []
