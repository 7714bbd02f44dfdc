"""Cards: their transactions, their balance and their profile, from the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from fastapi import Depends, FastAPI, Query
from pydantic import AwareDatetime, BaseModel, Field
from starlette.requests import HTTPConnection

from api.database import Rows, rows
from api.paging import Cursor, Limit, Page, decode_cursor, encode_cursor
from api.settled import Settling, sinks
from infra.identity.secured import SecuredRouter
from infra.problems import Problem
from infra.quick_redis import QuickRedis, RedisAway
from schemas.fraud import CARD_DECISIONS, PIPELINE

PROFILE_S = 60
"""A remembered profile is gone after so long, also where nothing has changed."""
MOST_NAMED = 10
"""Merchants, countries and categories that a profile names, the most frequent ones."""

Database = Annotated[Rows, Depends(rows)]
Sinks = Annotated[Settling, Depends(sinks)]
Answer = Literal["APPROVE", "REVIEW", "DECLINE"]
Text = Annotated[str | None, Query(max_length=128)]

_OWN = "tenant = $1 AND ($2::text[] IS NULL OR merchant_id = ANY($2)) AND card_id = $3"
_TRANSACTIONS = f"""
SELECT event_id, occurred_at, card_id, amount_minor, currency, customer_id, merchant_id, terminal_id, country,
       mcc, channel, decision, risk, reasons
FROM card_ledger
WHERE {_OWN}
  AND ($4::text IS NULL OR decision = $4)
  AND ($5::text IS NULL OR merchant_id = $5)
  AND ($6::text IS NULL OR country = $6)
  AND ($7::text IS NULL OR currency = $7)
  AND ($8::text IS NULL OR channel = $8)
  AND ($9::bigint IS NULL OR amount_minor >= $9)
  AND ($10::bigint IS NULL OR amount_minor < $10)
  AND ($11::timestamptz IS NULL OR occurred_at >= $11)
  AND ($12::timestamptz IS NULL OR occurred_at < $12)
  AND ($13::timestamptz IS NULL OR (occurred_at, event_id) < ($13, $14))
ORDER BY occurred_at DESC, event_id DESC LIMIT $15
"""  # noqa: S608 -- no value of a request is part of it
_BALANCE = f"""
SELECT currency,
       coalesce(sum(amount_minor) FILTER (WHERE decision = 'APPROVE'), 0)::bigint AS spent_minor,
       coalesce(sum(amount_minor) FILTER (WHERE decision = 'REVIEW'), 0)::bigint AS held_minor,
       coalesce(sum(amount_minor) FILTER (WHERE decision = 'DECLINE'), 0)::bigint AS declined_minor,
       count(*) AS transactions
FROM card_ledger
WHERE {_OWN} AND ($4::timestamptz IS NULL OR occurred_at <= $4)
GROUP BY currency ORDER BY currency
"""  # noqa: S608 -- likewise
_PROFILE = f"""
SELECT grouping(merchant_id, country, mcc, channel, hour, currency) AS of,
       merchant_id, country, mcc, channel, hour, currency,
       count(*) AS transactions, count(*) FILTER (WHERE decision = 'REVIEW') AS reviewed,
       count(*) FILTER (WHERE decision = 'DECLINE') AS declined,
       min(occurred_at) AS first_at, max(occurred_at) AS last_at,
       sum(amount_minor)::bigint AS sum_minor, max(amount_minor) AS max_minor,
       min(source_partition) AS partition
FROM (SELECT *, extract(hour FROM occurred_at AT TIME ZONE 'UTC')::int AS hour
      FROM card_ledger WHERE {_OWN}) AS own
GROUP BY GROUPING SETS ((), (merchant_id), (country), (mcc), (channel), (hour), (currency))
ORDER BY transactions DESC, merchant_id, country, mcc, channel, hour, currency
"""  # noqa: S608 -- likewise
_OF = {63 - (32 >> n): name for n, name in enumerate(("merchants", "countries", "mccs", "channels", "hours"))}
_COLUMN = {
    "merchants": "merchant_id",
    "countries": "country",
    "mccs": "mcc",
    "channels": "channel",
    "hours": "hour",
}
_WHOLE, _CURRENCY = 63, 62


class CardTransaction(BaseModel):
    """A use of the card, and how it was decided. Money in minor units of `currency`."""

    event_id: str
    occurred_at: datetime
    card_id: str
    amount_minor: int
    currency: str
    customer_id: str | None
    merchant_id: str | None
    terminal_id: str | None
    country: str | None
    mcc: str | None
    channel: str
    decision: Answer
    risk: float
    reasons: list[str]


class CurrencyBalance(BaseModel):
    """What a card has used in one currency. It has as many of these as it was used in."""

    currency: str
    spent_minor: int = Field(description="Sum of the approved transactions.")
    held_minor: int = Field(description="Sum of those that are for review: neither spent nor free.")
    declined_minor: int = Field(description="Sum of those that were declined; part of neither.")
    transactions: int = Field(description="How many there are, whatever was decided.")


class Balance(BaseModel):
    """Sums over all of a card's transactions that the ledger holds and the asker may see."""

    card_id: str
    at: datetime | None = Field(description="Up to and including this event time; null for all.")
    currencies: list[CurrencyBalance]


class Amounts(BaseModel):
    """A card's amounts in one currency, in minor units."""

    currency: str
    transactions: int
    sum_minor: int
    max_minor: int


class Profile(BaseModel):
    """How a card is used: all of its transactions that the ledger holds and the asker may see."""

    card_id: str
    transactions: int
    reviewed: int
    declined: int
    first_at: datetime
    last_at: datetime
    amounts: list[Amounts]
    merchants: dict[str, int] = Field(description=f"The {MOST_NAMED} most frequent ones, with how often.")
    countries: dict[str, int]
    mccs: dict[str, int]
    channels: dict[str, int]
    hours: dict[str, int] = Field(description="Hours of the day, UTC, with how often.")


