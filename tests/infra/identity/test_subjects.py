"""Subjects, their passwords, API keys and refresh tokens on a real database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from infra.identity import api_keys, refresh, subjects
from infra.identity.passwords import WeakPassword
from infra.identity.subjects import NotAuthenticated, SubjectError
from infra.postgres import Connection, connect
from infra.settings import Settings
from schemas.roles import DOMAINS, ROLES, SCOPES, GrantError, scopes_of

PASSWORD = "correct horse battery staple"
OTHER = "another one, as long as that"


@pytest.fixture
def connection(database: Settings) -> Iterator[Connection]:
    """A connection to a database in which there is anna, who views fraud and sees two merchants."""
    with connect(database.database_url) as made:
        made.execute("TRUNCATE identity.subjects CASCADE")
        subjects.create(
            made, "anna", "person", "acme", PASSWORD, ["viewer:fraud"], {"merchant": ["m1", "m2"]}
        )
        yield made


def refused(connection: Connection, password: str, subject: str = "anna") -> str:
    with pytest.raises(NotAuthenticated) as error:
        subjects.authenticate(connection, subject, password, "person")
    return str(error.value)


def test_grants_give_scopes() -> None:
    """A role gives its scopes, in one domain or in all; what is no grant is refused with a remedy."""
    assert scopes_of(["viewer:fraud"]) == {"fraud:read"}
    assert scopes_of(["viewer:*"]) == {f"{d}:read" for d in DOMAINS}
    assert scopes_of(["producer:fleet", "auditor"]) == {"fleet:write", "audit:read"}
    assert not any("read" in s and s.split(":")[0] in DOMAINS for s in scopes_of(["admin"]))
    everything = [f"{r.name}:*" if r.by_domain else r.name for r in ROLES.values()]
    assert scopes_of(everything) == SCOPES and scopes_of([]) == frozenset()
    for wrong, remedy in (("root", "grant one of"), ("viewer", "viewer:fraud"), ("viewer:x", "viewer:fraud")):
        with pytest.raises(GrantError, match=remedy):
            scopes_of([wrong])
    with pytest.raises(GrantError, match="not granted by domain"):
        scopes_of(["admin:fraud"])


def test_a_password_proves_a_subject(connection: Connection) -> None:
    """The right password gives tenant, scopes and objects; a wrong one or another kind gives nothing."""
    found = subjects.authenticate(connection, "anna", PASSWORD, "person").principal("token:1")
    assert (found.tenant, found.scopes, found.sees("merchant")) == (
        "acme",
        {"fraud:read"},
        {"m1", "m2"},
    )
    assert found.may("fraud:read") and not found.may("fraud:write") and found.sees("patient") is None
    assert "not the password" in refused(connection, OTHER)
    assert "not the password" in refused(connection, PASSWORD, "nobody")
    with pytest.raises(NotAuthenticated):
        subjects.authenticate(connection, "anna", PASSWORD, "program")


def test_a_name_that_nobody_has_takes_as_long(connection: Connection) -> None:
    """Time does not tell whether there is a subject."""

    def seconds(subject: str) -> float:
        began = time.process_time()
        refused(connection, OTHER, subject)
        return time.process_time() - began

    known, unknown = (min(seconds(name) for _ in range(3)) for name in ("anna", "nobody"))
    assert 0.5 < known / unknown < 2


def test_wrong_passwords_lock_for_longer_and_longer(connection: Connection) -> None:
    """From the fifth on each doubles the time, in which the right one is refused too."""

    def locked_s() -> float:
        row = connection.execute(
            "SELECT coalesce(greatest(extract(epoch FROM locked_until - now()), 0), 0) FROM identity.subjects"
        ).fetchone()
        assert row is not None
        return float(str(row[0]))

    for _ in range(4):
        refused(connection, OTHER)
    assert locked_s() == 0
    subjects.authenticate(connection, "anna", PASSWORD, "person")
    waits = []
    for _ in range(7):
        refused(connection, OTHER)
        waits.append(round(locked_s()))
        assert not waits[-1] or "is locked" in refused(connection, PASSWORD)
        connection.execute("UPDATE identity.subjects SET locked_until = now()")
    # (Seconds may pass before it is asked.)
    assert all(0 <= due - left <= 5 for due, left in zip([0, 0, 0, 0, 30, 60, 120], waits, strict=True))
    subjects.authenticate(connection, "anna", PASSWORD, "person")
    refused(connection, OTHER)
    assert locked_s() == 0, "a right password forgets the wrong ones before it"


def test_many_guesses_at_once_are_counted_one_by_one(connection: Connection, database: Settings) -> None:
    """Eight guesses at the same time lock as eight one after the other do."""
    reasons: list[str] = []

    def guess() -> None:
        with connect(database.database_url) as own:
            reasons.append(refused(own, OTHER))

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("locked" in reason for reason in reasons) == [False] * 5 + [True] * 3


def test_a_change_holds_at_once(connection: Connection) -> None:
    """Grants, objects and password change; another password, or being disabled, ends what was begun."""
    token = refresh.start(connection, "anna")
    subjects.change(connection, "anna", grants=["operator"], objects={"merchant": []})
    found = subjects.authenticate(connection, "anna", PASSWORD, "person").principal("")
    assert found.may("ops:write") and found.sees("merchant") == frozenset()
    subjects.change(connection, "anna", password=OTHER)
    refused(connection, PASSWORD)
    with pytest.raises(NotAuthenticated):
        refresh.use(connection, token)
    token = refresh.start(connection, "anna")
    subjects.change(connection, "anna", disabled=True)
    assert "was disabled" in refused(connection, OTHER)
    with pytest.raises(NotAuthenticated):
        refresh.use(connection, token)
    subjects.change(connection, "anna", disabled=False)
    subjects.authenticate(connection, "anna", OTHER, "person")


def test_what_cannot_be_is_refused_with_its_remedy(connection: Connection) -> None:
    """Names, kinds, tenants, grants, objects and passwords are checked before anything is stored."""
    for subject, reason in (
        ("", "no name"),
        ("Anna", "small letters"),
        ("a;--", "no name"),
        ("anna", "already"),
    ):
        with pytest.raises(SubjectError, match=reason):
            subjects.create(connection, subject, "person", "acme", PASSWORD, [])
    with pytest.raises(SubjectError, match="kind"):
        subjects.create(connection, "bert", "robot", "acme", PASSWORD, [])  # type: ignore[arg-type]
    with pytest.raises(SubjectError, match="tenant"):
        subjects.create(connection, "bert", "person", "", PASSWORD, [])
    with pytest.raises(SubjectError, match="no kind 'ship'; give one of customer, fleet"):
        subjects.create(connection, "bert", "person", "acme", PASSWORD, [], {"ship": ["1"]})
    with pytest.raises(GrantError):
        subjects.change(connection, "anna", grants=["root"])
    with pytest.raises(WeakPassword, match="has 5 characters; give it 12"):
        subjects.create(connection, "bert", "person", "acme", "short", [])
    with pytest.raises(WeakPassword, match="repeats itself"):
        subjects.change(connection, "anna", password="a" * 40)
    with pytest.raises(SubjectError, match="no subject 'bert'"):
        subjects.change(connection, "bert", disabled=True)
    assert [s.subject for s in subjects.everyone(connection)] == ["anna"]


def test_nothing_secret_is_stored(connection: Connection) -> None:
    """Neither password nor token nor key stands in the database."""
    secret = [PASSWORD, refresh.start(connection, "anna")]
    secret.append(api_keys.create(connection, "anna", "till", ["viewer:fraud"], 30).rpartition("_")[2])
    for table in ("subjects", "refresh_tokens", "api_keys"):
        text = str(connection.execute(f"SELECT t::text FROM identity.{table} t".encode()).fetchall())
        assert not any(s in text for s in secret) and text != "[]"


def test_analysts_cannot_look_into_it(connection: Connection) -> None:
    """The role that reads every table of the platform reads none of these."""
    for table in ("subjects", "refresh_tokens", "api_keys"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute("SET LOCAL ROLE millrace_reader")
            connection.execute(f"SELECT 1 FROM identity.{table}".encode())


# Refresh tokens


def test_a_refresh_token_is_good_for_one_use(connection: Connection) -> None:
    """Each use gives the next token; the chain goes on for one login, and ends with it."""
    token = refresh.start(connection, "anna")
    for _ in range(3):
        subject, token = refresh.use(connection, token)
        assert subject == "anna"
    refresh.end(connection, token)
    with pytest.raises(NotAuthenticated, match="has ended"):
        refresh.use(connection, token)
    with pytest.raises(NotAuthenticated, match="not known"):
        refresh.use(connection, "made up")


def test_a_second_use_ends_the_login(connection: Connection) -> None:
    """A token that comes again revokes all that followed from its login, and no other login."""
    stolen = refresh.start(connection, "anna")
    other = refresh.start(connection, "anna")
    _, heir = refresh.use(connection, stolen)
    with pytest.raises(NotAuthenticated, match="second time"):
        refresh.use(connection, stolen)
    with pytest.raises(NotAuthenticated, match="has ended"):
        refresh.use(connection, heir)
    assert refresh.use(connection, other)[0] == "anna"


def test_of_two_uses_at_once_one_wins_and_the_login_ends(connection: Connection, database: Settings) -> None:
    """Two uses of one token at the same time never give two valid tokens."""
    token = refresh.start(connection, "anna")
    heirs: list[str] = []

    def use() -> None:
        with connect(database.database_url) as own:
            try:
                heirs.append(refresh.use(own, token)[1])
            except NotAuthenticated:
                pass

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heirs) == 1
    with pytest.raises(NotAuthenticated):
        refresh.use(connection, heirs[0])


def test_expired_tokens_are_refused_and_forgotten_later(connection: Connection) -> None:
    """Past its time a token is refused; a day later nothing of it is left."""
    token = refresh.start(connection, "anna")
    connection.execute("UPDATE identity.refresh_tokens SET expires_at = now()")
    with pytest.raises(NotAuthenticated, match="has expired"):
        refresh.use(connection, token)
    assert refresh.forget_expired(connection) == 0
    connection.execute("UPDATE identity.refresh_tokens SET expires_at = now() - interval '25 hours'")
    assert refresh.forget_expired(connection) == 1


# API keys


def test_a_key_may_what_both_it_and_its_subject_may(connection: Connection) -> None:
    """A key has its subject's tenant and objects, and of its grants what the subject still has."""
    subjects.change(connection, "anna", grants=["viewer:*", "producer:fraud"])
    key = api_keys.create(connection, "anna", "till 7", ["viewer:fraud", "producer:fraud"], 30)
    found = api_keys.principal_of(connection, key)
    assert (found.subject, found.tenant, found.sees("merchant")) == ("anna", "acme", {"m1", "m2"})
    assert found.scopes == {"fraud:read", "fraud:write"} and found.proof == f"key:{key.split('_')[1]}"
    subjects.change(connection, "anna", grants=["viewer:fraud"])
    assert api_keys.principal_of(connection, key).scopes == {"fraud:read"}
    with pytest.raises(SubjectError, match=r"itself may not fraud:write; grant it that first"):
        api_keys.create(connection, "anna", "till 8", ["producer:fraud"], 30)


