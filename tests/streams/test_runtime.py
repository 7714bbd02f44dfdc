"""Processors on a real broker and database, under Faust."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from infra import versions
from infra.broker import producer
from infra.checkpoints import Fenced
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from tests.accounts import Accounts
from tests.accounts.running import running_processor as running


def deposit(n: int, account: str, amount_minor: int = 100) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n,
        "account": account,
        "amount_minor": amount_minor,
    }


def send(settings: Settings, codec: Codec, accounts: Accounts, events: list[dict[str, Any]]) -> None:
    p = producer(settings.kafka)
    for event in events:
        p.produce(accounts.deposits.name, codec.encode(accounts.deposits, event), event["account"])
    assert p.flush(20) == 0


def read(settings: Settings, topic: str, partitions: int) -> list[tuple[int, int, bytes, bytes]]:
    """Everything in the topic now: (partition, offset, key, value)."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": "reader",
            "enable.auto.commit": False,
        }
    )
    found = []
    try:
        for n in range(partitions):
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)
            consumer.assign([TopicPartition(topic, n, 0)])
            position = 0
            while position < end:
                for m in consumer.consume(1000, 1.0):
                    assert m.error() is None
                    found.append((n, m.offset(), m.key(), m.value()))
                    position = m.offset() + 1
    finally:
        consumer.close()
    return found


def wait_for(
    settings: Settings, accounts: Accounts, total: int, errors: list[BaseException], seconds: float = 40
) -> None:
    """Until the processor has checkpointed `total` input records."""
    until = time.monotonic() + seconds
    with connect(settings.database_url) as connection:
        while time.monotonic() < until:
            row = connection.execute(
                "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s",
                (accounts.processor.name,),
            ).fetchone()
            assert row is not None
            if row[0] == total:
                return
            if errors:
                raise errors[0]
            time.sleep(0.1)
    pytest.fail(f"the processor stood at {row[0]} of {total} after {seconds} s")


def outputs(settings: Settings, codec: Codec, accounts: Accounts) -> list[dict[str, Any]]:
    return [
        codec.decode(accounts.balances, value).event
        for *_, value in read(settings, accounts.balances.name, accounts.balances.partitions)
    ]


