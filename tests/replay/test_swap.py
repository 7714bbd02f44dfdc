"""Putting a replay in force while records, readers and killed swaps go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psycopg
import pytest

from infra.codec import Codec
from infra.postgres import connect
from infra.reconcile import reconcile
from infra.replay import runs
from infra.replay.comparison import compare
from infra.settings import Settings
from infra.trace import Tracer
from schemas.declare import Pipelines
from streams.decide import KeyedState, Outcomes, Record, Versions
from tests.accounts import Account, Accounting, Accounts
from tests.replay.live import (
    advance,
    ask,
    begun,
    deposit,
    processor,
    put_in_force,
    running,
    send,
    sink,
    until,
    wait_stored,
)


class Doubling(Accounting):
    """Other code: every deposit counts twice."""

    def decide(
        self, state: KeyedState[Account], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        doubled = [
            Record(
                r.topic,
                r.partition,
                r.offset,
                r.append_ms,
                {**r.event, "amount_minor": r.event["amount_minor"] * 2},
            )
            for r in records
        ]
        super().decide(state, doubled, versions, out)


def trickle(settings: Settings, codec: Codec, accounts: Accounts, numbers: range) -> None:
    """Send deposits of 100 a few at a time, for about ten seconds."""
    for first in range(numbers.start, numbers.stop, 5):
        some = range(first, min(first + 5, numbers.stop))
        send(settings, codec, accounts, [deposit(n, f"a{n % 7}") for n in some])
        time.sleep(0.15)


@pytest.mark.faults
def test_a_swap_is_whole_for_every_reader_and_takes_live_rows_along(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Readers see the old sums or the new ones, never a mixture; what came meanwhile is there too."""
    ledger, latest = accounts.ledger.name, accounts.latest.name
    ask(
        database,
        f"CREATE VIEW {ledger}_sums AS SELECT l.account, sum(l.amount_minor)::bigint AS paid,"
        f" max(b.balance_minor) AS balance FROM {ledger} l JOIN {latest} b USING (account) GROUP BY 1",
    )
    ask(database, f"COMMENT ON COLUMN {latest}.version IS 'how often'")
    old, new = 100, 200
    torn: list[object] = []
    generations: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        with connect(database.database_url) as connection:
            while not stop.is_set():
                row = connection.execute(
                    f"SELECT min(amount_minor), max(amount_minor), count(*) FROM {ledger}"
                    " WHERE occurred_at < to_timestamp(1700000000 + 1000 * 60)"
                ).fetchone()
                assert row is not None
                generations.add(int(str(row[0])))
                if row[0] != row[1] or row[2] != 1_000:
                    torn.append(row)
                time.sleep(0.005)

    sent = [deposit(n, f"a{n % 7}", old) for n in range(1_000)]
    with running(database, accounts):
        send(database, codec, accounts, sent)
        wait_stored(database, accounts, 1_000)
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts), logic)
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        traffic = threading.Thread(target=trickle, args=(database, codec, accounts, range(1_000, 1_300)))
        traffic.start()
        done = put_in_force(database, codec, accounts, run, logic)
        traffic.join()
        wait_stored(database, accounts, 1_300)
        assert done.tables == (ledger, latest) and done.held_s < 10
        time.sleep(0.3)
        stop.set()
        for reader in readers:
            reader.join()
        # The live processor goes on, by its own code, with the state of the replay.
        send(database, codec, accounts, [deposit(2_000 + n, f"a{n}", 1) for n in range(7)])
        wait_stored(database, accounts, 1_307)
        assert ask(database, f"SELECT count(*) FROM {ledger}") == [(1_307,)]
        # Below one offset of each partition all is the replay's, from there on all the live processor's.
        replayed = ask(
            database, f"SELECT account, max(occurred_at) FROM {ledger} WHERE source_offset < 0 GROUP BY 1"
        )
        for account, last in replayed:
            assert ask(
                database,
                f"SELECT count(*) FROM {ledger} WHERE account = %s"
                " AND (source_offset < 0) <> (occurred_at <= %s)",
                account,
                last,
            ) == [(0,)]
        assert {
            k
            for (k,) in ask(
                database,
                f"SELECT amount_minor = CASE WHEN source_offset < 0 THEN {new}"
                " WHEN occurred_at > to_timestamp(1700000000 + 1999 * 60) THEN 1"
                f" ELSE {old} END FROM {ledger}",
            )
        } == {True}
        expected = dict(ask(database, f"SELECT account, sum(amount_minor)::bigint FROM {ledger} GROUP BY 1"))
        assert dict(ask(database, f"SELECT account, balance_minor FROM {latest}")) == expected
    assert {a: (p, b) for a, p, b in ask(database, f"SELECT * FROM {ledger}_sums")} == {
        a: (b, b) for a, b in expected.items()
    }
    assert torn == [] and generations == {old, new}
    assert ask(
        database,
        "SELECT col_description(%s::regclass, 3)",
        latest,
    ) == [("how often",)]
    # A second replay is swapped over the first.
    with running(database, accounts):
        with connect(database.database_url) as connection:
            runs.abort(database, connection, run, accounts.pipeline)
        again = advance(database, codec, accounts, begun(database, codec, accounts))
        put_in_force(database, codec, accounts, again)
        send(database, codec, accounts, [deposit(3_000, "a0", 5)])
        wait_stored(database, accounts, 1_308)
    assert ask(database, f"SELECT sum(amount_minor), count(*) FROM {ledger}") == [
        (1_300 * old + 7 + 5, 1_308)
    ]
    assert ask(database, f"SELECT balance_minor FROM {latest} WHERE account = 'a0'") == [
        (old * len([n for n in range(1_300) if n % 7 == 0]) + 1 + 5,)
    ]


