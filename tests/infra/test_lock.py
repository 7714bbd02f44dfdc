"""The lock file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
SCAN_LOCK = (ROOT / "infra" / "scan.lock").read_text()


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[._-]+", "-", found.group()).lower()


def test_every_declared_dependency_is_locked() -> None:
    """Whatever pyproject.toml declares stands in its lock file; `make lock` renews both."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for requirements, lock in ((declared, LOCK), (project["dependency-groups"]["scan"], SCAN_LOCK)):
        locked = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE))
        assert {_name(requirement) for requirement in requirements} - locked == set()


def test_lock_is_hashed_and_names_no_index() -> None:
    """Every locked package has hashes, and no line names a package index."""
    for lock in (LOCK, SCAN_LOCK):
        pins = re.split(r"^(?=[a-z0-9._-]+==)", lock, flags=re.MULTILINE)[1:]
        assert pins and all("--hash=sha256:" in pin for pin in pins)
        assert "://" not in lock
