"""`millrace secret rotate`: new passwords for the roles of database and broker while everything runs."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.audit.shell import audited
from infra.settings import Settings

app = typer.Typer()
secret = typer.Typer(help="Secrets of this instance, kept in its state folder.", no_args_is_help=True)
app.add_typer(secret, name="secret")

CERTIFICATE = "kafka-certificate"


@secret.command()
@audited("secret.rotate")
def rotate(
    name: Annotated[
        str,
        typer.Argument(
            help="postgres (the owner), reader, api, identity, gateway, sink, outward, audit; of a secured"
            " instance also kafka-PRINCIPAL, as kafka-processor-fraud, and kafka-certificate."
        ),
    ],
) -> None:
    """Give a role of the database or of the broker a new password, or the broker a new certificate.

    Database: sessions opened with the old one are ended; processes of this instance open theirs anew, and go
    on. Broker: the process of that name is started anew. Certificate: in force when the broker starts next.
    """
    settings = Settings.load()
    if name == CERTIFICATE:
        _renew_certificate(settings)
    elif name.startswith("kafka-"):
        _rotate_principal(settings, name.removeprefix("kafka-"))
    else:
        _rotate_role(settings, name)


def _rotate_role(settings: Settings, name: str) -> None:
    import psutil

    from infra.services import ServiceError, rotation
    from infra.supervisor import living

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


def _rotate_principal(settings: Settings, principal: str) -> None:
    from infra.services.kafka_principals import rotate
    from infra.supervisor import living
    from schemas import grants
    from schemas.pipelines import PIPELINES

    rotate(settings, PIPELINES, principal)
    typer.echo(f"{principal} has a new password at the broker", err=True)
    for process, running in living(settings.home_path).items():
        role, _, pipeline = process.partition("-")
        if grants.principal(role, pipeline) == principal:
            running.terminate()  # in good order; the supervisor starts it with the new password
            typer.echo(f"{process} starts anew with it", err=True)


def _renew_certificate(settings: Settings) -> None:
    from infra.services import ServiceError
    from infra.services.kafka_certificates import renew

    if not settings.secure:
        raise ServiceError("this instance's broker has no certificate; it comes with `millrace up --secure`")
    ends = renew(settings)
    typer.echo(
        f"the broker has a new certificate until {ends:%Y-%m-%d}, in force from its next start:"
        " `millrace down`, `millrace up`",
        err=True,
    )
