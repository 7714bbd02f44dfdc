"""What a receiver of webhooks may have missed: its events in order, by cursor, with its own token."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, Field

from api.database import database
from infra.outward import LEDGER_COLUMNS, LEDGER_JOIN, message
from infra.problems import Problem

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

Pool = Annotated[asyncpg.Pool, Depends(database)]

_ENDPOINT = "SELECT token_sha256 FROM outward_endpoints WHERE endpoint_id = $1 AND kind = 'webhook'"
_EVENTS = f"""
SELECT o.sequence, o.created_at AS made_at,
       outward_message_id(o.tenant, o.event_id, o.occurred_at) AS message_id, {LEDGER_COLUMNS}
FROM outward_endpoints e JOIN outbox o
  ON o.tenant = e.tenant AND (e.merchant_id IS NULL OR o.merchant_id = e.merchant_id)
 AND o.decision = ANY(e.decisions) AND o.risk >= e.risk_min AND o.sequence > e.since_sequence
JOIN {LEDGER_JOIN}
WHERE e.endpoint_id = $1 AND o.sequence > $2 ORDER BY o.sequence LIMIT $3
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


@router.get("/{endpoint_id}/events")
async def events(
    endpoint_id: str,
    pool: Pool,
    after: Annotated[int, Query(ge=0, description="The last cursor that was seen; 0 for the beginning.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    authorization: Annotated[str, Header(description="`Bearer whev_…`, given with the endpoint.")] = "",
) -> MissedPage:
    """All of an endpoint's events, delivered or not, as far back as they are kept."""
    known = await pool.fetchval(_ENDPOINT, endpoint_id)
    scheme, _, token = authorization.partition(" ")
    given = hashlib.sha256(token.strip().encode()).digest()
    # One answer for a wrong token and for no such endpoint: ids are not to be tried.
    if scheme.lower() != "bearer" or not hmac.compare_digest(bytes(known or b""), given):
        raise Problem(
            401,
            "Not this endpoint's token",
            "Send the token that came with the endpoint as `Authorization: Bearer whev_…`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    rows = await pool.fetch(_EVENTS, endpoint_id, after, limit + 1)
    items = [
        Missed(id=row["message_id"], cursor=row["sequence"], **message(dict(row), row["made_at"]))
        for row in rows[:limit]
    ]
    return MissedPage(items=items, next=items[-1].cursor if items else after, more=len(rows) > limit)
