"""A new password while everything runs: who knows the old one is out, who belongs here goes on."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import psycopg
import pytest

from api.database import pool
from infra.codec import Codec
from infra.postgres import connect, set_password
from infra.prepare import prepare_database
from infra.services import ServiceError
from infra.services.credentials import ensure_secret
from infra.services.rotation import rotate
from infra.settings import Settings
from tests.faults.rig import pipeline


def test_processes_go_on_through_a_rotation(
    database: Settings, codec: Codec, tmp_path: Path, seed: int
) -> None:
    """Their sessions end in mid-traffic and are opened anew: nobody exits, nothing is lost or doubled."""
    old = database.database_url
    prepare_database(database)
    with pipeline(database, codec, "rotated", tmp_path) as rig:
        processes = [rig.start(role) for role in ("processor", "sink")]
        first = rig.traffic(seed, seconds=1, events_total=100)
        first.finish()
        rig.drain()  # both are at work
        traffic = rig.traffic(seed + 1, seconds=4, events_total=1_500)
        traffic.reach(0.4)
        ended = rotate(database, "postgres") + rotate(database, "sink")
        assert ended >= 2
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(old)
        traffic.finish()
        rig.drain()
        checked = rig.check([first, traffic])
        assert [p.exits for p in processes] == [[], []]
    secret = database.home_path / "secrets" / "postgres"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert database.secret("postgres") not in tmp_path.joinpath("rotated-sink-0.log").read_text()
    print(f"{ended} sessions ended; {checked}")


def test_an_interrupted_rotation_is_completed(database: Settings) -> None:
    """Killed between the database's change and ours, the next call finds the password and goes on."""
    with connect(database.database_url) as connection:
        set_password(connection, "millrace", ensure_secret(database, "postgres.next"))
    with pytest.raises(psycopg.OperationalError):
        connect(database.database_url)
    rotate(database, "postgres")
    with connect(database.database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not (database.home_path / "secrets" / "postgres.next").exists()


def test_the_api_reads_on_through_a_rotation(database: Settings) -> None:
    """The pool's connections end, and the next query comes with the new password."""
    prepare_database(database)

    async def read() -> list[str]:
        async with pool(database) as reading:
            users = [await reading.fetchval("SELECT current_user")]
            rotate(database, "api")
            await asyncio.sleep(0.2)
            users.append(await reading.fetchval("SELECT current_user"))
        return users

    assert asyncio.run(read()) == ["millrace_api", "millrace_api"]


def test_what_is_kept_elsewhere_is_not_rotated(database: Settings) -> None:
    """A password that came by DATABASE_URL, and a secret that does not exist, are refused with the remedy."""
    pinned = Settings({**database.environ, "DATABASE_URL": database.database_url})
    with pytest.raises(ServiceError, match="DATABASE_URL is set"):
        rotate(pinned, "postgres")
    with pytest.raises(ServiceError, match="there are postgres, reader"):
        rotate(database, "redis")
