"""A pipeline's production processes, started as the supervisor starts them, and how far they have come."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO

from benchmarks.harness import END_SECONDS, ROOT, START_SECONDS, STATE, SubjectFailed
from infra.postgres import Connection
from infra.settings import Settings
from infra.supervisor import ProcessSpec, specs
from schemas.declare import Pipeline, Topic
from schemas.pipelines import PIPELINES

ROLES = ("sink", "processor")


def millrace(*arguments: str) -> list[str]:
    """The command line of `millrace` in this checkout."""
    return [sys.executable, "-m", "infra.cli", *arguments]


@contextmanager
def running(
    settings: Settings, pipeline: Pipeline, connection: Connection
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The pipeline's processor and sink, by role; on entry they own all their partitions."""
    wanted = [
        spec
        for spec in specs(settings, PIPELINES, native=True)
        if spec.pipeline == pipeline.name and spec.role in ROLES
    ]
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for spec in wanted:
            with log_of(f"{pipeline.name}-{spec.role}").open("wb") as output:
                started[spec.role] = subprocess.Popen(
                    (sys.executable, "-m", spec.module, *spec.arguments),
                    cwd=ROOT,
                    env={
                        **settings.environ,
                        "MILLRACE_METRICS_PORT": str(spec.port),
                        "PYTHONPATH": str(ROOT),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        await_until(lambda: all(map(_ready, wanted)), started, "became ready")
        await_until(lambda: _all_claimed(connection, pipeline), started, "took its partitions")
        yield started
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()


def log_of(name: str) -> Path:
    """Where a process of a benchmark writes."""
    folder = STATE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def command(
    settings: Settings, arguments: Sequence[str], output: IO[bytes], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    """A command of the platform under way, in the instance's environment."""
    return subprocess.Popen(
        arguments, cwd=ROOT, env={**settings.environ, "PYTHONPATH": str(ROOT)}, stdout=output, stderr=errors
    )


def await_until(
    done: Callable[[], bool],
    alive: dict[str, subprocess.Popen[bytes]],
    what: str,
    seconds: float = START_SECONDS,
) -> None:
    """Until `done`; raises `SubjectFailed` where a process has ended, or nothing came of it in time."""
    until = time.monotonic() + seconds
    while not done():
        check_alive(alive)
        if time.monotonic() > until:
            raise SubjectFailed(f"nothing {what} within {seconds:.0f} s; see {STATE / 'logs'}")
        time.sleep(0.1)


def check_alive(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raises `SubjectFailed` where one has ended."""
    for role, process in processes.items():
        if process.poll() is not None:
            raise SubjectFailed(f"{role} ended with code {process.returncode}; see {STATE / 'logs'}")


class Position:
    """How many records of a topic a consumer has committed: the sum of its positions."""

    def __init__(self, connection: Connection, consumer: str, topic: Topic) -> None:
        self._connection, self._of = connection, (consumer, topic.name)

    def __call__(self) -> int:
        row = self._connection.execute(
            "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s AND topic = %s",
            self._of,
        ).fetchone()
        assert row is not None
        return int(str(row[0]))


def _all_claimed(connection: Connection, pipeline: Pipeline) -> bool:
    claimed = {
        (str(consumer), str(topic)): int(str(n))
        for consumer, topic, n in connection.execute(
            "SELECT consumer, topic, count(*) FROM checkpoints GROUP BY consumer, topic"
        )
    }
    return all(
        claimed.get((consumer, topic.name)) == topic.partitions for consumer, topic in pipeline.consumers
    )


def _ready(spec: ProcessSpec) -> bool:
    with (
        suppress(OSError, HTTPException),  # HTTPError is an OSError
        urllib.request.urlopen(f"http://127.0.0.1:{spec.port}/health/ready", timeout=2),
    ):
        return True
    return False
