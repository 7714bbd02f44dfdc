"""Parts of the log: by time and offset, with a warm-up; ledgers; and the simple form in place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from infra import versions
from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs
from infra.replay.comparison import compare
from infra.replay.places import RangeRefused, bound, resolve
from infra.replay.plan import plan
from infra.settings import Settings
from schemas.declare import Effect
from streams.decide import KeyedState, Outcomes, Record, Versions
from tests.accounts import Account, Accounting, Accounts
from tests.replay.live import (
    advance,
    ask,
    begun,
    deposit,
    put_in_force,
    running,
    send,
    until,
    wait_stored,
)


class Doubling(Accounting):
    """Other code: every deposit counts twice."""

    def decide(
        self, state: KeyedState[Account], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        super().decide(
            state,
            [replace(r, event={**r.event, "amount_minor": r.event["amount_minor"] * 2}) for r in records],
            versions,
            out,
        )


def halves(settings: Settings, codec: Codec, accounts: Accounts) -> datetime:
    """300 deposits, a time, and 200 more; all stored."""
    send(settings, codec, accounts, [deposit(n, f"a{n % 7}") for n in range(300)])
    wait_stored(settings, accounts, 300)
    time.sleep(0.05)
    between = datetime.now(UTC)
    time.sleep(0.05)
    send(settings, codec, accounts, [deposit(n, f"a{n % 7}") for n in range(300, 500)])
    wait_stored(settings, accounts, 500)
    return between


def test_a_partial_replay_warms_its_state_up_and_keeps_earlier_rows(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """From a time on rows are the new code's, over a state of all records; earlier rows stay as they are."""
    ledger = accounts.ledger.name
    with running(database, accounts):
        between = halves(database, codec, accounts)
        same = advance(database, codec, accounts, begun(database, codec, accounts, between))
        with connect(database.database_url) as connection:
            for d in compare(database, connection, same, accounts.pipeline):
                assert d.empty, d
                assert d.table != ledger or d.same == 200
            runs.abort(database, connection, same, accounts.pipeline)
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts, between), logic)
        with connect(database.database_url) as connection:
            found, latest = compare(database, connection, run, accounts.pipeline)
        assert (found.changed, found.added, found.gone) == (200, 0, 0)
        assert (latest.changed, latest.added, latest.gone) == (7, 0, 0)
        put_in_force(database, codec, accounts, run, logic)
        send(database, codec, accounts, [deposit(500, "a0", 1)])
        wait_stored(database, accounts, 501)
    assert ask(database, f"SELECT amount_minor, count(*) FROM {ledger} GROUP BY 1 ORDER BY 1") == [
        (1, 1),
        (100, 300),
        (200, 200),
    ]
    [(balance,)] = ask(database, f"SELECT balance_minor FROM {accounts.latest.name} WHERE account = 'a0'")
    assert balance == 200 * len([n for n in range(500) if n % 7 == 0]) + 1


def test_a_bounded_replay_is_compared_and_not_swapped(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """With --to only the range's rows are compared, and a swap is refused with the reason."""
    with running(database, accounts):
        between = halves(database, codec, accounts)
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts, None, between), logic)
        with connect(database.database_url) as connection:
            ledger, latest = compare(database, connection, run, accounts.pipeline)
            with pytest.raises(runs.RunRefused, match="without --to"):
                put_in_force(database, codec, accounts, run, logic)
    assert (ledger.changed, ledger.added, ledger.gone, ledger.later) == (300, 0, 0, 200)
    assert (latest.changed, latest.gone, latest.later) == (0, 0, 7)


