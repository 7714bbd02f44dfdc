"""`millrace users`: people and programs, what they are granted, and their passwords."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.audit.shell import audited
from infra.settings import Settings
from schemas.roles import HOME_TENANT

if TYPE_CHECKING:
    from infra.identity.principal import Kind
    from infra.identity.subjects import Subject

app = typer.Typer()
users = typer.Typer(help="People and programs: who there is, and what they may do.", no_args_is_help=True)
app.add_typer(users, name="users")

Name = Annotated[str, typer.Argument(help="The subject, as anna or till-7.")]
Grants = Annotated[
    list[str] | None,
    typer.Option("--grant", help="A role, or a role in a domain, as viewer:fraud or viewer:*; repeatable."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Sees of a kind of object these alone, as merchant=m-1,m-2; repeatable."),
]
FromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from stdin instead of asking for it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@users.command()
@audited("users.add")
def add(
    name: Name,
    grant: Grants = None,
    only: Only = None,
    tenant: Annotated[str, typer.Option(help="Whose rows it sees and writes.")] = HOME_TENANT,
    program: Annotated[bool, typer.Option("--program", help="A program, not a person.")] = False,
    password_stdin: FromStdin = False,
    as_json: AsJson = False,
) -> None:
    """Make a subject. A person logs in with a password, a program with a client secret."""
    from infra.identity import subjects

    with _database() as connection:
        kind: Kind = "program" if program else "person"
        objects = subjects.objects_of(only or [])
        subjects.create(connection, name, kind, tenant, _password(password_stdin), grant or [], objects)
        _tell(subjects.find(connection, name), as_json)


@users.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Every subject with its tenant and grants."""
    from infra.identity import subjects

    with _database() as connection:
        found = subjects.everyone(connection)
    if as_json:
        typer.echo(json.dumps([_as_dict(subject) for subject in found], indent=2))
        return
    for subject in found:
        _tell(subject, False)


@users.command()
@audited("users.grant")
def grant(
    name: Name,
    grants: Annotated[
        list[str] | None, typer.Argument(help="All that it is granted from now on; none: nothing.")
    ] = None,
    only: Only = None,
    everything: Annotated[
        bool, typer.Option("--all-objects", help="Sees every object of its tenant from now on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Replace what a subject is granted, and the objects that it sees. It holds within seconds."""
    from infra.identity import subjects

    if only and everything:
        raise typer.BadParameter("give --only or --all-objects, not both", param_hint="--only")
    with _database() as connection:
        objects = {} if everything else subjects.objects_of(only) if only else None
        subjects.change(connection, name, grants=grants or [], objects=objects)
        _tell(subjects.find(connection, name), as_json)


@users.command()
@audited("users.disable")
def disable(
    name: Name,
    undo: Annotated[bool, typer.Option("--undo", help="Let it in again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a subject in no more: its sessions, tokens and keys end within seconds."""
    from infra.identity import subjects

    with _database() as connection:
        subjects.change(connection, name, disabled=not undo)
        _tell(subjects.find(connection, name), as_json)


@users.command()
@audited("users.password")
def password(name: Name, password_stdin: FromStdin = False) -> None:
    """Give a subject a new password or client secret, and end its sessions. It unlocks the subject."""
    from infra.identity import first, subjects

    with _database() as connection:
        subjects.change(connection, name, password=_password(password_stdin))
    first.forget_password(Settings.load(), name)
    typer.echo(f"{name} has a new password; its sessions were ended", err=True)


def _database() -> Any:
    from infra.postgres import connect

    return connect(Settings.load().database_url, "millrace-users")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


def _as_dict(subject: Subject) -> dict[str, Any]:
    return {
        "subject": subject.subject,
        "kind": subject.kind,
        "tenant": subject.tenant,
        "grants": subject.grants,
        "objects": subject.objects,
        "disabled_at": subject.disabled_at.isoformat() if subject.disabled_at else None,
        "locked_until": subject.locked_until.isoformat() if subject.locked_until else None,
        "created_at": subject.created_at.isoformat(),
    }


def _tell(subject: Subject, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_as_dict(subject), indent=2))
        return
    only = "".join(f" {kind}={','.join(ids)}" for kind, ids in sorted(subject.objects.items()))
    off = " disabled" if subject.disabled_at else ""
    typer.echo(
        f"{subject.subject:<24} {subject.kind:<8} {subject.tenant:<16} {' '.join(subject.grants)}{only}{off}"
    )
