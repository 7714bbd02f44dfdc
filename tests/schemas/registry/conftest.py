from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.schemas.registry.process import RegistryProcess

_numbers = count(1)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """One registry for all tests that only add subjects of their own."""
    running = RegistryProcess(tmp_path_factory.mktemp("registry"))
    yield running
    code, errors = running.stop()
    assert (code, errors) == (0, "")


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    """A registry for tests that kill it or change common settings."""
    running = RegistryProcess(tmp_path / "state")
    yield running
    running.kill()


@pytest.fixture
def subject() -> str:
    """A subject that no other test uses."""
    return f"sales-{next(_numbers)}-value"
