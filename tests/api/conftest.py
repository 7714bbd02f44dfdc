"""The database behind a line that a test can cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from tests.api.line import Line


@pytest.fixture
def line(database: Settings) -> Iterator[Line]:
    """A line to the test instance's database, not yet open."""
    line = Line(database.database_url)
    yield line
    line.cut()
