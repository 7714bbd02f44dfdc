"""`millrace ledger`: erase personal data from the ledger without breaking its chain."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated

import typer

from infra.audit.shell import audited
from infra.settings import Settings

app = typer.Typer()
ledger = typer.Typer(help="The ledger of decisions: erasures. Its proof: `millrace verify ledger`.")
app.add_typer(ledger, name="ledger")


@ledger.callback()
def _of_ledger() -> None:
    """The ledger of decisions."""


# The card is what shall be forgotten: the audit log, which forgets nothing, gets the erasure alone.
@ledger.command()
@audited("ledger.erase", untold=("card",))
def erase(
    card: Annotated[str, typer.Option(help="The card (token) whose rows are to forget it.")],
    reason: Annotated[str, typer.Option(help="Why, for the record, as `request 4711`.")],
    tenant: Annotated[str, typer.Option(help="Whose card it is.")] = "default",
    by: Annotated[str | None, typer.Option(help="Who does it; default user@host.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without this it is only shown.")] = False,
) -> None:
    """Destroy card and customer id in all of a card's rows, with the keys of their seals. The rows stay.

    It cannot be taken back. What topics and backups hold goes when they expire.
    """
    import psycopg

    from infra.ledger.erasure import ErasureError
    from infra.ledger.erasure import erase as run
    from infra.ledger.heads import open_heads
    from infra.postgres import connect
    from schemas.fraud import CARD_LEDGER

    settings = Settings.load()
    try:
        with connect(settings.database_url, "millrace-ledger") as connection:
            if not apply:
                row = connection.execute(
                    "SELECT count(*) FROM card_ledger WHERE tenant = %s AND card_id = %s", (tenant, card)
                ).fetchone()
                typer.echo(f"{row[0] if row else 0} rows would forget the card; repeat it with --apply")
                return
            who = by or f"{getpass.getuser()}@{socket.gethostname()}"
            made = run(connection, open_heads(settings), CARD_LEDGER, tenant, card, reason, who)
    except ErasureError as error:
        typer.echo(f"millrace: {error}", err=True)
        raise typer.Exit(1) from None
    except psycopg.Error as error:
        typer.echo(f"millrace: the database refuses: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"erasure {made.sequence}: {made.rows} rows now name erased:{made.ref}")


@ledger.command()
@audited("ledger.countersign")
def countersign() -> None:
    """Sign erasures that were stored but not signed, as their command was interrupted. Look at them first."""
    from infra.ledger.erasure import sign, unsigned
    from infra.ledger.heads import open_heads
    from infra.postgres import connect

    settings = Settings.load()
    heads = open_heads(settings)
    with connect(settings.database_url, "millrace-ledger") as connection:
        for one in unsigned(connection, heads):
            what = f"{one.rows} rows, {one.at:%Y-%m-%d %H:%M:%S}, by {one.by}: {one.reason}"
            typer.echo(f"erasure {one.sequence}: {what}")
        if typer.confirm("Sign these?", default=False):
            typer.echo(f"signed: {sign(connection, heads)}")
