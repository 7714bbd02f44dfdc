"""Who may do what in the console: the one seam that every page, stream and action passes."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request

from api.console import session
from infra.audit.entry import Details
from infra.audit.log import AuditAway, AuditLog
from infra.hardening import admit
from infra.identity import secured
from infra.identity.principal import Principal
from infra.identity.secured import DECLARED
from infra.limits.web import address_of
from infra.problems import Problem
from infra.settings import Settings
from schemas.roles import HOME_TENANT

SAFE = frozenset({"GET", "HEAD"})
ASKED_AGAIN_S = 5.0
"""How long a stream goes on without asking again whether its watcher still may."""


SIGNED_IN = "signed-in"
"""In the place of a scope: what every person may do for themselves, in a session of theirs."""


async def oneself(request: Request, name: str) -> Principal:
    """Whoever is signed in, for what concerns them alone; whatever they are granted, and of any tenant.

    Raises as `action`; 403 for a program, which has no session.
    """
    refuse_foreign(request)
    principal = await session.principal(request)
    request.state.seen = principal
    if request.method not in SAFE:
        request.state.action = name
    await admit(request, principal, SIGNED_IN)
    if not session.is_of(request, principal):
        raise Problem(403, "Not for programs", "This is for people who are signed in; send no key or token.")
    if request.method not in SAFE:
        _begins(request, principal, name)
    return principal


async def action(request: Request, scope: str, name: str) -> Principal:
    """Who acts, if they may: `scope` as `ops:write`, `name` as `dlq.redrive`, which the audit log is told.

    What changes something is told before it is done, and how it ended afterwards.
    Raises `session.SignInFirst`; `Problem`: 403, 429, or 503 where nobody can tell who they are.
    """
    refuse_foreign(request)
    principal = await session.principal(request)
    request.state.seen = principal  # whose navigation a page shows, also one that says no
    if request.method not in SAFE:
        request.state.action = name
    if request.path_params:
        request.state.object = "/".join(str(value) for value in request.path_params.values())
    await admit(request, principal, scope)
    if not principal.may(scope):
        raise Problem(
            403,
            "Not allowed",
            f"{name} needs the scope {scope}, which you have not been granted; who manages users grants it.",
        )
    if not runs_the_instance(principal):
        raise Problem(
            403,
            "Not of this instance",
            f"The console shows what all tenants have. It is for subjects of the tenant {HOME_TENANT!r} who"
            " are not held to single objects; yours is read by /v1.",
        )
    request.state.needed = scope
    if request.method not in SAFE:
        _begins(request, principal, name)
    return principal


def runs_the_instance(principal: Principal) -> bool:
    """Whether they may see what all tenants have: of the home tenant, and held to no objects (ADR 52)."""
    return principal.tenant == HOME_TENANT and not principal.objects


def may(principal: Principal | None, scope: str) -> bool:
    """Whether a page is to offer them what needs this scope."""
    return principal is not None and principal.may(scope) and runs_the_instance(principal)


def needs(scope: str, name: str) -> Any:
    """The dependency of a route that does `name`, for its `dependencies`: asked before anything else."""

    async def authorised(request: Request) -> None:
        request.state.principal = await action(request, scope, name)

    setattr(authorised, DECLARED, scope)
    return Depends(authorised)


def needs_oneself(name: str) -> Any:
    """As `needs`, for a route that everybody who is signed in may use."""

    async def authorised(request: Request) -> None:
        request.state.principal = await oneself(request, name)

    setattr(authorised, DECLARED, SIGNED_IN)
    return Depends(authorised)


Acting = Annotated[Principal, Depends(secured.principal)]
"""Who acts, on a route that `needs` something."""


class Watch:
    """Whether whoever opened a stream may still see it: asked again and again while it stays open."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._asked_s = time.monotonic()

    async def over(self) -> bool:
        """Whether it is to end: the proof has expired, or what was granted was taken away."""
        if time.monotonic() - self._asked_s < ASKED_AGAIN_S:
            return False
        self._asked_s = time.monotonic()
        try:
            now = await session.again(self._request)
        except Problem as problem:
            return problem.status_code == 401  # where nobody can tell now, it goes on
        return not may(now, self._request.state.needed)


def refuse_foreign(request: Request) -> None:
    """Refuse what comes by a name that is not ours; and what changes something, from another site's page.

    Raises `Problem`.
    """
    settings: Settings = request.app.state.settings
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if host not in settings.text("console_hosts").lower().split():
        raise Problem(
            421,
            "Not by this name",
            "The console does not answer by this name; whoever runs the instance adds it to"
            " MILLRACE_CONSOLE_HOSTS.",
        )
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not ours or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(403, "Another site asks", "A page of another site sent this; nothing was done.")


def _begins(request: Request, principal: Principal, name: str) -> None:
    """Tell what is to be done: what the log cannot tell of is not done."""
    audit: AuditLog = request.app.state.audit
    told: Details = {"begins": True, "address": address_of(request.scope)}
    try:
        audit.record(principal, name, f"{request.method} {request.url.path}", "done", told, must=True)
    except AuditAway:
        raise Problem(
            503,
            "Audit log is away",
            "What you ask for is done only where the audit log can tell of it; try again later.",
            headers={"Retry-After": "10"},
        ) from None
