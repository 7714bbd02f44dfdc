"""Clients with an API key, for tests of the applications."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers

from infra.identity import api_keys, subjects
from infra.identity.principal import Principal
from infra.limits.rates import RATES
from infra.limits.tokens import Verdict
from infra.postgres import connect
from infra.prepare import prepare_database
from infra.settings import Settings
from schemas.roles import HOME_TENANT, SCOPES


class Everybody:
    """An authenticator to whom everybody is one who may do everything, for tests without identities."""

    async def principal(self, headers: Headers) -> Principal:
        return Principal("anybody", "program", HOME_TENANT, SCOPES, {}, "none")


class Plenty:
    """Limits that nobody meets, for tests of an application whose requests share no event loop."""

    async def take(self, asker: str, route_class: str) -> Verdict:
        return Verdict(True, RATES[route_class], 1.0)


def unlimited(settings: Settings) -> Settings:
    """The same instance, for tests that ask faster than anybody may."""
    return Settings({**settings.environ, "MILLRACE_LIMITS": "login=9999/s anonymous=9999/s operate=9999/s"})


def signed_in(settings: Settings) -> dict[str, str]:
    """The headers of the test instance's own admin, who is made where there is none yet."""
    prepare_database(settings)
    return settings.client_headers


def key_of(
    settings: Settings,
    subject: str,
    tenant: str,
    grants: Sequence[str],
    objects: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, str]:
    """The headers of a program of its own, which is made here. The database is prepared already."""
    with connect(settings.database_url) as connection:
        subjects.create(
            connection, subject, "program", tenant, secrets.token_urlsafe(24), grants, objects or {}
        )
        return {"X-API-Key": api_keys.create(connection, subject, "a test", grants, 1)}
