"""`millrace secret rotate`: new passwords for the database's roles while everything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.audit.shell import audited
from infra.settings import Settings

app = typer.Typer()
secret = typer.Typer(help="Secrets of this instance, kept in its state folder.", no_args_is_help=True)
app.add_typer(secret, name="secret")


@secret.command()
@audited("secret.rotate")
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


@secret.command()
@audited("secret.signing")
def signing(
    prefix: Annotated[str, typer.Argument(help="An API key's prefix, as `millrace keys list` shows it.")],
) -> None:
    """Print the secret by which the holder of an API key signs requests; give it to nobody else."""
    import psycopg

    from infra.identity.subjects import NotAuthenticated
    from infra.postgres import connect
    from infra.services import ServiceError
    from infra.signed_requests import SECRET, of_prefix, signing_secret

    settings = Settings.load()
    try:
        with connect(settings.database_url, "millrace-secret") as connection:
            of_prefix(connection, prefix)
        typer.echo(signing_secret(settings.secret(SECRET), prefix))
    except (NotAuthenticated, LookupError) as error:
        raise ServiceError(str(error)) from None
    except psycopg.Error as error:
        raise ServiceError(f"the database does not answer ({error}); look at `millrace status`") from None
