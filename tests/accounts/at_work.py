"""A pipeline's processors and sink at work together, in threads of the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Pipeline
from sinks.rows import RowMapping
from streams.decide import LogicFactory
from tests.accounts.running import processing, sinking


class Running:
    """A pipeline at work; `settle` waits until it stands still."""

    def __init__(self, settings: Settings, *errors: list[BaseException]) -> None:
        self.settings, self._errors = settings, errors

    def settle(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until `ready` says so; fails with the error that a thread ended with."""
        until = time.monotonic() + seconds
        while not ready():
            for ended in self._errors:
                if ended:
                    raise ended[0]
            if time.monotonic() > until:
                pytest.fail(f"nothing came of it within {seconds:.0f} s")
            time.sleep(0.1)

    def ask(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return ask(self.settings, query, *args)


def ask(settings: Settings, query: str, *args: Any) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    with connect(settings.database_url) as connection:
        return connection.execute(query, args).fetchall()  # type: ignore[arg-type]


@contextmanager
def running(
    settings: Settings, pipeline: Pipeline, logics: dict[str, LogicFactory], rows: tuple[RowMapping, ...]
) -> Iterator[Running]:
    """The pipeline's processors and its sink, until the end of the block."""
    with (
        processing(settings, pipeline, logics) as of_processor,
        sinking(settings, pipeline, rows) as of_sink,
    ):
        yield Running(settings, of_processor, of_sink)
