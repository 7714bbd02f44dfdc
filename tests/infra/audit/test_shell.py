"""What is done at the shell is told, before and after, or not done."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from infra.audit import shell
from infra.audit.log import open_heads
from infra.audit.shell import ACTION, audited
from infra.audit.verify import verify
from infra.cli import build
from infra.identity.principal import Principal
from infra.postgres import Connection
from infra.services import ServiceError
from infra.settings import Settings
from tests.infra.audit.conftest import empty

app = typer.Typer()
done: list[str] = []


@app.command()
@audited("tests.act", untold=("word",))
def act(
    name: Annotated[str, typer.Argument()],
    word: Annotated[str | None, typer.Option()] = None,
    code: Annotated[int, typer.Option()] = 0,
    apply: Annotated[bool, typer.Option("--apply")] = False,
) -> None:
    done.append(name)
    if code:
        raise typer.Exit(code)


@app.command()
def other() -> None:
    """So that the first is a command with a name."""


def told(owner: Connection) -> list[tuple[object, ...]]:
    return owner.execute(
        "SELECT subject, action, object, outcome, details FROM audit.entries WHERE action NOT LIKE 'audit.%'"
        " ORDER BY at"
    ).fetchall()


def test_an_action_is_told_before_and_after(database: Settings, owner: Connection) -> None:
    """With who did it and its arguments, without those that are data; a failure is told as one."""
    empty(owner)
    database.audit_heads.unlink(missing_ok=True)
    runner = CliRunner()
    assert runner.invoke(app, ["act", "a", "--word", "secret", "--apply"]).exit_code == 0
    assert runner.invoke(app, ["act", "b", "--code", "3", "--apply"]).exit_code == 3
    who = f"os:{getpass.getuser()}"
    assert told(owner) == [
        (who, "tests.act", "begins", "done", {"name": "a", "apply": True}),
        (who, "tests.act", "ends", "done", {"name": "a", "apply": True}),
        (who, "tests.act", "begins", "done", {"name": "b", "code": 3, "apply": True}),
        (who, "tests.act", "ends", "failed", {"name": "b", "code": 3, "apply": True}),
    ]
    account = verify(owner, open_heads(database))
    assert account.clean, account.findings


def test_what_only_shows_is_not_told(database: Settings, owner: Connection) -> None:
    """A command that waits for --apply does nothing without it, and nothing is told."""
    empty(owner)
    assert CliRunner().invoke(app, ["act", "shown"]).exit_code == 0
    assert told(owner) == [] and done[-1] == "shown"


def test_what_cannot_be_told_is_not_done(
    database: Settings, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the log away the command ends with the reason, and has done nothing."""
    empty(owner)
    monkeypatch.setattr(shell, "WRITTEN_WITHIN_S", 0.2)
    owner.execute("ALTER TABLE audit.entries RENAME TO hidden")
    try:
        failed = CliRunner().invoke(app, ["act", "never", "--apply"])
    finally:
        owner.execute("ALTER TABLE audit.hidden RENAME TO entries")
    assert isinstance(failed.exception, ServiceError) and "nothing is done" in str(failed.exception)
    assert "never" not in done


SHOWING = {
    "dlq": {"list", "show", "test"},
    "keys": {"list"},
    "ledger": set(),
    "lists": {"list", "show"},
    # `ensure` trains, and so tells, where a model is missing; `evaluate fraud` writes its report alone.
    "models": {"ensure", "fraud", "list"},
    "replay": {"diff", "list", "plan"},
    "rules": {"check", "list", "show", "words"},
    "secret": set(),
    "users": {"list"},
    "webhooks": {"deliveries", "list"},
}
"""By group the commands that change nothing."""


@pytest.mark.parametrize("group", SHOWING)
def test_every_command_that_changes_something_is_told(group: str) -> None:
    """One that is neither told nor known to only show would act unseen."""
    found = typer.main.get_command(build()).commands[group]  # type: ignore[attr-defined]

    def untold(commands: dict[str, Any]) -> Iterator[str]:
        for name, command in commands.items():
            if inner := getattr(command, "commands", None):
                yield from untold(inner)
            elif not hasattr(command.callback, ACTION):
                yield name

    assert set(untold(found.commands)) == SHOWING[group]


def test_what_a_service_starts_for_somebody_is_told_as_theirs(
    database: Settings, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their subject and tenant; the proof names both what they were known by and the shell."""
    empty(owner)
    anna = Principal("anna", "person", "acme", frozenset({"ops:write"}), {}, "token:7")
    for name, value in shell.acting_for(anna).items():
        monkeypatch.setenv(name, value)
    assert CliRunner().invoke(app, ["act", "a", "--apply"]).exit_code == 0
    rows = owner.execute(
        "SELECT DISTINCT subject, tenant, proof FROM audit.entries WHERE action = 'tests.act'"
    ).fetchall()
    [(subject, tenant, proof)] = rows
    assert (subject, tenant) == ("anna", "acme")
    assert str(proof).startswith("token:7 by shell:")
