"""Tokens of webhooks' receivers: `whev_<secret>`. Each opens its own endpoint's events and nothing else."""

from __future__ import annotations

import hashlib
import re
import secrets

from infra.identity.principal import Principal
from infra.identity.subjects import NotAuthenticated
from infra.postgres import Connection
from schemas.roles import OBJECTS, RECEIVER_SCOPE

PREFIX = "whev_"
FORM = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
MERCHANT = OBJECTS["fraud"]


def new_token() -> str:
    """A token for a receiver; it is shown once."""
    return PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> bytes:
    """What of a token the database knows. (Of 256 random bits: nothing slow is needed.)"""
    return hashlib.sha256(token.encode()).digest()


def principal_of(connection: Connection, token: str) -> Principal:
    """The receiver, whose subject is its endpoint. Raises `NotAuthenticated`."""
    if FORM.fullmatch(token) is None:
        raise NotAuthenticated("that has not the form of a receiver's token")
    row = connection.execute(
        "SELECT endpoint_id, tenant, merchant_id FROM outward_endpoints WHERE token_sha256 = %s",
        (token_hash(token),),
    ).fetchone()
    if row is None:
        raise NotAuthenticated("there is no endpoint with this token, or not any more")
    endpoint_id, tenant, merchant = row
    objects: dict[str, frozenset[str]] = {kind: frozenset() for kind in OBJECTS.values() if kind != MERCHANT}
    if merchant is not None:
        objects[MERCHANT] = frozenset({str(merchant)})
    scopes = frozenset({RECEIVER_SCOPE})
    return Principal(str(endpoint_id), "program", str(tenant), scopes, objects, f"endpoint:{endpoint_id}")