def test_every_record_is_answered_once_and_state_survives_a_restart(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Each deposit gets one balance, and a new worker goes on from the old one's state."""
    first = [deposit(n, f"a{n % 7}") for n in range(500)]
    second = [deposit(n, f"a{n % 7}") for n in range(500, 800)]
    send(database, codec, accounts, first)
    with running(database, accounts) as errors:
        wait_for(database, accounts, 500, errors)
    send(database, codec, accounts, second)
    with running(database, accounts) as errors2:
        wait_for(database, accounts, 800, errors2)
    assert errors == errors2 == []
    found = outputs(database, codec, accounts)
    assert sorted(e["event_id"] for e in found) == sorted(e["event_id"] for e in first + second)
    last = {e["account"]: e for e in sorted(found, key=lambda e: e["version"])}
    assert {a: e["balance_minor"] for a, e in last.items()} == {
        f"a{k}": 100 * len([n for n in range(800) if n % 7 == k]) for k in range(7)
    }


def test_snapshots_are_made_beside_it(
    database: Settings, codec: Codec, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it decides, its deltas become snapshots; who takes over from them goes on the same."""
    monkeypatch.setattr("streams.runner.SNAPSHOT_FLOOR_BYTES", 1)
    name = accounts.pipeline.name
    sent = 0
    for _ in range(2):
        before = snapshots(database, accounts)
        with running(
            *(database, accounts),
            compaction=lambda _: [sys.executable, "-m", "tests.accounts.compaction", name],
        ) as errors:
            until = time.monotonic() + 40
            while snapshots(database, accounts) == before:
                assert time.monotonic() < until, "no snapshot was made"
                send(database, codec, accounts, [deposit(n, f"a{n % 7}") for n in range(sent, sent + 70)])
                sent += 70
                time.sleep(0.3)
            wait_for(database, accounts, sent, errors)
        assert errors == []
    found = sorted(outputs(database, codec, accounts), key=lambda e: e["version"])
    assert {e["account"]: e["balance_minor"] for e in found} == {f"a{k}": 100 * sent // 7 for k in range(7)}


def snapshots(settings: Settings, accounts: Accounts) -> list[tuple[object, ...]]:
    """Partition and offset of each snapshot."""
    with connect(settings.database_url) as connection:
        return connection.execute(
            "SELECT DISTINCT partition, next_offset FROM state_chunks WHERE consumer = %s AND is_snapshot"
            " ORDER BY 1",
            (accounts.processor.name,),
        ).fetchall()


def test_a_duplicate_counts_once_and_gets_the_stored_answer(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """A deposit sent again changes no balance and is answered with the same bytes."""
    events = [deposit(n, "a") for n in range(20)]
    send(database, codec, accounts, events + events[:5])
    with running(database, accounts) as errors:
        wait_for(database, accounts, 25, errors)
    found = read(database, accounts.balances.name, accounts.balances.partitions)
    assert len(found) == 25
    assert [v for *_, v in found[20:]] == [v for *_, v in found[:5]]


def test_a_bad_record_becomes_a_dead_letter_and_its_neighbours_are_answered(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Random bytes, unknown schema, wrong key, trailing bytes, the future, a bad value: just these go."""
    p = producer(database.kafka)
    name = accounts.deposits.name
    good = codec.encode(accounts.deposits, deposit(1, "a"))
    future = {**deposit(5, "a"), "occurred_at": int(time.time() * 1000) + 6 * 60_000}
    poison = [
        random.Random(1).randbytes(1000),
        b"",
        b"\0\xff\xff\xff\xff" + good[5:],
        good + b"!",
        good[:-1],
        codec.encode(
            accounts.balances,
            {**deposit(9, "a"), "input_id": "x", "balance_minor": 1, "version": 1, "limits_version": 0},
        ),
        codec.encode(accounts.deposits, future),
        codec.encode(accounts.deposits, deposit(6, "a", -5)),
    ]
    p.produce(name, good, "a", partition=1)
    for value in poison:
        p.produce(name, value, "a", partition=1)
    p.produce(name, codec.encode(accounts.deposits, deposit(7, "a")), "another key", partition=1)
    p.produce(name, None, "a", partition=1)
    p.produce(name, codec.encode(accounts.deposits, deposit(2, "a")), "a", partition=1)
    assert p.flush(20) == 0
    with running(database, accounts) as errors:
        wait_for(database, accounts, len(poison) + 4, errors)
    assert [e["event_id"] for e in outputs(database, codec, accounts)] == ["e1", "e2"]
    dlq = accounts.deposits.dlq
    letters = [codec.decode(dlq, v).event for *_, v in read(database, dlq.name, 1)]
    assert [e["offset"] for e in letters if e["error_class"] == "undecodable"] == [1, 2, 3, 4, 5, 6, 10]
    assert {(e["offset"], e["field"]) for e in letters if e["error_class"] == "invalid"} == {
        (7, "occurred_at"),
        (8, "amount_minor"),
        (9, "account"),
    }
    assert [e["value"] for e in sorted(letters, key=lambda e: e["offset"])][: len(poison)] == poison


def test_a_version_applies_from_an_offset_that_is_written_down_first(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Records before a new limit keep the old one, also when they are read again after a restart."""
    name = accounts.pipeline.name
    with running(database, accounts) as errors:
        send(database, codec, accounts, [deposit(n, "a") for n in range(10)])
        wait_for(database, accounts, 10, errors)
        with connect(database.database_url) as connection:
            assert versions.publish(connection, name, "limits", {"limit_minor": 50}) == 1
        time.sleep(1.5)
        send(database, codec, accounts, [deposit(n, "a") for n in range(10, 15)])
        wait_for(database, accounts, 15, errors)
    assert [e["event_id"] for e in outputs(database, codec, accounts)] == [f"e{n}" for n in range(10)]
    # A crash that lost the checkpoint: everything is read again, and decided as it was then.
    with connect(database.database_url) as connection:
        connection.execute("DELETE FROM state_chunks WHERE consumer = %s", (accounts.processor.name,))
        connection.execute(
            "UPDATE checkpoints SET next_offset = 0 WHERE consumer = %s", (accounts.processor.name,)
        )
    before = read(database, accounts.balances.name, accounts.balances.partitions)
    with running(database, accounts) as errors:
        wait_for(database, accounts, 15, errors)
    again = read(database, accounts.balances.name, accounts.balances.partitions)[len(before) :]
    assert [v for *_, v in again] == [v for *_, v in before]


def test_a_defect_stops_the_worker_without_a_checkpoint(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """An exception of the decision ends the process, and the position stays before the batch."""
    send(database, codec, accounts, [deposit(1, "a"), deposit(2, "a", 666)])
    with running(database, accounts) as errors:
        until = time.monotonic() + 20
        while not errors and time.monotonic() < until:
            time.sleep(0.05)
    assert [str(e) for e in errors] == ["a defect"]
    with connect(database.database_url) as connection:
        row = connection.execute(
            "SELECT sum(next_offset) FROM checkpoints WHERE consumer = %s", (accounts.processor.name,)
        ).fetchone()
    assert row == (0,)


def test_two_workers_share_the_partitions_and_one_takes_over(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """With a second worker that joins and leaves, every deposit is still answered and sums are right."""
    with running(database, accounts, "0") as errors:
        send(database, codec, accounts, [deposit(n, f"a{n % 11}") for n in range(300)])
        with running(database, accounts, "1") as errors1:
            time.sleep(3)
            send(database, codec, accounts, [deposit(n, f"a{n % 11}") for n in range(300, 600)])
            wait_for(database, accounts, 600, errors)
        send(database, codec, accounts, [deposit(n, f"a{n % 11}") for n in range(600, 900)])
        wait_for(database, accounts, 900, errors)
    assert errors == errors1 == []
    distinct = {e["event_id"]: e for e in outputs(database, codec, accounts)}
    assert len(distinct) == 900
    assert sum(e["amount_minor"] for e in distinct.values()) == 90_000
    last = {e["account"]: e for e in sorted(distinct.values(), key=lambda e: e["version"])}
    assert sum(e["balance_minor"] for e in last.values()) == 90_000


def test_a_zombie_cannot_commit(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """A worker whose partition was claimed by another epoch ends as fenced and moves no position."""
    with running(database, accounts) as errors:
        send(database, codec, accounts, [deposit(1, "a")])
        wait_for(database, accounts, 1, errors)
        with connect(database.database_url) as connection:
            connection.execute(
                "UPDATE checkpoints SET epoch = epoch + 1 WHERE consumer = %s", (accounts.processor.name,)
            )
        send(database, codec, accounts, [deposit(2, "a")])
        until = time.monotonic() + 20
        while not errors and time.monotonic() < until:
            time.sleep(0.05)
    assert len(errors) == 1 and isinstance(errors[0], Fenced)
