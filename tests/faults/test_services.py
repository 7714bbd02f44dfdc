"""Broker and database die, lose answers, and run out of disk; the pipeline waits and goes on."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from infra.broker import SESSION_SECONDS
from infra.codec import Codec
from infra.settings import Settings
from tests.faults.conftest import Services
from tests.faults.rig import pipeline, until

OUTAGE_SECONDS = 4.0


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "number", "seconds"),
    [
        ("kafka", signal.SIGKILL, OUTAGE_SECONDS),
        ("kafka", signal.SIGKILL, SESSION_SECONDS + OUTAGE_SECONDS),
        ("postgres", signal.SIGKILL, OUTAGE_SECONDS),
        ("postgres", signal.SIGQUIT, OUTAGE_SECONDS),
    ],
    ids=["broker-killed", "broker-away-for-long", "postgres-killed", "postgres-stopped-at-once"],
)
def test_a_service_dies(
    faulty: Services, tmp_path: Path, seed: int, name: str, number: signal.Signals, seconds: float
) -> None:
    """Gone for seconds in the middle of production: nothing is lost, doubled, or among the dead letters."""
    with pipeline(
        faulty.settings, faulty.codec, f"dies-{name}-{number.value}-{seconds:.0f}", tmp_path
    ) as rig:
        processes = [rig.start("processor"), rig.start("sink")]
        traffic = rig.traffic(seed, seconds=12)
        traffic.reach(0.4)
        faulty.kill(name, number)
        time.sleep(seconds)
        faulty.heal()
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert [p.exits for p in processes] == [[], []], "waiting was enough"
    print(f"drained {healed:.1f} s after the last record; {checked}")


@pytest.mark.faults
def test_the_databases_disk_is_full(faulty: Services, tmp_path: Path, seed: int) -> None:
    """Sinks and processors wait while nothing can be written, and drain once there is room."""
    with pipeline(faulty.settings, faulty.codec, "full-postgres", tmp_path) as rig:
        processes = [rig.start("processor"), rig.start("sink")]
        traffic = rig.traffic(seed, seconds=15, events_total=20_000)
        traffic.reach(0.3)
        with faulty.full("postgres"):
            until(rig.waiting, 60, "the full disk stops somebody")
        faulty.heal()  # a server that could not write its log has ended
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert all(not p.resting for p in processes)
    print(f"drained {healed:.1f} s after the last record; {checked}")


@pytest.mark.faults
def test_the_brokers_disk_is_full(faulty: Services, tmp_path: Path, seed: int) -> None:
    """The broker ends; started again with room, all that producers hold arrives, and everything goes on."""
    with pipeline(faulty.settings, faulty.codec, "full-kafka", tmp_path) as rig:
        processes = [rig.start("processor"), rig.start("sink")]
        traffic = rig.traffic(seed, seconds=12, events_total=20_000)
        traffic.reach(0.3)
        broker = next(c for c in faulty.native.components if c.name == "kafka")
        with faulty.full("kafka"):
            until(lambda: faulty.native.process(broker).pid() is None, 60, "the broker has ended")
        faulty.heal()
        traffic.finish()
        healed = rig.drain()
        checked = rig.check([traffic])
        assert all(not p.resting for p in processes)
    print(f"drained {healed:.1f} s after the last record; {checked}")


MOST_ANSWERED = 5
"""Commits in a row whose answer comes."""


class CommitLoser:
    """A proxy before Postgres that passes one COMMIT in four on and cuts the line instead of its answer."""

    def __init__(self, database_url: str, seed: int) -> None:
        self.target = urlsplit(database_url)
        self.rng = random.Random(seed)
        self.commits = self.lost = self.answered = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = urlunsplit(
            self.target._replace(
                netloc=f"{self.target.username}:{self.target.password}"
                f"@127.0.0.1:{self._server.getsockname()[1]}"
            )
        )
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        lose = threading.Event()
        server = socket.create_connection((str(self.target.hostname), self.target.port or 5432))
        back = threading.Thread(target=self._answer, args=(server, client, lose), daemon=True)
        back.start()
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if b"COMMIT\0" in data:
                    self.commits += 1
                    # At random: every n-th would be the same one of each new attempt, for ever.
                    if self.rng.random() < 0.25 or self.answered == MOST_ANSWERED:
                        self.answered = 0
                        lose.set()
                    else:
                        self.answered += 1
                server.sendall(data)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, client: socket.socket, lose: threading.Event) -> None:
        with suppress(OSError), server, client:
            while data := server.recv(1 << 16):
                if lose.is_set():
                    self.lost += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


@contextmanager
def losing(database_url: str, seed: int) -> Iterator[CommitLoser]:
    proxy = CommitLoser(database_url, seed)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.mark.short_faults
def test_the_answer_to_a_commit_is_lost(database: Settings, codec: Codec, tmp_path: Path, seed: int) -> None:
    """One COMMIT in four takes effect without its sender learning so; still nothing is done twice."""
    with losing(database.database_url, seed) as proxy, pipeline(database, codec, "lost", tmp_path) as rig:
        processes = [rig.start(r, DATABASE_URL=proxy.url) for r in ("processor", "sink")]
        traffic = rig.traffic(seed, events_total=1_000, seconds=6)
        traffic.finish()
        rig.drain()
        checked = rig.check([traffic])
        assert proxy.lost >= 2
        assert [p.exits for p in processes] == [[], []]
    print(f"{proxy.lost} of {proxy.commits} answers lost; {checked}")
