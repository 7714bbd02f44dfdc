"""`millrace lists`: what fraud rules ask by `list('name')`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from infra.audit.shell import audited
from infra.cli.rules import As, store, who

app = typer.Typer()
lists = typer.Typer(help="Lists that fraud rules ask, with entries that may expire.", no_args_is_help=True)
app.add_typer(lists, name="lists")

Name = Annotated[str, typer.Argument(help="The list's name, as risky or stolen-cards.")]
Values = Annotated[list[str] | None, typer.Argument(help="Values, as 4829 6051.")]


@lists.command("list")
def list_() -> None:
    """Every list, and how many entries it has."""
    from models.rules.store import read_lists

    with store() as connection:
        for name, entries in read_lists(connection).items():
            expiring = sum(until is not None for _, until in entries)
            typer.echo(f"{name:28} {len(entries):6} entries, {expiring} of them expire")


@lists.command()
def show(name: Name) -> None:
    """A list's entries, with the event time before which they count."""
    from models.rules.problem import RuleError, suggestion
    from models.rules.store import read_lists

    with store() as connection:
        found = read_lists(connection)
        if name not in found:
            raise RuleError(f"there is no list {name}; {suggestion(name, found)[0]}")
        for value, until in found[name]:
            typer.echo(
                value if until is None else f"{value}  until {until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
            )


# Values may be card numbers; the list has them, with who put them there.
@lists.command()
@audited("lists.add", untold=("values",))
def add(
    name: Name,
    values: Values = None,
    file: Annotated[
        Path | None, typer.Option("--from", exists=True, dir_okay=False, help="A file of values, one a line.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Let them count for transactions before this time (UTC) alone.")
    ] = None,
    actor: As = "",
) -> None:
    """Put values into a list, which is made by its first one."""
    from models.rules.store import put_in_list

    lines = file.read_text().splitlines() if file is not None else []
    wanted = list(dict.fromkeys(value.strip() for value in [*(values or []), *lines] if value.strip()))
    if not wanted:
        raise typer.BadParameter("name values, or a file of them with --from")
    with store() as connection:
        published = put_in_list(
            connection, name, wanted, who(actor), None if until is None else until.replace(tzinfo=UTC)
        )
    _say(published)


@lists.command()
@audited("lists.remove", untold=("values",))
def remove(name: Name, values: Annotated[list[str], typer.Argument(help="Values.")], actor: As = "") -> None:
    """Take values out of a list."""
    from models.rules.store import take_from_list

    with store() as connection:
        _say(take_from_list(connection, name, values, who(actor)))


def _say(published: int | None) -> None:
    if published is None:
        typer.echo("nothing changed")
    else:
        typer.echo(f"version {published} of the rules, with it, applies from each partition's next batch on")
