"""The command `millrace`: the composition root, and the only part of `infra` that may import any layer.

Every module in this folder is one subject and holds a Typer app named `app`; its commands appear in
`millrace --help` without being listed anywhere. The modules are imported at every start, so what is slow to
import (brokers, databases, models) is imported inside the commands.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer

from infra.cli._explained import explained
from infra.services import ServiceError
from infra.settings import SettingError
from infra.supervisor import SupervisorError
from schemas.roles import Refusal

EXPLAINED: tuple[type[Exception], ...] = (ServiceError, SettingError, SupervisorError, Refusal)
"""Errors whose message is one sentence with the remedy: people see that alone, not a traceback."""


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        help="Millrace: Kafka topics in Avro, Faust processors, exactly-once effect in Postgres.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if not name.startswith("_"):
            app.add_typer(importlib.import_module(f"{__name__}.{name}").app)
    return app


def main() -> None:
    """Entry point of the command `millrace`."""
    with explained(*EXPLAINED):
        build()()
