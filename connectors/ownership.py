"""Whose an event is: its sender's tenant, and an object that the sender may speak for."""

from __future__ import annotations

from infra.identity.principal import Principal
from infra.identity.secured import require_tenant
from infra.problems import Problem
from schemas.roles import OBJECTS


def tenant_of(principal: Principal, given: str | None) -> str:
    """The tenant of an event. Raises `Problem` 403 where it names another than its sender's."""
    require_tenant(principal, given)
    return principal.tenant


def require_object(principal: Principal, domain: str, given: str | None) -> None:
    """Raises `Problem` 403 where an event is about an object (of its domain's kind) that is not the sender's.

    An event that names none is for senders who see all: nobody could tell whom it concerns.
    """
    kind = OBJECTS[domain]
    seen = principal.sees(kind)
    if seen is not None and given not in seen:
        raise Problem(
            403,
            "Not allowed",
            f"You may send events of certain {kind}s alone, and this is of none of them.",
            field=f"{kind}_id",
        )
