"""Somebody of each role, tenant and choice of objects, as the identities know them."""

from __future__ import annotations

import secrets

from infra.identity import api_keys, subjects
from infra.postgres import connect
from infra.settings import Settings
from tests.authorisation.matrix import GRANTS, SEEN, Asker, objects_of
from tests.authorisation.rows import TENANTS

EVERY_GRANT = sorted({grant for grants in GRANTS for grant in grants})


def askers_of(settings: Settings) -> list[Asker]:
    """A key for each; they are made here, in a prepared database."""
    made = []
    with connect(settings.database_url) as connection:
        for tenant in TENANTS:
            for seen in SEEN:
                name, objects = f"{tenant}-{seen}", objects_of(tenant, seen)
                subjects.create(
                    connection, name, "program", tenant, secrets.token_urlsafe(24), EVERY_GRANT, objects
                )
                for grants in GRANTS:
                    key = api_keys.create(connection, name, "matrix", grants, 1)
                    made.append(Asker(grants, tenant, seen, {"X-API-Key": key}))
    return made