@asynccontextmanager
async def remembering(app: FastAPI) -> AsyncIterator[None]:
    """Give `app` the Redis that profiles are remembered in."""
    app.state.profiles = QuickRedis(app.state.settings.redis_url)
    try:
        yield
    finally:
        await app.state.profiles.close()


async def _profiles(connection: HTTPConnection) -> QuickRedis:
    found = connection.app.state.profiles
    assert isinstance(found, QuickRedis)
    return found


router = SecuredRouter(prefix="/cards", tags=["fraud"], lifespan=remembering)


@router.get("/{card_id}/transactions", scope="fraud:read")
async def transactions(
    card_id: str,
    database: Database,
    sinks: Sinks,
    decision: Annotated[Answer | None, Query(description="Only these.")] = None,
    merchant_id: Text = None,
    country: Text = None,
    currency: Text = None,
    channel: Text = None,
    amount_from: Annotated[int | None, Query(ge=0, le=10**12, description="In minor units.")] = None,
    amount_to: Annotated[int | None, Query(ge=0, le=10**12, description="Below this.")] = None,
    since: Annotated[
        AwareDatetime | None, Query(alias="from", description="From this event time on.")
    ] = None,
    until: Annotated[AwareDatetime | None, Query(alias="to", description="Before this event time.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[CardTransaction]:
    """A card's transactions, newest event time first; the first page has all that was answered,
    unless `to` bounds it."""
    after: tuple[datetime | None, str | None] = (None, None)
    if cursor is not None:
        at, event_id = decode_cursor(cursor, datetime, str)
        after = (at, event_id)
    elif until is None:
        await sinks.settled(database, CARD_DECISIONS, PIPELINE.sink_name)
    wanted = (decision, merchant_id, country, currency, channel, amount_from, amount_to, since, until)
    found = await database.fetch(_TRANSACTIONS, *_own(database, card_id), *wanted, *after, limit + 1)
    items = [CardTransaction(**dict(row)) for row in found[:limit]]
    more = len(found) > limit
    return Page(
        items=items,
        next_cursor=encode_cursor(items[-1].occurred_at, items[-1].event_id) if more else None,
    )


@router.get("/{card_id}/balance", scope="fraud:read", tagged=True)
async def balance(
    card_id: str,
    database: Database,
    sinks: Sinks,
    at: Annotated[AwareDatetime | None, Query(description="Up to and including this event time.")] = None,
) -> Balance:
    """What a card has spent and what is held for review, by currency, with all that was answered."""
    await sinks.settled(database, CARD_DECISIONS, PIPELINE.sink_name)
    found = await database.fetch(_BALANCE, *_own(database, card_id), at)
    if not found:
        raise _unknown(card_id)
    return Balance(card_id=card_id, at=at, currencies=[CurrencyBalance(**dict(row)) for row in found])


@router.get("/{card_id}/profile", scope="fraud:read", tagged=True)
async def profile(
    card_id: str, database: Database, sinks: Sinks, redis: Annotated[QuickRedis, Depends(_profiles)]
) -> Profile:
    """How a card is used. It is remembered only while its partition's position stands: never an old one."""
    await sinks.settled(database, CARD_DECISIONS, PIPELINE.sink_name)
    own = _own(database, card_id)
    # Read before the rows: what is stored in between then counts as news.
    positions = await sinks.stored(database, CARD_DECISIONS, PIPELINE.sink_name)
    name = f"millrace:profile:{hashlib.sha256(orjson.dumps(own)).hexdigest()}"
    remembered = await _remembered(redis, name, positions)
    if remembered is not None:
        return remembered
    groups = await database.fetch(_PROFILE, *own)
    whole = next(row for row in groups if row["of"] == _WHOLE)
    if not whole["transactions"]:
        raise _unknown(card_id)
    counts: dict[str, dict[str, int]] = {kind: {} for kind in _COLUMN}
    for row in groups:
        kind = _OF.get(row["of"], "")
        name_of = row[_COLUMN[kind]] if kind else None
        if name_of is not None and len(counts[kind]) < (24 if kind == "hours" else MOST_NAMED):
            counts[kind][str(name_of)] = row["transactions"]
    amounts = [{n: row[n] for n in Amounts.model_fields} for row in groups if row["of"] == _CURRENCY]
    totals = {n: whole[n] for n in ("transactions", "reviewed", "declined", "first_at", "last_at")}
    made = Profile.model_validate({"card_id": card_id, "amounts": amounts, **totals, **counts})
    if whole["partition"] in positions:
        await _remember(redis, name, whole["partition"], positions[whole["partition"]], made)
    return made


async def _remembered(redis: QuickRedis, name: str, positions: Mapping[int, int]) -> Profile | None:
    try:
        found: Any = await redis.ask("GET", name)
    except RedisAway:
        return None
    if found is None:
        return None
    partition, position, text = orjson.loads(found)
    return Profile.model_validate_json(text) if positions.get(partition) == position else None


async def _remember(redis: QuickRedis, name: str, partition: int, position: int, made: Profile) -> None:
    value = orjson.dumps([partition, position, made.model_dump_json()])
    try:
        await redis.ask("SET", name, value, "EX", PROFILE_S)
    except RedisAway:
        pass  # the ledger is asked again


def _own(database: Rows, card_id: str) -> tuple[str, list[str] | None, str]:
    return database.tenant, database.sees("merchant"), card_id


def _unknown(card_id: str) -> Problem:
    return Problem(404, "No such card", f"The ledger holds no transaction of card {card_id!r} that is yours.")
