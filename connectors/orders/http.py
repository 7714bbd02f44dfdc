"""Orders, cancellations and stock receipts over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from connectors.identity import new_event_id
from connectors.ownership import require_object, tenant_of
from connectors.publish import Accepted, Publisher, publisher
from infra.identity import secured
from infra.identity.principal import Principal
from schemas.orders import ORDER_EVENTS, STOCK_RECEIPTS
from schemas.orders.limits import (
    CANCELLED,
    CURRENCY,
    IDENTIFIER,
    MAX_LINES,
    MAX_QUANTITY,
    MAX_UNIT_PRICE_MINOR,
    PLACED,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

router = secured.SecuredRouter(prefix="/v1", tags=["orders"])

Sender = Annotated[Principal, Depends(secured.principal)]
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
Quantity = Annotated[int, Field(ge=1, le=MAX_QUANTITY, strict=True, examples=[2])]


class _Input(BaseModel):
    """What every event may carry. With an id of the client's own it can be sent again without effect."""

    model_config = ConfigDict(extra="forbid")

    event_id: Identifier | None = Field(
        default=None, description="The event's own id, so that it can be sent again; made here if absent."
    )
    tenant: Identifier | None = Field(default=None, description="The sender's own, as if absent.")
    occurred_at: AwareDatetime | None = Field(
        default=None,
        ge=datetime(2000, 1, 1, tzinfo=UTC),
        description="When it happened, with its time zone; now if absent.",
        examples=["2025-11-03T11:00:00Z"],
    )

    def envelope(self, sender: Principal, customer_id: str | None = None) -> dict[str, Any]:
        """The fields that every event of the domain has. Raises `Problem` 403 where it is not the sender's to
        send."""
        require_object(sender, "orders", customer_id)
        at = self.occurred_at or datetime.now(UTC)
        return {
            "event_id": self.event_id or new_event_id(),
            "tenant": tenant_of(sender, self.tenant),
            "occurred_at": (at - _EPOCH) // _MILLISECOND,
        }


class Line(BaseModel):
    """Units of one SKU. Lines with the same SKU are summed."""

    model_config = ConfigDict(extra="forbid")

    sku: Identifier = Field(examples=["85123A"])
    quantity: Quantity
    unit_price_minor: int = Field(
        ge=0, le=MAX_UNIT_PRICE_MINOR, strict=True, description="In minor units.", examples=[255]
    )


class Order(_Input):
    """An order. It is confirmed when all its lines can be held, and rejected otherwise."""

    order_id: Identifier | None = Field(
        default=None, description="The order's id; the event's id if absent.", examples=["order-1001"]
    )
    customer_id: Identifier | None = Field(default=None, examples=["customer-17"])
    currency: str = Field(pattern=CURRENCY, description="ISO 4217.", examples=["EUR"])
    lines: list[Line] = Field(min_length=1, max_length=MAX_LINES)


class Cancellation(_Input):
    """The wish to cancel the whole order."""


class StockReceipt(_Input):
    """Units that arrived."""

    quantity: Quantity


class OrderAccepted(Accepted):
    """Where the broker has the event, and the order it is about: ask for its status there."""

    order_id: str


@router.post("/orders", scope="orders:write", status_code=202)
async def place(order: Order, to: Annotated[Publisher, Depends(publisher)], sender: Sender) -> OrderAccepted:
    """Place an order. The answer says that it was taken down; its status follows within moments."""
    envelope = order.envelope(sender, order.customer_id)
    order_id = order.order_id or envelope["event_id"]
    event = envelope | {
        "order_id": order_id,
        "kind": PLACED,
        "customer_id": order.customer_id,
        "currency": order.currency,
        "lines": [line.model_dump() for line in order.lines],
    }
    receipt = await to.publish(ORDER_EVENTS, event)
    return OrderAccepted(order_id=order_id, **Accepted.of(event["event_id"], receipt).model_dump())


@router.post("/orders/{order_id}/cancel", scope="orders:write", status_code=202)
async def cancel(
    order_id: Annotated[str, Path(pattern=IDENTIFIER)],
    to: Annotated[Publisher, Depends(publisher)],
    sender: Sender,
    cancellation: Cancellation | None = None,
) -> OrderAccepted:
    """Cancel an order, before or after its confirmation; what it holds goes back to stock.

    It is for senders who may speak for all customers: only the order itself tells whose it is.
    """
    event = (cancellation or Cancellation()).envelope(sender) | {
        "order_id": order_id,
        "kind": CANCELLED,
        "customer_id": None,
        "currency": None,
        "lines": [],
    }
    receipt = await to.publish(ORDER_EVENTS, event)
    return OrderAccepted(order_id=order_id, **Accepted.of(event["event_id"], receipt).model_dump())


@router.post("/stock/{sku}/receipts", scope="orders:write", status_code=202)
async def receive(
    sku: Annotated[str, Path(pattern=IDENTIFIER)],
    receipt: StockReceipt,
    to: Annotated[Publisher, Depends(publisher)],
    sender: Sender,
) -> Accepted:
    """Book units of a SKU that arrived: opening stock or a delivery."""
    event = receipt.envelope(sender) | {"sku": sku, "quantity": receipt.quantity}
    return Accepted.of(event["event_id"], await to.publish(STOCK_RECEIPTS, event))
