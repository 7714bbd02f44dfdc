"""One's own account: who one is here, and a new password. For everybody who is signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import session, site
from api.console.actions import Acting, needs_oneself
from api.console.users import only
from infra.identity import first, subjects
from infra.identity.oauth import Refused
from infra.identity.passwords import LENGTH_MIN, WeakPassword
from infra.identity.subjects import NotAuthenticated, Subject
from infra.problems import Problem

router: APIRouter = site.router()

SAID = {"changed": "The password is changed. Every other session of yours has ended."}


@router.get("/account", dependencies=[needs_oneself("account.show")])
async def show(request: Request, actor: Acting, said: Annotated[str, Query(max_length=20)] = "") -> Response:
    return await _page(request, actor.subject, said=SAID.get(said))


@router.post("/account/password", dependencies=[needs_oneself("users.password")])
async def password(request: Request, actor: Acting) -> Response:
    """Take a new password, from whoever knows the present one. All sessions end, and this one begins anew."""
    console = site.console(request)
    form = site.texts(await request.form())
    present, new = form.get("present", ""), form.get("new", "")
    request.state.object = actor.subject
    if new != form.get("again", ""):
        return await _page(request, actor.subject, wrong=("again", "is not the same; write it once more"))

    def change() -> tuple[str, str] | None:
        with console.identities() as connection:
            try:
                subjects.authenticate(connection, actor.subject, present, "person")
                subjects.change(connection, actor.subject, password=new)
            except NotAuthenticated:
                return "present", "is not your password, or too many wrong ones were given; try again later"
            except WeakPassword as error:
                return "new", str(error)
        first.forget_password(console.settings, actor.subject)
        return None

    wrong = await console.apart(change)
    if wrong is not None:
        return await _page(request, actor.subject, wrong=wrong)
    try:
        await session.begin(request, actor.subject, new)
    except Refused as refused:
        # It is changed all the same; whoever cannot be let in now signs in later.
        raise Problem(refused.status, "Not now", refused.description, headers=refused.headers) from None
    return site.to("/console/account?said=changed")


async def _page(
    request: Request, name: str, *, said: str | None = None, wrong: tuple[str, str] | None = None
) -> Response:
    console = site.console(request)

    def find() -> Subject:
        with console.identities() as connection:
            return subjects.find(connection, name)

    return site.page(
        request,
        "account.html",
        422 if wrong else 200,
        active=None,
        subject=await console.apart(find),
        only=only,
        said=said,
        wrong=dict([wrong]) if wrong else {},
        shortest=LENGTH_MIN,
    )
