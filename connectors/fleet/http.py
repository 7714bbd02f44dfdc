"""Telemetry over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends
from pydantic import Discriminator, Field, Tag

from connectors.fleet.telemetry import CheckedTelemetry
from connectors.identity import new_event_id
from connectors.ownership import require_object, tenant_of
from connectors.publish import Accepted, Publisher, publisher
from infra.identity import secured
from infra.identity.principal import Principal
from schemas.fleet import TRUCK_TELEMETRY

router = secured.SecuredRouter(prefix="/v1", tags=["fleet"])

MOST_FIXES = 1_000


def _form(body: Any) -> str:
    return "fixes" if isinstance(body, list) else "fix"


Fixes = Annotated[list[CheckedTelemetry], Field(min_length=1, max_length=MOST_FIXES)]
Body = Annotated[
    Annotated[CheckedTelemetry, Tag("fix")] | Annotated[Fixes, Tag("fixes")], Discriminator(_form)
]


@router.post(
    "/telemetry",
    scope="fleet:write",
    status_code=202,
    summary="Fixes of trucks: one, or a list of up to 1,000",
    description="A list is answered with a list, in its order; none of it is sent unless all of it is valid.",
)
async def telemetry(
    body: Body,
    publisher: Annotated[Publisher, Depends(publisher)],
    sender: Annotated[Principal, Depends(secured.principal)],
) -> Accepted | list[Accepted]:
    fixes = body if isinstance(body, list) else [body]
    events = []
    for fix in fixes:
        tenant = tenant_of(sender, fix.tenant)
        require_object(sender, "fleet", fix.fleet_id)
        events.append(fix.event(event_id=new_event_id(), tenant=tenant, truck_id=fix.truck_id))
    receipts = await publisher.publish_many(TRUCK_TELEMETRY, events)
    accepted = [
        Accepted.of(event["event_id"], receipt) for event, receipt in zip(events, receipts, strict=True)
    ]
    return accepted if isinstance(body, list) else accepted[0]
