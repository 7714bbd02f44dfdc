"""Commands without a terminal: output, end and exit code as files that anybody may read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from infra import jobs
from infra.identity.principal import Principal
from infra.settings import Settings

ANNA = Principal("anna", "person", "default", frozenset({"ops:write"}), {}, "token:1")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings({**os.environ, "MILLRACE_HOME": str(tmp_path)})


def ended(settings: Settings, name: str) -> jobs.Job:
    until = time.monotonic() + 60
    while True:
        [job, *_] = jobs.listed(settings, name)
        if not job.running:
            return job
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_job_leaves_what_it_printed_and_its_exit_code(settings: Settings) -> None:
    """Output, complaint and code stand in files; the newest is first, and found by how it begins."""
    jobs.start(settings, "docs", ["docs", "--check"], ANNA)
    good = ended(settings, "docs")
    assert (good.code, good.started_by, good.command) == (0, "anna", "millrace docs --check")
    jobs.start(settings, "docs", ["no-such-command"], ANNA)
    bad = ended(settings, "docs")
    assert bad.number == 2 and bad.code == 2 and any("no-such-command" in line for line in bad.told)
    assert jobs.listed(settings, "docs") == [bad, good]


def test_one_of_a_name_at_a_time_and_it_can_be_stopped(settings: Settings) -> None:
    """While a job runs another one of its name is refused; stopped, it counts as ended from outside."""
    job = jobs.start(settings, "demo", ["replay", "list"], ANNA)
    with pytest.raises(jobs.JobRuns, match="replay list"):
        jobs.start(settings, "demo", ["docs"], ANNA)
    job.stop()
    assert ended(settings, "demo").code in (-1, 1, 143)
