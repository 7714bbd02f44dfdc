"""The sink's transaction on a real broker and database."""

from __future__ import annotations

import random
import time
from typing import Any

import psycopg
import pytest

from infra import exit_codes
from infra.broker import producer
from infra.checkpoints import Fenced, PositionRefused
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Topic
from sinks.writer import id_hash
from tests.accounts import Accounts
from tests.accounts.running import running_sink as running

DAY = 86_400_000


def balance(
    n: int, account: str = "a", amount_minor: int = 100, version: int | None = None
) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "input_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n * DAY,
        "account": account,
        "amount_minor": amount_minor,
        "balance_minor": n,
        "version": n if version is None else version,
        "limits_version": 0,
    }


def send(
    settings: Settings, codec: Codec, topic: Topic, events: list[dict[str, Any] | bytes], partition: int = 0
) -> None:
    p = producer(settings.kafka)
    for event in events:
        if isinstance(event, bytes):
            p.produce(topic.name, event, "?", partition=partition)
        else:
            p.produce(topic.name, codec.encode(topic, event), event[topic.key], partition=partition)
    assert p.flush(20) == 0


def ask(settings: Settings, query: str, *args: Any) -> list[tuple[Any, ...]]:
    with connect(settings.database_url) as connection:
        return connection.execute(query, args).fetchall()  # type: ignore[arg-type]


def wait_for(
    settings: Settings, accounts: Accounts, total: int, errors: list[BaseException], seconds: float = 40
) -> None:
    """Until the sink has committed `total` records of its result topic."""
    until = time.monotonic() + seconds
    position = None
    while time.monotonic() < until:
        [(position,)] = ask(
            settings,
            "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s AND topic = %s",
            accounts.pipeline.sink_name,
            accounts.balances.name,
        )
        if position == total:
            return
        if errors:
            raise errors[0]
        time.sleep(0.1)
    pytest.fail(f"the sink stood at {position} of {total} after {seconds} s")


