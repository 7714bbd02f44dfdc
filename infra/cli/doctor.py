"""`millrace doctor`: what is wrong here, and what repairs it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from infra.settings import Settings

app = typer.Typer()


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Check programs, broker, registry, databases, disk and clock. Exits 1 if one check fails."""
    from infra.doctor import examine

    checks = examine(Settings.load())
    if as_json:
        typer.echo(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'ok' if check.ok else 'NO':<4}{check.name:<20}{check.found}")
            if not check.ok:
                typer.echo(f"{'':24}expected: {check.expected}\n{'':24}repair:   {check.repair}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
