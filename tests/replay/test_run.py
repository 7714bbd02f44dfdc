"""Replays into tables of their own, on a real broker and database."""

from __future__ import annotations

from collections.abc import Sequence

from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs
from infra.replay.comparison import Difference, compare, refusals
from infra.settings import Settings
from streams.decide import KeyedState, Outcomes, Record, Versions
from tests.accounts import Account, Accounting, Accounts
from tests.replay.live import advance, ask, begun, deposit, running, send, wait_stored


class Generous(Accounting):
    """Other code: it refuses what ends in 7, and pays one more where the amount is 200."""

    def decide(
        self, state: KeyedState[Account], records: Sequence[Record], versions: Versions, out: Outcomes
    ) -> None:
        kept = []
        for record in records:
            amount = record.event["amount_minor"]
            if amount == 107:
                out.dead_letter(record, "amount_minor", "no sevens")
            elif amount == 200:
                kept.append(
                    Record(
                        record.topic,
                        record.partition,
                        record.offset,
                        record.append_ms,
                        {**record.event, "amount_minor": 201},
                    )
                )
            else:
                kept.append(record)
        super().decide(state, kept, versions, out)


def differences(settings: Settings, accounts: Accounts, run: runs.Run, samples: int = 3) -> list[Difference]:
    with connect(settings.database_url) as connection:
        return compare(settings, connection, run, accounts.pipeline, samples=samples)


def test_the_same_code_gives_the_same_rows_beside_live_traffic(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """A replay of unchanged code differs in no row, leaves live positions alone, and abort leaves nothing."""
    events = [deposit(n, f"a{n % 11}") for n in range(2_000)]
    with running(database, accounts):
        send(database, codec, accounts, events + events[:50])
        wait_stored(database, accounts, 2_050)
        epochs = ask(database, "SELECT consumer, topic, partition, epoch FROM checkpoints ORDER BY 1, 2, 3")
        run = advance(database, codec, accounts, begun(database, codec, accounts))
        assert run.status == "ready" and run.records_done == 2_050
        for d in differences(database, accounts, run):
            assert d.empty and d.live == d.replayed == d.same > 0, d
        assert epochs == ask(
            database, "SELECT consumer, topic, partition, epoch FROM checkpoints ORDER BY 1, 2, 3"
        )
    with connect(database.database_url) as connection:
        gone = runs.abort(database, connection, run, accounts.pipeline)
        assert runs.find(connection, run.run_id).status == "aborted"
        assert runs.abort(database, connection, run, accounts.pipeline) == []
    assert f"schema {run.schema}" in gone and len(gone) == 4
    assert ask(database, "SELECT to_regnamespace(%s)::text", run.schema) == [(None,)]
    assert ask(database, "SELECT count(*) FROM dead_letters") == [(0,)]


def test_other_code_shows_rows_added_changed_and_gone(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """The comparison counts what a change of code does, names the columns, and shows samples."""
    events = [deposit(n, "a", 100) for n in range(10)]
    events[3]["amount_minor"] = 107
    events[8]["amount_minor"] = 200
    with running(database, accounts):
        send(database, codec, accounts, events)
        wait_stored(database, accounts, 10)
        run = advance(
            database, codec, accounts, begun(database, codec, accounts), lambda: Generous(accounts.balances)
        )
        ledger, latest = differences(database, accounts, run)
        with connect(database.database_url) as connection:
            [refused] = refusals(connection, run, accounts.pipeline)
    assert (ledger.added, ledger.changed, ledger.gone, ledger.same) == (0, 6, 1, 3)
    assert ledger.columns == {"balance_minor": 6, "amount_minor": 1}
    assert [row["event_id"] for row in ledger.samples["gone"]] == ["e3"]
    assert (refused.field, refused.live, refused.replayed) == ("amount_minor", 0, 1)
    [change] = [row for row in ledger.samples["changed"] if row["event_id"] == "e4"]
    assert change["balance_minor"] == {"live": 507, "replayed": 400}
    assert (latest.added, latest.changed, latest.gone) == (0, 1, 0)
    assert ask(database, f"SELECT consumer, topic FROM {run.schema}.dead_letters") == [
        (accounts.processor.name, accounts.deposits.name)
    ]
    assert ask(database, "SELECT count(*) FROM dead_letters") == [(0,)]