def test_rows_range_records_and_positions_are_one(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Every record is a row with its place in the log, and range records cover every offset once."""
    events = [balance(n) for n in range(300)]
    send(database, codec, accounts.balances, events[:200], 0)
    send(database, codec, accounts.balances, events[200:], 1)
    with running(database, accounts) as errors:
        wait_for(database, accounts, 300, errors)
    rows = ask(database, f"SELECT event_id, source_partition, source_offset FROM {accounts.ledger.name}")
    assert sorted(rows) == sorted(
        [(e["event_id"], 0, n) for n, e in enumerate(events[:200])]
        + [(e["event_id"], 1, n) for n, e in enumerate(events[200:])]
    )
    ranges = ask(
        database,
        "SELECT partition, from_offset, to_offset, records_total, dead_total, duplicates_total, ids_hash"
        " FROM range_records WHERE consumer = %s ORDER BY partition, from_offset",
        accounts.pipeline.sink_name,
    )
    for partition, end in ((0, 200), (1, 100)):
        mine = [r for r in ranges if r[0] == partition]
        assert [r[1] for r in mine] == [0, *[r[2] for r in mine[:-1]]] and mine[-1][2] == end
        assert [r[3] for r in mine] == [r[2] - r[1] for r in mine]
    assert sum(r[6] for r in ranges) % 2**64 == sum(id_hash(e["event_id"]) for e in events) % 2**64
    assert sum(r[4] + r[5] for r in ranges) == 0


def test_duplicates_change_nothing_and_are_counted(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """First wins in the ledger, the highest version in the latest-value table, within and across batches."""
    send(database, codec, accounts.balances, [balance(5), balance(6), balance(5, amount_minor=1), balance(3)])
    with running(database, accounts) as errors:
        wait_for(database, accounts, 4, errors)
        send(database, codec, accounts.balances, [balance(6, amount_minor=2), balance(4), balance(7, "b")])
        wait_for(database, accounts, 7, errors)
        send(database, codec, accounts.balances, [balance(2)])  # older, and alone in its batch
        wait_for(database, accounts, 8, errors)
    assert sorted(ask(database, f"SELECT event_id, amount_minor FROM {accounts.ledger.name}")) == [
        (f"e{n}", 100) for n in (2, 3, 4, 5, 6, 7)
    ]
    assert sorted(ask(database, f"SELECT account, version FROM {accounts.latest.name}")) == [
        ("a", 6),
        ("b", 7),
    ]
    assert ask(
        database,
        "SELECT sum(duplicates_total), sum(records_total) FROM range_records WHERE consumer = %s",
        accounts.pipeline.sink_name,
    ) == [(2, 8)]


def test_what_the_database_refuses_is_a_dead_letter_and_its_neighbours_land(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Constraint breaches, oversized keys, NULs, undecodable bytes: exactly these become dead letters."""
    events: list[dict[str, Any] | bytes] = [balance(n) for n in range(40)]
    events[3] = balance(3, amount_minor=13)
    events[7] = b"random"
    events[11] = balance(
        11, account=random.Random(1).randbytes(4500).hex()
    )  # beyond a btree's row size: fails in the merge, without a line
    events[12] = {**balance(12), "event_id": "nul\0"}
    events[39] = balance(39, amount_minor=13)
    send(database, codec, accounts.balances, events)
    with running(database, accounts) as errors:
        wait_for(database, accounts, 40, errors)
        until = time.monotonic() + 20
        while time.monotonic() < until:  # the mirror is read back by the same sink and changes nothing
            [(mirrored,)] = ask(
                database,
                "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s AND topic = %s",
                accounts.pipeline.sink_name,
                accounts.balances.dlq.name,
            )
            if mirrored == 5:
                break
            time.sleep(0.1)
    assert mirrored == 5
    letters = ask(
        database,
        'SELECT "offset", error_class, input_id FROM dead_letters WHERE topic = %s ORDER BY "offset"',
        accounts.balances.name,
    )
    assert letters == [
        (3, "constraint", "e3"),
        (7, "undecodable", None),
        (11, "constraint", "e11"),
        (12, "constraint", "e12"),
        (39, "constraint", "e39"),
    ]
    assert {r[0] for r in ask(database, f"SELECT event_id FROM {accounts.ledger.name}")} == {
        f"e{n}" for n in range(40) if n not in (3, 7, 11, 12, 39)
    }


def test_the_database_away_delays_and_loses_nothing(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Cut connections are waited out: no dead letter, every row once."""
    with running(database, accounts) as errors:
        for n in range(5):
            send(database, codec, accounts.balances, [balance(n * 50 + k) for k in range(50)])
            ask(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                accounts.pipeline.sink_name,
            )
        wait_for(database, accounts, 250, errors)
    assert ask(database, f"SELECT count(*), count(DISTINCT event_id) FROM {accounts.ledger.name}") == [
        (250, 250)
    ]
    assert ask(database, "SELECT count(*) FROM dead_letters WHERE topic = %s", accounts.balances.name) == [
        (0,)
    ]


def test_a_zombie_cannot_commit(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """A sink whose partition was claimed under a newer epoch writes nothing and ends as fenced."""
    with running(database, accounts) as errors:
        send(database, codec, accounts.balances, [balance(1)])
        wait_for(database, accounts, 1, errors)
        ask_none(
            database,
            "UPDATE checkpoints SET epoch = epoch + 1 WHERE consumer = %s",
            accounts.pipeline.sink_name,
        )
        send(database, codec, accounts.balances, [balance(2)])
        until = time.monotonic() + 20
        while not errors and time.monotonic() < until:
            time.sleep(0.05)
    assert len(errors) == 1 and isinstance(errors[0], Fenced)
    assert ask(database, f"SELECT event_id FROM {accounts.ledger.name}") == [("e1",)]


def test_a_position_beyond_the_log_is_refused(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """A database that is ahead of its topic stops the sink with a sentence, rather than skipping records."""
    send(database, codec, accounts.balances, [balance(1)])
    with running(database, accounts) as errors:
        wait_for(database, accounts, 1, errors)
    ask_none(
        database, "UPDATE checkpoints SET next_offset = 99 WHERE (consumer, topic, partition) = (%s, %s, 0)",
        accounts.pipeline.sink_name, accounts.balances.name,
    )  # fmt: skip
    with running(database, accounts) as errors:
        until = time.monotonic() + 20
        while not errors and time.monotonic() < until:
            time.sleep(0.05)
    assert isinstance(errors[0], PositionRefused) and errors[0].exit_code == exit_codes.POSITION
    assert "position 99" in str(errors[0]) and "lies outside the log" in str(errors[0])


def ask_none(settings: Settings, statement: str, *args: Any) -> None:
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute(statement, args)  # type: ignore[arg-type]
