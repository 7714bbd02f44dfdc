"""Signing in and out: the only pages that nobody needs to be known for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import actions, session, site
from infra.identity.oauth import Refused, form_of
from infra.problems import Problem

router: APIRouter = site.router()

SAID = {
    "ended": "Your session has ended; what was sent was not done. Sign in, and send it again.",
    "out": "You are signed out.",
}

Next = Annotated[str, Query(max_length=2000)]


@router.get("/sign-in")
async def form(
    request: Request, next: Next = "", said: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    actions.refuse_foreign(request)
    return _form(request, next=next, said=SAID.get(said))


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """A name and a password for a session; then on to the page that was asked for."""
    actions.refuse_foreign(request)
    try:
        given = await form_of(request)
        name, wanted = given.get("username", "").strip(), given.get("next", "")
        request.state.claimed = name[:64]
        if not name or "password" not in given:
            return _form(request, 422, next=wanted, name=name, wrong="Give a name and a password.")
    except Refused as refused:
        raise Problem(refused.status, "Not signed in", refused.description) from None
    try:
        principal = await session.begin(request, name, given["password"])
    except Refused as refused:
        if refused.error != "invalid_grant":
            raise _not_now(refused) from None
        return _form(request, 401, next=wanted, name=name, wrong=refused.description)
    request.state.asking = principal
    pages = site.pages_of(principal)
    return site.to(session.safe(wanted) or (pages[0].path if pages else "/console/account"))


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    actions.refuse_foreign(request)
    request.state.action = "logout"
    try:
        await session.end(request)
    except Refused as refused:
        raise _not_now(refused) from None
    answer = site.to("/console/sign-in?said=out")
    session.forget(request, answer)
    return answer


def _form(
    request: Request,
    status: int = 200,
    *,
    next: str,
    name: str = "",
    said: str | None = None,
    wrong: str | None = None,
) -> Response:
    return site.page(
        request,
        "sign_in.html",
        status,
        active=None,
        next=session.safe(next) or "",
        name=name,
        said=said,
        wrong=wrong,
    )


def _not_now(refused: Refused) -> Problem:
    return Problem(refused.status, "Not now", refused.description, headers=refused.headers)
