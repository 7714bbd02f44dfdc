"""Our own subject, as a process on the production path: `python -m benchmarks.nexmark.ours`."""

from __future__ import annotations

import json
import os

from benchmarks.nexmark.declared import Declared
from benchmarks.nexmark.queries import logics
from benchmarks.ours import work
from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health


def main(settings: Settings, health: Health) -> None:
    job = json.loads(os.environ["BENCH_JOB"])
    declared = Declared(job["query"], job["tag"])
    work(settings, declared.pipeline, logics(declared, job["begins_ms"]), health)


if __name__ == "__main__":
    process.run("processor", "benchmark", main)
