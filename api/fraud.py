"""Decisions on card transactions, by transaction and by card."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, Field

from api import cards
from api.cards import Answer, Database, Sinks
from api.paging import Cursor, Limit, Page, decode_cursor, encode_cursor
from api.settled import settling
from infra.identity.secured import SecuredRouter
from infra.problems import Problem
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER, PIPELINE

router = SecuredRouter(prefix="/v1", tags=["fraud"], lifespan=settling)
router.include_router(cards.router)

_COLUMNS = ", ".join(CARD_LEDGER.columns)
_OWN = "tenant = $1 AND ($2::text[] IS NULL OR merchant_id = ANY($2))"
_ONE = f"SELECT {_COLUMNS} FROM card_ledger WHERE {_OWN} AND event_id = $3 ORDER BY occurred_at LIMIT 1"  # noqa: S608 -- declared names
_OF_CARD = f"""
SELECT {_COLUMNS} FROM card_ledger
WHERE {_OWN} AND card_id = $3
  AND ($4::text IS NULL OR decision = $4)
  AND ($5::timestamptz IS NULL OR occurred_at >= $5)
  AND ($6::timestamptz IS NULL OR occurred_at < $6)
  AND ($7::timestamptz IS NULL OR (occurred_at, event_id) < ($7, $8))
ORDER BY occurred_at DESC, event_id DESC LIMIT $9
"""  # noqa: S608 -- declared names


class Decision(BaseModel):
    """A decision, with all that it was made from. Money in minor units of `currency`."""

    event_id: str
    tenant: str
    occurred_at: datetime
    card_id: str
    amount_minor: int
    currency: str
    customer_id: str | None
    merchant_id: str | None
    terminal_id: str | None
    country: str | None
    home_country: str | None
    mcc: str | None
    channel: str
    count_10m: int | None
    sum_10m_minor: int | None
    count_1h: int = Field(description="Transactions of the card in the hour up to and including this one.")
    sum_1h_minor: int
    count_24h: int
    sum_24h_minor: int
    max_24h_minor: int | None
    merchants_24h: int | None
    count_7d: int
    sum_7d_minor: int
    max_7d_minor: int | None
    since_previous_ms: int | None
    late_ms: int = Field(description="How far it lay behind the card's newest transaction when decided.")
    windows_complete: bool
    rule_windows: list[int] = Field(
        description="Windows that rules name, in the order of the platform's list."
    )
    fraud_chance: float | None = Field(description="By the forest; null where the model has none.")
    model_risk: float
    risk: float = Field(description="0.0 to 1.0, model and rules together.")
    decision: Answer
    reasons: list[str]
    fired_rules: list[str] = Field(description="As id@version.")
    capped_rules: list[str] = Field(description="Of these, those that had used up what they may decline.")
    shadow_rules: list[str] = Field(description="Rules that held without effect: in shadow or in canary.")
    shadow_decision: str | None = Field(description="The decision had these been active; null without any.")
    rules_version: int
    model_version: int
    code_version: int


@router.get("/decisions/{event_id}", scope="fraud:read", tagged=True)
async def decision(event_id: str, database: Database, sinks: Sinks) -> Decision:
    """The decision on one transaction, from the moment on at which anybody was answered with it."""
    asked = (_ONE, database.tenant, database.sees("merchant"), event_id)
    row = await database.fetchrow(*asked)
    if row is None:
        await sinks.settled(database, CARD_DECISIONS, PIPELINE.sink_name)
        row = await database.fetchrow(*asked)
    if row is None:
        raise Problem(
            404,
            "No decision",
            f"There is no decision on {event_id!r}: it was not sent, is on its way, or is a dead letter.",
        )
    return Decision(**dict(row))


@router.get("/cards/{card_id}/decisions", scope="fraud:read")
async def decisions_of_card(
    card_id: str,
    database: Database,
    sinks: Sinks,
    decision: Annotated[Answer | None, Query(description="Only these.")] = None,
    since: Annotated[
        AwareDatetime | None, Query(alias="from", description="From this event time on.")
    ] = None,
    until: Annotated[AwareDatetime | None, Query(alias="to", description="Before this event time.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Decision]:
    """A card's decisions, newest event time first; the first page has all that was answered,
    unless `to` bounds it."""
    after: tuple[datetime | None, str | None] = (None, None)
    if cursor is not None:
        at, event_id = decode_cursor(cursor, datetime, str)
        after = (at, event_id)
    elif until is None:
        await sinks.settled(database, CARD_DECISIONS, PIPELINE.sink_name)
    own = (database.tenant, database.sees("merchant"))
    found = await database.fetch(_OF_CARD, *own, card_id, decision, since, until, *after, limit + 1)
    items = [Decision(**dict(row)) for row in found[:limit]]
    more = len(found) > limit
    return Page(
        items=items,
        next_cursor=encode_cursor(items[-1].occurred_at, items[-1].event_id) if more else None,
    )
