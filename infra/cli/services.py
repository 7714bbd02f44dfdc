"""`millrace up | down | status`: the services of this instance, and the processes upon them."""

from __future__ import annotations

import json
import shutil
import time
from typing import Annotated

import typer

from infra import supervisor
from infra.cli import processes
from infra.services import ServiceStatus, choose
from infra.settings import SETTINGS, Settings

app = typer.Typer()

PURGED = ("objects", "registry", "ingest", "faust", "prometheus", "jobs")
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


def start_all(settings: Settings) -> None:
    """Starts services, then processes; returns when all are ready."""
    start_services(settings)
    native = choose(settings).kind == "native"
    processes.start_processes(settings, native=native, progress=lambda line: typer.echo(line, err=True))


@app.command()
def up(
    services_only: Annotated[
        bool, typer.Option("--services-only", help="Leave the processes of the platform out.")
    ] = False,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure",
            help="Kafka with TLS, a name and password for each process, and what nobody was allowed denied."
            " The instance stays so.",
        ),
    ] = False,
) -> None:
    """Start services and processes. Those that run are left alone; those given up on are tried again."""
    settings = Settings.load()
    if secure:
        settings = Settings({**settings.environ, SETTINGS["secure"].variable: "1"})
    if services_only:
        start_services(settings)
    else:
        start_all(settings)


@app.command()
def down(
    purge: Annotated[bool, typer.Option("--purge", help="Also delete all data and secrets.")] = False,
) -> None:
    """Stop processes, then services. Data stays unless --purge is given."""
    settings = Settings.load()
    if settings.home_path.exists():
        supervisor.stop(settings)
    stop_services(settings, purge)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show every service and process: state, address, pid, what it says. Exits 1 unless all are well."""
    settings = Settings.load()
    services = choose(settings)
    found = services.status()
    ours = processes.processes(settings)
    supervisor_pid = supervisor.supervisor_pid(settings.home_path)
    if as_json:
        document = {
            "kind": services.kind,
            "services": [one.as_dict() for one in found],
            "supervisor": supervisor_pid,
            "processes": ours,
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo("\n".join([*map(_line, found), *map(processes.line, ours)]))
    well = all(one.state == "running" for one in found) and all(one["ready"] for one in ours)
    if not well or supervisor_pid is None:
        if supervisor_pid is None:
            typer.echo("the processes do not run; start them with `millrace up`", err=True)
        raise typer.Exit(1)


def _line(one: ServiceStatus) -> str:
    process = f"pid {one.pid}" if one.pid else one.container or ""
    return (
        f"{SIGNS[one.state]} {one.name:<11}{one.state:<9}{one.address:<17}{process:<14}{one.detail}".rstrip()
    )
