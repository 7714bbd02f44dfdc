"""Who may do what in the console: the one seam that every page, stream and action passes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request

from infra.dlq.letters import operator
from infra.problems import Problem

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
DECLARED = "x-millrace-scope"
"""Where a dependency says which scope its route needs, for whoever walks the routes."""
SAFE = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. `subject` is what audits call them."""

    subject: str


async def action(request: Request, scope: str, name: str) -> Actor:
    """Who acts, if they may: `scope` as `ops:write`, `name` as `dlq.redrive`. Raises `Problem`.

    Until requests carry tokens, it is whoever sits at this machine, and nobody else gets in.
    """
    _refuse_others(request)
    if request.method not in SAFE:
        _refuse_foreign_pages(request)
    return Actor(operator())


def needs(scope: str, name: str) -> Any:
    """The dependency of a route that does `name`, for its `dependencies`: asked before anything else."""

    async def authorised(request: Request) -> None:
        request.state.actor = await action(request, scope, name)

    setattr(authorised, DECLARED, scope)
    return Depends(authorised)


async def _actor(request: Request) -> Actor:
    found = request.state.actor
    assert isinstance(found, Actor)
    return found


Acting = Annotated[Actor, Depends(_actor)]
"""Who acts, on a route that `needs` something."""


def _refuse_others(request: Request) -> None:
    peer = request.client.host if request.client else ""
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    forwarded = any(name in request.headers for name in FORWARDED)
    # The name too: a page elsewhere may have its own name resolve to this machine.
    if not (_loopback(peer) and (host == "localhost" or _loopback(host))) or forwarded:
        raise Problem(
            403,
            "Only from this machine",
            "The console answers on the machine that it runs on alone; open it there, or through"
            " `ssh -L` to its port.",
        )


def _refuse_foreign_pages(request: Request) -> None:
    """A form of another site, sent by an operator's browser, must change nothing here."""
    origin = request.headers.get("origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not ours or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(403, "Another site asks", "A page of another site sent this; nothing was done.")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
