"""Telemetry over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Discriminator, Field, Tag

from connectors.fleet.telemetry import CheckedTelemetry
from connectors.identity import new_event_id
from connectors.publish import Accepted, Publisher, publisher
from schemas.fleet import TRUCK_TELEMETRY

router = APIRouter(prefix="/v1", tags=["fleet"])

MOST_FIXES = 1_000


def _form(body: Any) -> str:
    return "fixes" if isinstance(body, list) else "fix"


Fixes = Annotated[list[CheckedTelemetry], Field(min_length=1, max_length=MOST_FIXES)]
Body = Annotated[
    Annotated[CheckedTelemetry, Tag("fix")] | Annotated[Fixes, Tag("fixes")], Discriminator(_form)
]


@router.post(
    "/telemetry",
    status_code=202,
    summary="Fixes of trucks: one, or a list of up to 1,000",
    description="A list is answered with a list, in its order; none of it is sent unless all of it is valid.",
)
async def telemetry(
    body: Body, publisher: Annotated[Publisher, Depends(publisher)]
) -> Accepted | list[Accepted]:
    fixes = body if isinstance(body, list) else [body]
    events = [fix.event(event_id=new_event_id(), tenant="default", truck_id=fix.truck_id) for fix in fixes]
    receipts = await publisher.publish_many(TRUCK_TELEMETRY, events)
    accepted = [
        Accepted.of(event["event_id"], receipt) for event, receipt in zip(events, receipts, strict=True)
    ]
    return accepted if isinstance(body, list) else accepted[0]
