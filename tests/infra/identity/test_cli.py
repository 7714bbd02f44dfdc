"""`millrace users` and `millrace keys`: who there is, made and changed from the command line."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import EXPLAINED, build
from infra.identity import api_keys, first, subjects
from infra.identity.keyring import KeyRing
from infra.identity.subjects import NotAuthenticated
from infra.postgres import connect
from infra.prepare import prepare_database
from infra.settings import Settings
from schemas.roles import ADMIN, SCOPES
from tests.signed_in import signed_in

PASSWORD = "four words of a person"


@pytest.fixture(autouse=True)
def prepared(database: Settings) -> None:
    """The database is there, with nobody but the admin in it."""
    signed_in(database)
    with connect(database.database_url) as connection:
        connection.execute("DELETE FROM identity.subjects WHERE subject <> 'admin'")


def run(*arguments: str, password: str | None = None) -> Any:
    """What a command prints, as JSON where it is asked for that; it must succeed."""
    result = CliRunner().invoke(build(), list(arguments), input=password)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def refused(*arguments: str, password: str | None = None) -> str:
    result = CliRunner().invoke(build(), list(arguments), input=password)
    assert result.exit_code != 0
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        # The entry point prints the sentence alone.
        assert isinstance(result.exception, EXPLAINED)
        return str(result.exception)
    return result.output


def test_a_subject_from_the_command_line(database: Settings) -> None:
    """Added with a password from stdin, listed, granted other things, disabled and let in again."""
    made = run(
        "users", "add", "anna", "--grant", "viewer:fraud", "--only", "merchant=m-1,m-2", "--tenant", "acme",
        "--password-stdin", "--json", password=PASSWORD + "\n",
    )  # fmt: skip
    assert (made["kind"], made["tenant"], made["objects"]) == ("person", "acme", {"merchant": ["m-1", "m-2"]})
    assert [s["subject"] for s in run("users", "list", "--json")] == [ADMIN, "anna"]
    assert "anna" in run("users", "list") and "secret" not in run("users", "list", "--json")
    with connect(database.database_url) as connection:
        subjects.authenticate(connection, "anna", PASSWORD, "person")
        run("users", "grant", "anna", "operator", "viewer:fleet", "--all-objects")
        found = subjects.find(connection, "anna")
        assert (found.grants, found.objects) == (["operator", "viewer:fleet"], {})
        assert run("users", "grant", "anna", "--json")["grants"] == []
        run("users", "disable", "anna")
        with pytest.raises(NotAuthenticated, match="disabled"):
            subjects.authenticate(connection, "anna", PASSWORD, "person")
        run("users", "disable", "anna", "--undo")
        run("users", "password", "anna", "--password-stdin", password="another of her passwords\n")
        subjects.authenticate(connection, "anna", "another of her passwords", "person")


def test_a_password_is_asked_for_twice(database: Settings) -> None:
    """On a terminal the password is typed unseen, and again; a program is one by its option."""
    run("users", "add", "till-7", "--program", "--grant", "producer:fraud", password=f"{PASSWORD}\n" * 2)
    with connect(database.database_url) as connection:
        subjects.authenticate(connection, "till-7", PASSWORD, "program")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("users", "add", "anna", "--grant", "root"), "grant one of"),
        (("users", "add", "Anna!"), "is no name"),
        (("users", "add", ADMIN), "already"),
        (("users", "add", "anna", "--only", "merchant"), "kind=id,id"),
        (("users", "add", "anna", "--only", "ship=1"), "there is no kind"),
        (("users", "grant", "nobody"), "users list"),
    ],
)
def test_what_cannot_be_is_explained(arguments: tuple[str, ...], words: str) -> None:
    """One sentence with the remedy, and nothing is changed."""
    stdin = ("--password-stdin",) if arguments[1] == "add" else ()
    assert words in refused(*arguments, *stdin, password=PASSWORD + "\n")
    assert [s["subject"] for s in run("users", "list", "--json")] == [ADMIN]


def test_a_weak_password_is_refused() -> None:
    """Too short is too short, also from stdin."""
    assert "characters" in refused("users", "add", "anna", "--password-stdin", password="short\n")


def test_keys_from_the_command_line(database: Settings) -> None:
    """A key is shown once, listed by its prefix, may do at most what it was given, and is revoked."""
    made = run(
        "keys", "create", ADMIN, "--name", "a test", "--grant", "viewer:fraud", "--days", "3", "--json"
    )
    with connect(database.database_url) as connection:
        assert api_keys.principal_of(connection, made["key"]).scopes == {"fraud:read"}
        listed = {k["prefix"]: k for k in run("keys", "list", "--json")}
        assert listed[made["prefix"]]["name"] == "a test"
        assert made["key"] not in json.dumps(listed) and made["prefix"] in run("keys", "list")
        run("keys", "revoke", made["prefix"])
        with pytest.raises(NotAuthenticated, match="revoked"):
            api_keys.principal_of(connection, made["key"])
        whole = run("keys", "create", ADMIN, "--name", "all").strip()
        assert api_keys.principal_of(connection, whole).scopes == SCOPES
    assert "no API key" in refused("keys", "revoke", "nonesuch")
    assert "1 to" in refused("keys", "create", ADMIN, "--name", "x", "--days", "9999")


def test_signing_keys_rotate(database: Settings) -> None:
    """A new key signs from now on, and the one before still verifies."""
    ring = KeyRing(database.signing_keys)
    before, _ = ring.signing()
    run("keys", "rotate")
    assert ring.signing()[0] != before and ring.verifying(before) is not None


def test_the_first_start_makes_an_admin_with_a_key(database: Settings) -> None:
    """Password and key are their owner's alone, printed by `millrace env`, made once, and made anew when the
    key is no good any more."""
    folder = database.home_path / "secrets"
    for name in (ADMIN, first.API_KEY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    shown = run("env", "--json")
    assert shown["MILLRACE_API_KEY"] == database.secret(first.API_KEY)
    assert (shown["MILLRACE_USER"], shown["MILLRACE_PASSWORD"]) == (ADMIN, database.secret(ADMIN))
    with connect(database.database_url) as connection:
        found = subjects.authenticate(connection, ADMIN, shown["MILLRACE_PASSWORD"], "person")
        assert found.principal("").scopes == SCOPES
        key = database.secret(first.API_KEY)
        prepare_database(database)
        assert database.secret(first.API_KEY) == key
        api_keys.revoke(connection, key.split("_")[1])
        prepare_database(database)
        assert api_keys.principal_of(connection, database.secret(first.API_KEY)).subject == ADMIN


def test_an_admin_is_made_only_where_one_is_wanted(database: Settings) -> None:
    """MILLRACE_LOCAL_ADMIN=off leaves it to `millrace users add`; another value is refused."""
    with connect(database.database_url) as connection:
        connection.execute("DELETE FROM identity.subjects")
        first.ensure(Settings({**database.environ, "MILLRACE_LOCAL_ADMIN": "off"}))
        assert subjects.everyone(connection) == []
    with pytest.raises(EXPLAINED, match="neither on nor off"):
        first.ensure(Settings({**database.environ, "MILLRACE_LOCAL_ADMIN": "maybe"}))
