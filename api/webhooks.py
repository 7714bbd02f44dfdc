"""What a receiver of webhooks may have missed: its events in order, by cursor, with its own token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from api.database import Rows, rows
from infra.identity.secured import SecuredRouter
from infra.outward import LEDGER_COLUMNS, LEDGER_JOIN, message
from infra.problems import Problem
from schemas.roles import RECEIVER_SCOPE

router = SecuredRouter(prefix="/v1/webhooks", tags=["webhooks"])

Database = Annotated[Rows, Depends(rows)]

_EVENTS = f"""
SELECT o.sequence, o.created_at AS made_at,
       outward_message_id(o.tenant, o.event_id, o.occurred_at) AS message_id, {LEDGER_COLUMNS}
FROM outward_endpoints e JOIN outbox o
  ON o.tenant = e.tenant AND (e.merchant_id IS NULL OR o.merchant_id = e.merchant_id)
 AND o.decision = ANY(e.decisions) AND o.risk >= e.risk_min AND o.sequence > e.since_sequence
JOIN {LEDGER_JOIN}
WHERE e.tenant = $1 AND ($2::text[] IS NULL OR e.merchant_id = ANY($2)) AND e.endpoint_id = $3
  AND o.sequence > $4
ORDER BY o.sequence LIMIT $5
"""  # noqa: S608 -- declared names


class Missed(BaseModel):
    """An event as its webhook carries it. `id` is its `webhook-id`."""

    id: str
    cursor: int = Field(description="Give it as `after` to have what comes behind this event.")
    type: str
    timestamp: str
    data: dict[str, Any]


class MissedPage(BaseModel):
    """Events in the order in which they were decided for the outside."""

    items: list[Missed]
    next: int = Field(description="The cursor to go on from; unchanged where there was nothing more.")
    more: bool


@router.get("/{endpoint_id}/events", scope=RECEIVER_SCOPE)
async def missed_events(
    endpoint_id: str,
    database: Database,
    after: Annotated[int, Query(ge=0, description="The last cursor that was seen; 0 for the beginning.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> MissedPage:
    """All of an endpoint's events, delivered or not, as far back as they are kept. With its own token."""
    # One answer for another's endpoint and for none of that id: ids are not to be tried.
    if endpoint_id != database.principal.subject:
        raise Problem(404, "No such endpoint", "Ask for the events of the endpoint whose token you send.")
    found = await database.fetch(
        _EVENTS, database.tenant, database.sees("merchant"), endpoint_id, after, limit + 1
    )
    items = [
        Missed(id=row["message_id"], cursor=row["sequence"], **message(dict(row), row["made_at"]))
        for row in found[:limit]
    ]
    return MissedPage(items=items, next=items[-1].cursor if items else after, more=len(found) > limit)