def test_a_range_by_event_time_reaches_from_the_first_to_the_last_of_it(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Offsets are found by the events' own times, also where they came out of order."""
    ensure = [deposit(n, "a") for n in (5, 1, 2, 9, 3, 4, 8, 7)]
    send(database, codec, accounts, ensure)
    start = datetime.fromtimestamp(1_700_000_000, UTC)

    def at(n: int) -> datetime:
        return datetime.fromtimestamp(start.timestamp() + n * 60, UTC)

    places = resolve(database, codec, accounts.pipeline, at(3), at(5), event_time=True)
    [found] = [p for p in places.sources.values() if p.first != p.last]
    assert (found.warm, found.first, found.last) == (0, 0, 6)
    with pytest.raises(RangeRefused, match="needs times"):
        resolve(database, codec, accounts.pipeline, 3, None, event_time=True)
    with pytest.raises(RangeRefused, match="--from: 'yesterday' is no time"):
        bound("yesterday", "--from")


def test_the_plan_tells_what_would_be_read_changed_and_held_back(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Records, bytes, spans, warm-up, rows in reach and outside effects, before anything is written."""
    day_ms = 86_400_000
    processor = replace(
        accounts.processor,
        memory_ms=3 * day_ms,
        effects=(Effect(name="letter", topic=accounts.balances, about="a letter to the holder"),),
    )
    declared = replace(accounts.pipeline, processors=(processor,))
    with running(database, accounts):
        between = halves(database, codec, accounts)
    places = resolve(database, codec, declared, between, None)
    with connect(database.database_url) as connection:
        before = ask(database, "SELECT count(*) FROM replay_runs")
        found = plan(database, connection, codec, declared, places)
        assert before == ask(database, "SELECT count(*) FROM replay_runs")
    [topic] = found.topics
    assert (topic.records, topic.warm_up_records, topic.partitions) == (200, 300, 3)
    assert 5_000 < topic.bytes_about < 50_000 and topic.memory_ms == 3 * day_ms
    assert topic.append_from_ms is not None and topic.append_from_ms >= between.timestamp() * 1000 - 1
    assert (topic.event_from_ms, topic.event_to_ms) == (
        1_700_000_000_000 + 300 * 60_000,
        1_700_000_000_000 + 499 * 60_000,
    )
    ledger, latest = found.tables
    assert (ledger.rows, ledger.in_reach) == (500, 200) and (latest.rows, latest.in_reach) == (7, 7)
    assert [(e["effect"], e["requests"]) for e in found.effects] == [("letter", 200)]


def test_a_ledger_is_compared_and_never_swapped(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """An append-only table gets a comparison table; where it differs, nothing of the pipeline is swapped."""
    ledger = replace(accounts.ledger, append_only=True)
    accounts.pipeline = replace(accounts.pipeline, tables=(ledger, accounts.latest))
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, "a") for n in range(10)])
        wait_stored(database, accounts, 10)
        logic = lambda: Doubling(accounts.balances)  # noqa: E731
        run = advance(database, codec, accounts, begun(database, codec, accounts), logic)
        with connect(database.database_url) as connection:
            found = compare(database, connection, run, accounts.pipeline)[0]
            assert found.comparison_table == f"{run.schema}.comparison_{ledger.name}"
            rows = ask(
                database,
                f"SELECT difference, (live->>'amount_minor')::int, (replayed->>'amount_minor')::int,"
                f" count(*) FROM {found.comparison_table} GROUP BY 1, 2, 3",
            )
            assert rows == [("changed", 100, 200, 10)]
            with pytest.raises(runs.RunRefused, match="append-only"):
                put_in_force(database, codec, accounts, run, logic)
            runs.abort(database, connection, run, accounts.pipeline)
        run = advance(database, codec, accounts, begun(database, codec, accounts))
        assert put_in_force(database, codec, accounts, run).tables == (accounts.latest.name,)
        send(database, codec, accounts, [deposit(10, "a")])
        wait_stored(database, accounts, 11)
    assert ask(database, f"SELECT relkind::text FROM pg_class WHERE oid = '{ledger.name}'::regclass") == [
        ("p",)
    ]
    assert ask(database, f"SELECT count(*) FROM {ledger.name}") == [(11,)]


def test_versions_are_the_current_ones_or_those_that_decided(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """By default today's limits decide all; as-decided, each record has the version it had."""
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n, "a") for n in range(10)])
        wait_stored(database, accounts, 10)
        with connect(database.database_url) as connection:
            versions.publish(connection, accounts.pipeline.name, "limits", {"limit_minor": 500})
        time.sleep(1.5)
        send(database, codec, accounts, [deposit(n, "a") for n in range(10, 15)])
        wait_stored(database, accounts, 15)
        changed = []
        for chosen in ("current", "as-decided"):
            run = advance(database, codec, accounts, begun(database, codec, accounts, versions=chosen))
            with connect(database.database_url) as connection:
                changed.append(compare(database, connection, run, accounts.pipeline)[0].columns)
                runs.abort(database, connection, run, accounts.pipeline)
    assert changed == [{"limits_version": 10}, {}]


def test_in_place_brings_lost_rows_back_and_moves_no_live_position(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """The results there are, stored once more: what was lost is there again, all else is as it was."""
    ledger, latest = accounts.ledger.name, accounts.latest.name
    with running(database, accounts):
        between = halves(database, codec, accounts)
        until(
            lambda: (
                ask(
                    database,
                    "SELECT sum(next_offset) FROM checkpoints WHERE consumer = %s",
                    accounts.processor.name,
                )
                == [(500,)]
            )
        )
        checkpoints = ask(database, "SELECT * FROM checkpoints ORDER BY 1, 2, 3")
        whole = ask(database, f"SELECT * FROM {ledger} ORDER BY event_id")
        balances = ask(database, f"SELECT * FROM {latest} ORDER BY account")
        ask(database, f"DELETE FROM {ledger} WHERE source_offset % 3 = 0")
        ask(database, f"DELETE FROM {latest} WHERE account IN ('a1', 'a2')")
        run = advance(database, codec, accounts, begun(database, codec, accounts, in_place=True))
        assert run.records_done == 500
        assert ask(database, f"SELECT * FROM {ledger} ORDER BY event_id") == whole
        assert ask(database, f"SELECT * FROM {latest} ORDER BY account") == balances
        assert ask(database, "SELECT * FROM checkpoints ORDER BY 1, 2, 3") == checkpoints
        [(own,)] = ask(
            database,
            f"SELECT sum(next_offset) FROM {run.schema}.checkpoints WHERE topic = %s",
            accounts.balances.name,
        )
        assert own == 500
        with connect(database.database_url) as connection:
            with pytest.raises(runs.RunRefused, match="in place"):
                put_in_force(database, codec, accounts, run)
            runs.abort(database, connection, run, accounts.pipeline)
        ask(database, f"DELETE FROM {ledger}")
        late = advance(database, codec, accounts, begun(database, codec, accounts, between, in_place=True))
        assert late.records_done == 200
    assert ask(database, f"SELECT count(*) FROM {ledger}") == [(200,)]
