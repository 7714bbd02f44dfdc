"""`millrace env`: this instance's addresses and credentials, for a shell or a program."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from infra.settings import SETTINGS, Settings
from schemas.roles import ADMIN

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
    "api_key",
)


@app.command()
def env(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Print addresses, API key and the local admin's password as shell exports: eval "$(millrace env)"."""
    settings = Settings.load()
    values = {SETTINGS[name].variable: settings.text(name) for name in EXPORTED}
    if password := settings.secret(ADMIN):
        values |= {"MILLRACE_USER": ADMIN, "MILLRACE_PASSWORD": password}
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo("\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()))
    if ":@" in values["DATABASE_URL"]:
        typer.echo("millrace: there is no database password yet; run `millrace up`", err=True)
