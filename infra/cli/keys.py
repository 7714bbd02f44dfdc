"""`millrace keys`: API keys of subjects, and the keys that access tokens are signed with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.audit.shell import audited
from infra.settings import Settings

app = typer.Typer()
keys = typer.Typer(help="API keys, and the keys that tokens are signed with.", no_args_is_help=True)
app.add_typer(keys, name="keys")

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@keys.command()
@audited("keys.create")
def create(
    subject: Annotated[str, typer.Argument(help="Whose key it is.")],
    name: Annotated[str, typer.Option(help="What it is for, as till-7.")],
    grant: Annotated[
        list[str] | None,
        typer.Option("--grant", help="What it may at most; all that its subject may, if left out."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown once; of its secret part only a hash is kept."""
    from infra.identity import api_keys, subjects

    with _database() as connection:
        grants = grant if grant is not None else subjects.find(connection, subject).grants
        key = api_keys.create(connection, subject, name, grants, days)
    if as_json:
        typer.echo(json.dumps({"prefix": key.split("_")[1], "key": key}, indent=2))
        return
    typer.echo(key)
    typer.echo("send it as Authorization: Bearer, or as X-API-Key; it is not shown again", err=True)


@keys.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Every API key by its prefix, the newest first."""
    from infra.identity import api_keys

    with _database() as connection:
        found = api_keys.every(connection)
    if as_json:
        listed = [
            {
                "prefix": key.prefix,
                "subject": key.subject,
                "name": key.name,
                "grants": key.grants,
                "created_at": key.created_at.isoformat(),
                "expires_at": key.expires_at.isoformat(),
                "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
            }
            for key in found
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    for key in found:
        state = "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}"
        typer.echo(f"{key.prefix}  {key.subject:<24} {state:<18} {' '.join(key.grants)}  {key.name}")


@keys.command()
@audited("keys.revoke")
def revoke(prefix: Annotated[str, typer.Argument(help="The key's prefix, as `list` shows it.")]) -> None:
    """End an API key; it holds within seconds."""
    from infra.identity import api_keys

    with _database() as connection:
        api_keys.revoke(connection, prefix)
    typer.echo(f"{prefix} is revoked", err=True)


@keys.command()
@audited("keys.rotate")
def rotate() -> None:
    """Sign access tokens with a new key from now on; drop keys whose last tokens have expired."""
    from infra.identity.keyring import KeyRing
    from infra.identity.tokens import LEEWAY_SECONDS, LIFE_SECONDS

    ring = KeyRing(Settings.load().signing_keys)
    dropped = ring.drop(LIFE_SECONDS + LEEWAY_SECONDS)
    kid = ring.add()
    typer.echo(f"key {kid} signs; {len(dropped)} old keys were dropped", err=True)


def _database() -> Any:
    from infra.postgres import connect

    return connect(Settings.load().database_url, "millrace-keys")
