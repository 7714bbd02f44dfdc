"""`millrace up | down | status`: the services of this instance."""

from __future__ import annotations

import json
import shutil
import time
from typing import Annotated

import typer

from infra.services import ServiceStatus, choose
from infra.settings import Settings

app = typer.Typer()

PURGED = ("objects", "registry")
"""What the platform's processes keep in the state folder beside the services' own data."""

SIGNS = {"running": "●", "failing": "▲", "stopped": "○"}


def start_services(settings: Settings) -> None:
    """Starts broker and databases with a line of progress for each; returns when all answer."""
    began = time.monotonic()
    services = choose(settings)
    services.up(lambda line: typer.echo(line, err=True))
    typer.echo(f"{services.kind} services are up ({time.monotonic() - began:.1f} s)", err=True)


def stop_services(settings: Settings, purge: bool) -> None:
    """Stops what `start_services` started; `purge` also deletes all data of the instance."""
    choose(settings).down(purge, lambda line: typer.echo(line, err=True))
    if purge:
        for name in PURGED:
            shutil.rmtree(settings.home_path / name, ignore_errors=True)


@app.command()
def up() -> None:
    """Start the services: Kafka, Postgres, Redis, Mosquitto. Those that run are left alone."""
    start_services(Settings.load())


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also delete all data and secrets.")] = False,
) -> None:
    """Stop the services. Data stays unless --purge is given."""
    stop_services(Settings.load(), purge)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show every service: state, address, process, what it answers. Exits 1 unless all run."""
    services = choose(Settings.load())
    found = services.status()
    if as_json:
        typer.echo(
            json.dumps({"kind": services.kind, "services": [one.as_dict() for one in found]}, indent=2)
        )
    else:
        typer.echo("\n".join(_line(one) for one in found))
    if any(one.state != "running" for one in found):
        raise typer.Exit(1)


def _line(one: ServiceStatus) -> str:
    process = f"pid {one.pid}" if one.pid else one.container or ""
    return (
        f"{SIGNS[one.state]} {one.name:<11}{one.state:<9}{one.address:<17}{process:<14}{one.detail}".rstrip()
    )
