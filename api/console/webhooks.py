"""Who is told of decisions outside, and what becomes of each delivery: `millrace webhooks` as pages."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from api.console import site
from api.console.actions import Acting, needs
from infra import deliveries
from infra.deliveries import STATUSES, EndpointError
from infra.moments import MomentError, moment_or_offset

router: APIRouter = site.router()

SHOWN = 100
Endpoint = Annotated[str, Path(pattern=r"^ep_[0-9a-f]{1,40}$")]
SAID = {
    "enabled": "It goes on where it stopped.",
    "disabled": "Nothing is sent to it; what is decided meanwhile waits for it.",
    "test": "A test message is queued; it stands among the deliveries.",
    "none": "Nothing of what it is told was in that range.",
}


@router.get("/webhooks", dependencies=[needs("ops:read", "webhooks.list")])
async def list_(request: Request) -> Response:
    console = site.console(request)

    def find() -> list[dict[str, Any]]:
        with console.database() as connection:
            return deliveries.listed(connection)

    found = await console.apart(find)
    request.state.rows = len(found)
    return site.page(request, "webhooks.html", active="webhooks", endpoints=found, state=state)


@router.get("/webhooks/{id}", dependencies=[needs("ops:read", "webhooks.deliveries")])
async def show(
    request: Request,
    id: Endpoint,
    status: Annotated[str, Query(max_length=20)] = "",
    said: Annotated[str, Query(max_length=20)] = "",
) -> Response:
    console = site.console(request)
    if status and status not in STATUSES:
        raise EndpointError(f"there is no status {status!r}; choose {', '.join(STATUSES)}")

    def find() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with console.database() as connection:
            found = deliveries.deliveries(connection, id, SHOWN, status or None)
            return next(e for e in deliveries.listed(connection) if e["endpoint_id"] == id), found

    endpoint, found = await console.apart(find)
    request.state.rows = len(found)
    queued = f"{said} queued once more, behind what waits already." if said.isdecimal() else None
    return site.page(
        request,
        "webhook.html",
        active="webhooks",
        endpoint=endpoint,
        deliveries=found,
        only=status,
        statuses=STATUSES,
        said=queued or SAID.get(said),
        state=state,
        most=SHOWN,
    )


@router.post("/webhooks/{id}/replay", dependencies=[needs("ops:write", "webhooks.replay")])
async def replay(request: Request, id: Endpoint, actor: Acting) -> Response:
    """Send what was told in a range once more: one delivery by its cursor, or from a time on."""
    console = site.console(request)
    form = site.texts(await request.form())
    first, last = form.get("first", "").strip(), form.get("last", "").strip()
    if not first:
        raise MomentError("say from where on: a cursor, or a time such as 2h")
    request.state.object = f"{id} from {first}" + (f" to {last}" if last else "")

    def act() -> int:
        start, end = moment_or_offset(first), moment_or_offset(last) if last else None
        with console.database(reading=False) as connection:
            return deliveries.replay(connection, id, start, end)

    queued = await console.apart(act)
    return site.to(f"/console/webhooks/{id}?said={queued or 'none'}")


@router.post("/webhooks/{id}/test", dependencies=[needs("ops:write", "webhooks.test")])
async def test(request: Request, id: Endpoint) -> Response:
    """Queue a test message."""
    console = site.console(request)

    def act() -> None:
        with console.database(reading=False) as connection:
            deliveries.send_test(connection, id)

    await console.apart(act)
    return site.to(f"/console/webhooks/{id}?said=test")


@router.post("/webhooks/{id}/enable", dependencies=[needs("ops:write", "webhooks.enable")])
async def enable(request: Request, id: Endpoint) -> Response:
    console = site.console(request)

    def act() -> None:
        with console.database(reading=False) as connection:
            deliveries.enable(connection, id)

    await console.apart(act)
    return site.to(f"/console/webhooks/{id}?said=enabled")


@router.post("/webhooks/{id}/disable", dependencies=[needs("ops:write", "webhooks.disable")])
async def disable(request: Request, id: Endpoint, actor: Acting) -> Response:
    console = site.console(request)
    reason = site.texts(await request.form()).get("reason", "").strip()[:300]

    def act() -> None:
        with console.database(reading=False) as connection:
            deliveries.disable(connection, id, reason or f"by {actor.subject}")

    await console.apart(act)
    return site.to(f"/console/webhooks/{id}?said=disabled")


def state(status: str) -> str:
    """The sign that goes with the standing of an endpoint or of a delivery."""
    return {"active": "good", "delivered": "good", "pending": "late", "disabled": "bad"}.get(
        status, "unknown"
    )
