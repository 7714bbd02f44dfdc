"""Backups as the runbook has them taken and put back: what is behind catches up, what is ahead is refused."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import exit_codes
from infra.broker import TopicSpec, admin, ensure_topics
from infra.codec import Codec
from infra.doctor import examine
from infra.postgres import connect
from infra.settings import Settings
from tests.faults.conftest import Services
from tests.faults.rig import Process, Rig, pipeline, until

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"


def documented(step: str, settings: Settings, folder: Path) -> None:
    """Run the runbook's own shell block whose first line is the comment `# step`, in `folder`."""
    blocks = re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)
    (block,) = [b for b in blocks if b.startswith(f"# {step}\n")]
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "millrace").write_text(f'#!/bin/sh\nexec {sys.executable} -m infra.cli "$@"\n')
    (programs / "millrace").chmod(0o755)
    environ = {
        **settings.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(RUNBOOK.parents[1]),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def positions(rig: Rig) -> dict[tuple[str, str, int], int]:
    """Where each consumer of the rig stands, by the database."""
    consumers = [rig.accounts.processor.name, rig.accounts.pipeline.sink_name]
    with connect(rig.settings.database_url) as connection:
        rows = connection.execute(
            "SELECT consumer, topic, partition, next_offset FROM checkpoints WHERE consumer = ANY(%s)",
            (consumers,),
        )
        return {(str(c), str(t), int(str(p))): int(str(o)) for c, t, p, o in rows}


def contents(rig: Rig) -> list[object]:
    """Everything the database holds but epochs: raising them changes nothing."""
    positions = "(SELECT consumer, topic, partition, next_offset, append_ms FROM checkpoints)"
    with connect(rig.settings.database_url) as connection:
        return [
            connection.execute(f"SELECT * FROM {table} AS t ORDER BY t::text").fetchall()  # type: ignore[arg-type]
            for table in (
                rig.accounts.ledger.name,
                rig.accounts.latest.name,
                positions,
                "state_chunks",
                "range_records",
                "dead_letters",
            )
        ]


def doctor(settings: Settings) -> tuple[bool, str]:
    """What `millrace doctor` says of the positions."""
    (check,) = [c for c in examine(settings) if c.name == "positions"]
    return check.ok, check.found


def refused(rig: Rig, processes: list[Process], words: str) -> None:
    """Each ends with the exit code of a refused position, once, and says why."""
    until(lambda: all(p.exits for p in processes), 60, "all have ended")
    assert [p.exits for p in processes] == [[exit_codes.POSITION]] * len(processes)
    for process in processes:
        assert re.search(words, process.log.read_text()), process.log.read_text()


def test_a_database_behind_the_topics_catches_up(
    database: Settings, codec: Codec, tmp_path: Path, seed: int
) -> None:
    """Dumped in the middle of traffic and put back at its end: the same rows, state and account again."""
    with pipeline(database, codec, "behind", tmp_path) as rig:
        for role in ("processor", "sink"):
            rig.start(role)
        first = rig.traffic(seed, seconds=6, events_total=1_500)
        until(lambda: sum(positions(rig).values()) > 200, 30, "something is committed")
        documented("back up", database, tmp_path)
        second = rig.traffic(seed + 1, seconds=2, events_total=500)
        first.finish()
        second.finish()
        rig.drain()
        rig.end()
        then = positions(rig)

        documented("restore", database, tmp_path)
        now = positions(rig)
        assert now.keys() <= then.keys() and 0 < sum(now.values()) < sum(then.values())
        ok, found = doctor(database)
        assert ok and int(found.split()[1]) >= sum(then.values()) - sum(now.values()), found
        again = [rig.start(role) for role in ("processor", "sink")]
        # What comes now is decided by the restored state.
        third = rig.traffic(seed + 2, seconds=2, events_total=500)
        third.finish()
        rig.drain()
        checked = rig.check([first, second, third])
        assert [p.exits for p in again] == [[], []]
    print(f"{sum(then.values()) - sum(now.values())} positions behind; {checked}")


def test_topics_that_were_created_anew_are_refused(
    database: Settings, codec: Codec, tmp_path: Path, seed: int
) -> None:
    """A database ahead of topics that were lost is left as it is: nothing is read, nothing written."""
    with pipeline(database, codec, "anew", tmp_path) as rig:
        for role in ("processor", "sink"):
            rig.start(role)
        rig.traffic(seed, seconds=1, events_total=300).finish()
        rig.drain()
        rig.end()
        before = contents(rig)
        topics = [x for t in rig.accounts.pipeline.topics for x in (t, t.dlq)]
        client = admin(database.kafka)
        for deleted in client.delete_topics([t.name for t in topics], operation_timeout=30).values():
            deleted.result()
        until(
            lambda: not {t.name for t in topics} & set(client.list_topics(timeout=10).topics),
            30,
            "they are gone",
        )
        ensure_topics(database.kafka, [TopicSpec.of(t) for t in topics])
        rig.traffic(seed + 1, seconds=1, events_total=300).finish()
        ok, found = doctor(database)
        assert not ok and "was deleted and created anew; and " in found
        processes = [rig.start(role) for role in ("processor", "sink")]
        refused(rig, processes, "was deleted and created anew; compare topic and database")
        assert contents(rig) == before


def test_a_log_with_another_record_before_the_position_is_refused(
    database: Settings, codec: Codec, tmp_path: Path, seed: int
) -> None:
    """Offsets alone fit a log that was put back and written on; what stands before the position tells."""
    with pipeline(database, codec, "other", tmp_path) as rig:
        for role in ("processor", "sink"):
            rig.start(role)
        traffic = rig.traffic(seed, seconds=1, events_total=300)
        traffic.finish()
        rig.drain()
        rig.end()
        move(rig, "+ 1")
        before = contents(rig)
        refused(rig, [rig.start(role) for role in ("processor", "sink")], "was put back and written on")
        assert contents(rig) == before
        move(rig, "- 1")
        again = [rig.start(role) for role in ("processor", "sink")]
        more = rig.traffic(seed + 1, seconds=1, events_total=300)
        more.finish()
        rig.drain()
        rig.check([traffic, more])
        assert [p.exits for p in again] == [[], []]


def move(rig: Rig, by: str) -> None:
    """Let the positions remember another append time."""
    with connect(rig.settings.database_url) as connection:
        connection.execute(f"UPDATE checkpoints SET append_ms = append_ms {by}".encode())


class Disk:
    """The broker's disk, to be kept and put back while the broker is down."""

    def __init__(self, faulty: Services, folder: Path) -> None:
        self._faulty, self._folder = faulty, folder
        self._data = faulty.disks()["kafka"]

    def keep(self, name: str) -> None:
        self._faulty.kill("kafka", signal.SIGTERM)
        shutil.copytree(self._data, self._folder / name)
        self._faulty.heal()

    def put_back(self, name: str) -> None:
        self._faulty.kill("kafka", signal.SIGTERM)
        for path in self._data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self._folder / name, self._data, dirs_exist_ok=True)
        self._faulty.heal()