def test_an_older_snapshot_is_told_to_begin_again(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """A transaction that began before the swap sees no half-filled table: it gets a serialization failure."""
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, "a") for n in range(50)])
        wait_stored(database, accounts, 50)
        run = advance(database, codec, accounts, begun(database, codec, accounts))
        with connect(database.database_url) as reader:
            with (
                pytest.raises(psycopg.errors.SerializationFailure, match="after this transaction began"),
                reader.transaction(),
            ):
                reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                reader.execute("SELECT 1 FROM replay_runs")
                put_in_force(database, codec, accounts, run)
                reader.execute(f"SELECT count(*) FROM {accounts.latest.name}".encode())
            row = reader.execute(f"SELECT count(*) FROM {accounts.latest.name}".encode()).fetchone()
            assert row == (1,)


KILLED = """
import os, sys
from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs, swap
from infra.settings import Settings
from infra.trace import Tracer
from schemas.declare import Pipelines
from tests.accounts import Accounts
from tests.replay.live import put_in_force

swap.HOLD_SECONDS = 4
swap._commit = lambda *_: os.kill(os.getpid(), 9)
settings = Settings.load()
with connect(settings.database_url) as connection:
    run = runs.find(connection, int(sys.argv[2]))
put_in_force(settings, Codec(settings.schema_registry_url), Accounts(sys.argv[1]), run)
"""


def test_a_swap_killed_before_its_commit_changes_nothing_and_can_be_repeated(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """kill -9 while everybody is held: live goes on by itself, and a second swap takes all of it along."""
    prefix = accounts.processor.name.removesuffix("-accounting")
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, f"a{n % 5}") for n in range(200)])
        wait_stored(database, accounts, 200)
        run = advance(database, codec, accounts, begun(database, codec, accounts))
        killed = subprocess.run([sys.executable, "-c", KILLED, prefix, str(run.run_id)], timeout=120)
        assert killed.returncode == -9
        assert ask(database, "SELECT count(*) FROM holds WHERE run_id = %s", run.run_id) == [(1,)]
        send(database, codec, accounts, [deposit(n, f"a{n % 5}") for n in range(200, 300)])
        wait_stored(database, accounts, 300)
        assert ask(database, "SELECT count(*) FROM generations WHERE name = %s", accounts.latest.name) == [
            (0,)
        ]
        put_in_force(database, codec, accounts, run)
        send(database, codec, accounts, [deposit(n, f"a{n % 5}") for n in range(300, 350)])
        wait_stored(database, accounts, 350)
    assert ask(database, f"SELECT DISTINCT balance_minor FROM {accounts.latest.name}") == [(7_000,)]
    assert ask(database, f"SELECT count(*) FROM {accounts.ledger.name}") == [(350,)]


def test_a_killed_swap_holds_nobody_for_long(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """A hold whose swap died expires; the processor goes on from where it stood, with the state it had."""
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, "a") for n in range(20)])
        wait_stored(database, accounts, 20)
        ask(
            database,
            "INSERT INTO holds VALUES (%s, 0, clock_timestamp() + interval '3 s')",
            accounts.processor.name,
        )
        until(
            lambda: (
                ask(
                    database,
                    "SELECT count(*) FROM checkpoints WHERE consumer = %s AND held_by = 0",
                    accounts.processor.name,
                )
                == [(3,)]
            )
        )
        send(database, codec, accounts, [deposit(n, "a") for n in range(20, 40)])
        wait_stored(database, accounts, 40)
    assert ask(database, f"SELECT balance_minor FROM {accounts.latest.name}") == [(4_000,)]


