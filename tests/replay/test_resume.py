"""Replays as processes, killed at any moment."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs
from infra.replay.comparison import compare
from infra.settings import Settings
from tests.accounts import Accounts
from tests.replay.live import advance, ask, begun, deposit, running, send, wait_stored

WORKER = """
import sys
from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs
from infra.settings import Settings
from tests.accounts import Accounts
from tests.replay.live import advance

settings = Settings.load()
accounts = Accounts(sys.argv[1])
with connect(settings.database_url) as connection:
    run = runs.find(connection, int(sys.argv[2]))
advance(settings, Codec(settings.schema_registry_url), accounts, run, rate=3_000)
"""


def test_a_killed_replay_goes_on_where_it_was(database: Settings, codec: Codec, accounts: Accounts) -> None:
    """kill -9 three times on the way: the resumed run ends with the rows of an undisturbed one."""
    total = 16_000
    prefix = accounts.processor.name.removesuffix("-accounting")
    with running(database, accounts):
        send(database, codec, accounts, [deposit(n % 15_000, f"a{n % 15_000 % 13}") for n in range(total)])
        wait_stored(database, accounts, total)
        run = begun(database, codec, accounts)
        seen: list[int] = []
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", WORKER, prefix, str(run.run_id)])
            end = time.monotonic() + 60
            while True:
                [(done,)] = ask(
                    database,
                    f"SELECT sum(next_offset) FROM {run.schema}.checkpoints WHERE topic = %s",
                    accounts.deposits.name,
                )
                if done > max(seen, default=0):
                    break
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
            with connect(database.database_url) as connection:
                assert runs.worked_on(connection, run.run_id)
                with pytest.raises(runs.RunRefused, match="another process works on"):
                    advance(database, codec, accounts, run)
            process.kill()
            process.wait()
            seen.append(int(done))
        assert max(seen) < total
        run = advance(database, codec, accounts, run)
        with connect(database.database_url) as connection:
            assert not runs.worked_on(connection, run.run_id)
            for d in compare(database, connection, run, accounts.pipeline):
                assert d.empty and d.same > 0, d
    assert ask(
        database,
        f"SELECT sum(next_offset) FROM {run.schema}.checkpoints WHERE topic = %s",
        accounts.deposits.name,
    ) == [(total,)]