@pytest.mark.faults
@pytest.mark.parametrize("more", [0, 4_000], ids=["at rest", "after new records"])
def test_a_broker_older_than_the_database_is_refused(
    faulty: Services, tmp_path: Path, seed: int, more: int
) -> None:
    """Positions beyond the log's end, or over records that took others' places, are refused; with the disk
    that belongs to the database everything goes on, and nothing is lost."""
    disk = Disk(faulty, tmp_path)
    with pipeline(faulty.settings, faulty.codec, f"older-{more}", tmp_path) as rig:
        for role in ("processor", "sink"):
            rig.start(role)
        first = rig.traffic(seed, seconds=2, events_total=500)
        first.finish()
        rig.drain()
        rig.end()
        disk.keep("older")
        for role in ("processor", "sink"):
            rig.start(role)
        second = rig.traffic(seed + 1, seconds=2, events_total=1_000)
        second.finish()
        rig.drain()
        rig.end()
        disk.keep("newest")
        before = contents(rig)

        disk.put_back("older")
        if more:
            # Producers were faster than we: the log reaches beyond the positions again.
            rig.traffic(seed + 2, seconds=2, events_total=more).finish()
        processes = [rig.start("processor")] if more else [rig.start(r) for r in ("processor", "sink")]
        refused(rig, processes, "was put back and written on" if more else "lies outside the log")
        assert contents(rig) == before

        disk.put_back("newest")
        again = [rig.start(role) for role in ("processor", "sink")]
        third = rig.traffic(seed + 3, seconds=2, events_total=500)
        third.finish()
        rig.drain()
        checked = rig.check([first, second, third])
        assert [p.exits for p in again] == [[], []]
    print(checked)
