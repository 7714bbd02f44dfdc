"""The lists that rules ask: entries put in, for ever or until an event time, and taken out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import Acting, needs
from infra.moments import moment
from models.rules import store
from models.rules.problem import RuleError
from models.rules.store import NAME, NAME_MAX

router: APIRouter = site.router()

SHOWN = 500
Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$", max_length=NAME_MAX)]


@router.get("/rule-lists", dependencies=[needs("scoring:read", "lists.show")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def find() -> dict[str, list[tuple[str, datetime | None]]]:
        with console.database() as connection:
            return store.read_lists(connection)

    found = await console.apart(find)
    request.state.rows = sum(map(len, found.values()))
    return site.page(request, "rule_lists.html", active="rules", lists=found, most=SHOWN)


# Values may be card numbers: the audit log is told the list alone, as `millrace lists` does.
@router.post("/rule-lists", dependencies=[needs("scoring:write", "lists.add")])
async def add(request: Request, actor: Acting) -> Response:
    """Put values into a list, which is made by its first one."""
    console = site.console(request)
    form = site.texts(await request.form())
    request.state.object = name = form.get("name", "").strip()
    values = list(dict.fromkeys(line.strip() for line in form.get("values", "").splitlines() if line.strip()))
    until = moment(form["until"].strip()) if form.get("until", "").strip() else None
    if not values:
        raise RuleError("no values were given; write one a line")

    def act() -> None:
        with console.database(reading=False) as connection:
            store.put_in_list(connection, name, values, actor.subject, until)

    await console.apart(act)
    return site.to("/console/rule-lists")


@router.post("/rule-lists/{name}/remove", dependencies=[needs("scoring:write", "lists.remove")])
async def remove(request: Request, name: Name, actor: Acting) -> Response:
    """Take chosen values out of a list."""
    console = site.console(request)
    values = [value for value in (await request.form()).getlist("value") if isinstance(value, str)]
    if not values:
        raise RuleError("choose values of the list first")

    def act() -> None:
        with console.database(reading=False) as connection:
            store.take_from_list(connection, name, values, actor.subject)

    await console.apart(act)
    return site.to("/console/rule-lists")