def test_nothing_is_swapped_where_a_processor_does_not_answer(
    database: Settings, codec: Codec, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the live processor a swap is refused and changes nothing; with --stopped it is fenced."""
    monkeypatch.setattr("infra.replay.swap.GIVE_UP_SECONDS", 1.0)
    with sink(database, accounts):
        with processor(database, accounts):
            send(database, codec, accounts, [deposit(n, "a") for n in range(20)])
            wait_stored(database, accounts, 20)
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts), logic)
        with pytest.raises(runs.RunRefused, match="--stopped"):
            put_in_force(database, codec, accounts, run, logic)
        assert ask(database, "SELECT count(*) FROM holds WHERE run_id = %s", run.run_id) == [(0,)]
        assert ask(database, f"SELECT balance_minor FROM {accounts.latest.name}") == [(2_000,)]
        put_in_force(database, codec, accounts, run, logic, stopped=True)
        assert ask(database, f"SELECT balance_minor FROM {accounts.latest.name}") == [(4_000,)]
        with processor(database, accounts):
            send(database, codec, accounts, [deposit(20, "a", 1)])
            wait_stored(database, accounts, 21)
    assert ask(database, f"SELECT balance_minor FROM {accounts.latest.name}") == [(4_001,)]


def test_dead_letters_change_hands_with_the_rows(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """What new code accepts leaves the dead letters, what both refuse stays, and no event stands in both."""
    events = [deposit(1, "a"), deposit(2, "a", -5), deposit(3, "a", 13), deposit(4, "a")]
    with running(database, accounts):
        send(database, codec, accounts, events)
        wait_stored(database, accounts, 3)
        until(lambda: ask(database, "SELECT count(*) FROM dead_letters") == [(2,)])
        ask(
            database,
            "INSERT INTO dead_letter_actions (letter, action, actor) SELECT id, 'reopen', 'tests'"
            " FROM dead_letters WHERE input_id = 'e3'",
        )
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts), logic)
        put_in_force(database, codec, accounts, run, logic)
        with connect(database.database_url) as connection:
            tracer = Tracer(connection, codec, database.kafka, Pipelines.of(accounts.pipeline))
            [traced] = tracer.row(f"{accounts.latest.name}:a")
            assert traced.place.topic.endswith(f"-replay-{run.run_id}") and traced.record is not None
            assert traced.record.event_id == "e4"
        with connect(database.database_url) as connection:
            swapped = runs.find(connection, run.run_id)
            assert swapped.status == "swapped"
            with pytest.raises(runs.RunRefused, match="swapped"):
                put_in_force(database, codec, accounts, swapped, logic)
    account = reconcile(database, accounts.pipeline)
    assert account.balanced and account.in_sink == 3, account
    assert ask(
        database, "SELECT consumer, input_id, pipeline, status FROM dead_letters ORDER BY input_id"
    ) == [
        (accounts.processor.name, "e2", accounts.pipeline.name, "open"),
        # An operator had worked on it: its history stays, and says what became of it.
        (accounts.pipeline.sink_name, "e3", accounts.pipeline.name, "redriven"),
    ]
    assert ask(database, "SELECT note FROM dead_letter_actions WHERE action = 'redriven'") == [
        (f"read again by replay {run.run_id}",)
    ]
    assert {e for (e,) in ask(database, f"SELECT event_id FROM {accounts.ledger.name}")} == {"e1", "e3", "e4"}


def test_comparing_changes_nothing(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """A comparison during live traffic shows no difference that is only a matter of who came first."""
    stop = threading.Event()

    def keep_sending() -> None:
        n = 0
        while not stop.is_set():
            send(database, codec, accounts, [deposit(10_000 + n + k, f"a{k % 5}") for k in range(40)])
            n += 40
            time.sleep(0.05)

    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, f"a{n % 5}") for n in range(2_000)])
        wait_stored(database, accounts, 2_000)
        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            run = advance(database, codec, accounts, begun(database, codec, accounts))
            for _ in range(5):
                with connect(database.database_url) as connection:
                    for d in compare(database, connection, run, accounts.pipeline):
                        assert d.empty and d.same + d.later > 0, d
                        assert d.table != accounts.ledger.name or d.same >= 2_000
                time.sleep(0.5)
        finally:
            stop.set()
            sender.join()
