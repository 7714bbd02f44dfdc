"""Who asks the console in tests: subjects of each role, signed in as browsers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

from infra.identity import subjects
from infra.postgres import connect
from infra.settings import Settings
from schemas.roles import HOME_TENANT
from tests.signed_in import signed_in

PASSWORD = "four words of a person"


def person(
    settings: Settings,
    name: str,
    grants: Sequence[str],
    tenant: str = HOME_TENANT,
    objects: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A person of the test instance, made anew, whose password is `PASSWORD`; returns the name."""
    signed_in(settings)
    with connect(settings.database_url) as connection:
        connection.execute("DELETE FROM identity.subjects WHERE subject = %s", (name,))
        subjects.create(connection, name, "person", tenant, PASSWORD, grants, objects or {})
    return name


def sign_in(client: httpx.Client, name: str, password: str = PASSWORD, next: str = "") -> httpx.Response:
    """Send the form as a browser does."""
    origin = str(client.base_url).rstrip("/")
    form = {"username": name, "password": password, "next": next}
    return client.post("/console/sign-in", data=form, headers={"origin": origin})


def audited(settings: Settings, subject: str) -> list[tuple[str, str, str, dict[str, object]]]:
    """Action, object, outcome and details of what the log tells of a subject, in its order."""
    with connect(settings.database_url) as connection:
        rows = connection.execute(
            "SELECT action, object, outcome, details FROM audit.entries WHERE subject = %s ORDER BY at",
            (subject,),
        ).fetchall()
    return [(str(a), str(o), str(out), dict(d)) for a, o, out, d in rows]  # type: ignore[call-overload]