def test_a_key_ends(connection: Connection) -> None:
    """Revoked, expired, of a disabled subject, or with one character changed: it opens nothing."""
    keys = [api_keys.create(connection, "anna", f"k{n}", ["viewer:fraud"], 30) for n in range(3)]
    prefixes = [key.split("_")[1] for key in keys]
    api_keys.revoke(connection, prefixes[0])
    connection.execute("UPDATE identity.api_keys SET expires_at = now() WHERE prefix = %s", (prefixes[1],))
    changed = keys[2][:-1] + ("A" if keys[2][-1] != "A" else "B")
    for key, reason in (
        (keys[0], "revoked"),
        (keys[1], "expired"),
        (changed, "another secret"),
        ("x", "form"),
    ):
        with pytest.raises(NotAuthenticated, match=reason):
            api_keys.principal_of(connection, key)
    assert api_keys.principal_of(connection, keys[2]).subject == "anna"
    subjects.change(connection, "anna", disabled=True)
    with pytest.raises(NotAuthenticated, match="was disabled"):
        api_keys.principal_of(connection, keys[2])
    listed = {key.prefix: key for key in api_keys.every(connection)}
    assert listed.keys() == set(prefixes) and listed[prefixes[0]].revoked_at is not None


def test_a_key_says_what_it_is_for_and_until_when(connection: Connection) -> None:
    """Without a name, without an end, or for nobody there is no key."""
    for name, days, reason in (
        (" ", 30, "name is empty"),
        ("till", 0, "give 1 to 366"),
        ("till", 1000, "366"),
    ):
        with pytest.raises(SubjectError, match=reason):
            api_keys.create(connection, "anna", name, [], days)
    with pytest.raises(SubjectError, match="no subject"):
        api_keys.create(connection, "bert", "till", [], 3)
    with pytest.raises(SubjectError, match="no API key"):
        api_keys.revoke(connection, "unknown")
