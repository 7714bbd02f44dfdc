"""Errors that people can mend: one sentence at the terminal instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

AWAY = (
    ("psycopg", "OperationalError", "the database does not answer"),
    ("confluent_kafka", "KafkaException", "the broker does not answer"),
    ("infra.codec", "RegistryUnavailable", "the schema registry does not answer"),
)
"""Module, error, and what it tells: by name, since what a command did not import cannot have ended it."""


@contextmanager
def explained(*errors: type[Exception]) -> Iterator[None]:
    """End with exit code 1 and one sentence where one of `errors`, which say it themselves, comes up, or a
    service is away."""
    try:
        yield
    except Exception as error:
        sentence = str(error) if isinstance(error, errors) else _away(error)
        if sentence is None:
            raise
        typer.echo(f"millrace: {sentence}", err=True)
        raise SystemExit(1) from None


def _away(error: Exception) -> str | None:
    for module, name, sentence in AWAY:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            reason = next(iter(str(error).strip().splitlines()), name)
            return f"{sentence}: {reason}; see `millrace status`"
    return None
