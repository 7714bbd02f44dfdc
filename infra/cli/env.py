"""`millrace env`: this instance's addresses, for a shell or a program."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from infra.settings import SETTINGS, Settings

app = typer.Typer()

EXPORTED = (
    "kafka_bootstrap_servers",
    "schema_registry_url",
    "database_url",
    "database_reader_url",
    "redis_url",
    "mqtt_url",
    "api_url",
    "gateway_url",
)


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Print the addresses as shell exports: eval "$(millrace env)"."""
    settings = Settings.load()
    values = {SETTINGS[name].variable: settings.text(name) for name in EXPORTED}
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo("\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()))
    if ":@" in values["DATABASE_URL"]:
        typer.echo("millrace: there is no database password yet; run `millrace up`", err=True)
