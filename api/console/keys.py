"""API keys: made, shown once, revoked. `millrace keys` as pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import needs
from api.console.users import GRANTS
from infra.identity import api_keys, subjects
from infra.identity.api_keys import ApiKey
from infra.identity.subjects import Subject, SubjectError

router: APIRouter = site.router()

DAYS = 90
Prefix = Annotated[str, Path(pattern=r"^[a-z0-9]{1,20}$")]


@router.get("/keys", dependencies=[needs("identity:read", "keys.list")])
async def list_(request: Request, said: Annotated[str, Query(max_length=40)] = "") -> Response:
    return await _page(request, said="The key is revoked; it opens nothing." if said == "revoked" else None)


@router.post("/keys", dependencies=[needs("identity:write", "keys.create")])
async def create(request: Request) -> Response:
    """Make a key, and show it, once."""
    console = site.console(request)
    form = await request.form()
    texts = site.texts(form)
    subject, name, days = (texts.get(n, "").strip() for n in ("subject", "name", "days"))
    if not days.isdecimal() or len(days) > 4:
        raise SubjectError(f"days is {days!r}; give a number of days")
    chosen = sorted({value for value in form.getlist("grant") if isinstance(value, str)})

    def make() -> str:
        with console.identities() as connection:
            grants = chosen or subjects.find(connection, subject).grants
            return api_keys.create(connection, subject, name, grants, int(days))

    made = await console.apart(make)
    request.state.object = f"{made.split('_')[1]} of {subject}"
    return await _page(request, made=made)


@router.post("/keys/{prefix}/revoke", dependencies=[needs("identity:write", "keys.revoke")])
async def revoke(request: Request, prefix: Prefix) -> Response:
    console = site.console(request)
    request.state.object = prefix

    def act() -> None:
        with console.identities() as connection:
            api_keys.revoke(connection, prefix)

    await console.apart(act)
    return site.to("/console/keys?said=revoked")


async def _page(request: Request, *, said: str | None = None, made: str = "") -> Response:
    console = site.console(request)

    def find() -> tuple[list[ApiKey], list[Subject]]:
        with console.identities() as connection:
            return api_keys.every(connection), subjects.everyone(connection)

    found, everyone = await console.apart(find)
    request.state.rows = len(found)
    return site.page(
        request,
        "keys.html",
        active="keys",
        keys=found,
        subjects=[s for s in everyone if s.disabled_at is None],
        grants=GRANTS,
        days=DAYS,
        now=datetime.now(UTC),
        said=said,
        made=made,
        api=console.settings.api_url,
    )
