"""`millrace secret rotate`: new passwords for the database's roles while everything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.settings import Settings

app = typer.Typer()
secret = typer.Typer(help="Secrets of this instance, kept in its state folder.", no_args_is_help=True)
app.add_typer(secret, name="secret")


@secret.command()
def rotate(
    name: Annotated[str, typer.Argument(help="postgres (the owner), reader, api, identity, gateway, sink.")],
) -> None:
    """Give a role of the database a new password.

    Sessions opened with the old one are ended; processes of this instance open theirs anew, and go on.
    """
    import psutil

    from infra.services import ServiceError, rotation
    from infra.supervisor import living

    settings = Settings.load()
    variable = rotation.known(name).variable
    pinned = []
    for process, running in living(settings.home_path).items():
        try:
            if variable in running.environ():
                pinned.append(process)
        except psutil.Error:
            continue  # it has just ended
    if pinned:
        raise ServiceError(
            f"{', '.join(sorted(pinned))} run with {variable} set, and so with the old password for ever;"
            f" run `millrace down`, unset {variable}, run `millrace up`, then rotate"
        )
    ended = rotation.rotate(settings, name)
    typer.echo(f"{name} has a new password; {ended} sessions of the old one were ended", err=True)
    typer.echo('whatever else connects needs it too: eval "$(millrace env)"', err=True)
