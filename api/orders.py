"""Orders with their lines and status, and stock by SKU."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, Path, Query
from pydantic import BaseModel, Field

from api.database import Rows, rows
from api.paging import Cursor, Limit, Page, decode_cursor, encode_cursor
from infra.identity.secured import SecuredRouter
from infra.problems import Problem
from schemas.orders.limits import IDENTIFIER

router = SecuredRouter(prefix="/v1", tags=["orders"])

Database = Annotated[Rows, Depends(rows)]
Id = Annotated[str, Path(pattern=IDENTIFIER)]
Status = Literal[
    "PENDING",
    "CONFIRMED",
    "REJECTING",
    "REJECTED",
    "CANCELLING",
    "CANCELLED",
    "RETURNING",
    "RETURNED",
]
LineState = Literal[
    "waiting", "asked", "held", "rejected", "releasing", "released", "restocking", "restocked"
]

_ORDER = (
    "tenant, order_id, status, reason, customer_id, currency, total_minor, placed_at, updated_at, version"
)
# One statement: order and lines are then of one moment.
_ONE = f"""
SELECT {", ".join("o." + c for c in _ORDER.split(", "))}, l.sku, l.quantity, l.amount_minor, l.state
FROM orders o LEFT JOIN order_lines l USING (tenant, order_id)
WHERE o.tenant = $1 AND ($2::text[] IS NULL OR o.customer_id = ANY($2)) AND o.order_id = $3
ORDER BY l.sku COLLATE "C"
"""  # noqa: S608 -- names of our own
_HISTORY = """
SELECT version, occurred_at, input_id, input_kind, outcome, status, reason
FROM order_status_log
WHERE tenant = $1 AND ($2::text[] IS NULL OR customer_id = ANY($2)) AND order_id = $3 AND version > $4
ORDER BY version LIMIT $5
"""
_OF_CUSTOMER = f"""
SELECT {_ORDER} FROM orders
WHERE tenant = $1 AND ($2::text[] IS NULL OR customer_id = ANY($2)) AND customer_id = $3
  AND ($4::text IS NULL OR status = $4)
  AND ($5::timestamptz IS NULL OR (placed_at, order_id) < ($5, $6))
ORDER BY placed_at DESC, order_id DESC LIMIT $7
"""  # noqa: S608 -- names of our own
_STOCK = "SELECT sku, on_hand, reserved, on_hand - reserved AS available, version, updated_at FROM"
# Stock is nobody's in particular: it is for those who see all customers.
_OF_SKU = f"{_STOCK} stock WHERE tenant = $1 AND $2::text[] IS NULL AND sku = $3"
_ALL_STOCK = f"""
{_STOCK} stock WHERE tenant = $1 AND $2::text[] IS NULL AND ($3::text IS NULL OR sku > $3)
  AND (NOT $4 OR (on_hand - reserved) * 10 <= on_hand)
ORDER BY sku LIMIT $5
"""


class Line(BaseModel):
    """One SKU of an order."""

    sku: str
    quantity: int = Field(description="Units, summed over all lines of the SKU.")
    amount_minor: int = Field(description="Quantity times price, in minor units of the order's currency.")
    state: LineState


class OrderSummary(BaseModel):
    """An order without its lines."""

    tenant: str
    order_id: str
    status: Status
    reason: str | None = Field(description="Why it was rejected.")
    customer_id: str | None
    currency: str
    total_minor: int = Field(description="Sum of all lines in minor units.")
    placed_at: datetime
    updated_at: datetime = Field(description="Event time of the input that led to the status.")
    version: int = Field(description="The order's status records so far.")


class Order(OrderSummary):
    """An order with its lines."""

    lines: list[Line]


class Change(BaseModel):
    """One status of an order, or the refusal of one of its events."""

    version: int
    occurred_at: datetime
    input_id: str = Field(description="Id of the order event that is answered, or came to its end.")
    input_kind: Literal["placed", "cancelled", "returned"]
    outcome: Literal["accepted", "refused"]
    status: str = Field(description="The order's status after it; UNKNOWN before it was placed.")
    reason: str | None


class Stock(BaseModel):
    """Stock of one SKU."""

    sku: str
    on_hand: int = Field(description="Units in the warehouse, reserved ones among them.")
    reserved: int = Field(description="Units held by orders.")
    available: int
    version: int = Field(description="Stock commands applied so far.")
    updated_at: datetime


def _own(database: Rows) -> tuple[str, list[str] | None]:
    """The first two values of each query: whose rows."""
    return database.tenant, database.sees("customer")


@router.get("/orders/{order_id}", scope="orders:read", tagged=True)
async def order(order_id: Id, database: Database) -> Order:
    """An order with its lines and its newest status."""
    found = await database.fetch(_ONE, *_own(database), order_id)
    if not found:
        raise Problem(
            404,
            "No such order",
            f"There is no order {order_id!r}: it was not placed, is on its way, or is a dead letter.",
        )
    lines = [Line(**{f: row[f] for f in Line.model_fields}) for row in found if row["sku"] is not None]
    return Order(**{f: found[0][f] for f in OrderSummary.model_fields}, lines=lines)


@router.get("/orders/{order_id}/history", scope="orders:read")
async def history(order_id: Id, database: Database, limit: Limit = 50, cursor: Cursor = None) -> Page[Change]:
    """All that happened to an order, oldest first; refused events too, of orders never placed as well."""
    after = decode_cursor(cursor, int)[0] if cursor is not None else 0
    found = await database.fetch(_HISTORY, *_own(database), order_id, after, limit + 1)
    items = [Change(**dict(row)) for row in found[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].version) if len(found) > limit else None)


@router.get("/customers/{customer_id}/orders", scope="orders:read")
async def orders_of_customer(
    customer_id: Id,
    database: Database,
    status: Annotated[Status | None, Query(description="Only these.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[OrderSummary]:
    """A customer's orders and returns, newest first."""
    after: tuple[datetime | None, str | None] = (None, None)
    if cursor is not None:
        placed_at, order_id = decode_cursor(cursor, datetime, str)
        after = (placed_at, order_id)
    found = await database.fetch(_OF_CUSTOMER, *_own(database), customer_id, status, *after, limit + 1)
    items = [OrderSummary(**dict(row)) for row in found[:limit]]
    more = len(found) > limit
    return Page(
        items=items, next_cursor=encode_cursor(items[-1].placed_at, items[-1].order_id) if more else None
    )


@router.get("/stock/{sku}", scope="orders:read", tagged=True)
async def stock_of_sku(sku: Id, database: Database) -> Stock:
    """Stock of one SKU."""
    row = await database.fetchrow(_OF_SKU, *_own(database), sku)
    if row is None:
        raise Problem(404, "No such SKU", f"Nothing was ever received, ordered or returned of SKU {sku!r}.")
    return Stock(**dict(row))


@router.get("/stock", scope="orders:read")
async def stock(
    database: Database,
    low: Annotated[bool, Query(description="Only where a tenth or less is available.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Stock]:
    """Stock of all SKUs, by SKU."""
    after = decode_cursor(cursor, str)[0] if cursor is not None else None
    found = await database.fetch(_ALL_STOCK, *_own(database), after, low, limit + 1)
    items = [Stock(**dict(row)) for row in found[:limit]]
    return Page(items=items, next_cursor=encode_cursor(items[-1].sku) if len(found) > limit else None)
