"""The database behind a line that a test can cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.settings import Settings
from tests.api.line import Line
from tests.signed_in import signed_in


@pytest.fixture
def line(database: Settings) -> Iterator[Line]:
    """A line to the test instance's database by the API's role, not yet open."""
    signed_in(database)
    line = Line(database.database_api_url)
    yield line
    line.cut()
