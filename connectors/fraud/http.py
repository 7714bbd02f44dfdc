"""Card transactions over HTTP, one or many at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Body, Depends
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from connectors.identity import new_event_id
from connectors.ownership import require_object, tenant_of
from connectors.publish import Accepted, Publisher, publisher
from infra.identity import secured
from infra.identity.principal import Principal
from infra.problems import FieldProblem
from schemas.fraud import CARD_TRANSACTIONS

BATCH_MAX = 1_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

router = secured.SecuredRouter(prefix="/v1/transactions", tags=["fraud"])

Sender = Annotated[Principal, Depends(secured.principal)]


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must consist of printable characters")
    return text


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$", description="ISO 3166-1 alpha-2.", examples=["IE"])]


class Transaction(BaseModel):
    """A use of a card. Amounts are what the card is billed, in minor units of its currency."""

    model_config = ConfigDict(extra="forbid")

    event_id: Name | None = Field(
        default=None,
        description="The transaction's own id, so that it can be sent again; made here if absent.",
    )
    tenant: Name | None = Field(default=None, description="The sender's own, as if absent.")
    occurred_at: AwareDatetime = Field(
        ge=datetime(2000, 1, 1, tzinfo=UTC),
        description="When the card was used, with its time zone.",
        examples=["2025-11-03T11:00:00Z"],
    )
    card_id: Name = Field(description="A token of the card, never its number.", examples=["card-0042"])
    amount_minor: int = Field(ge=0, le=10**12, strict=True, examples=[1999])
    currency: str = Field(pattern=r"^[A-Z]{3}$", description="ISO 4217.", examples=["EUR"])
    customer_id: Name | None = None
    merchant_id: Name | None = None
    terminal_id: Name | None = None
    country: Country | None = Field(default=None, description="Country of the merchant.")
    home_country: Country | None = Field(default=None, description="Country of the card's holder.")
    mcc: Annotated[str, Field(pattern=r"^[0-9]{4}$")] | None = Field(
        default=None, description="Merchant category code.", examples=["5411"]
    )
    channel: Literal["UNKNOWN", "PRESENT", "ONLINE"] = "UNKNOWN"

    def event(self, tenant: str) -> dict[str, Any]:
        """The event for `card-transactions`; the id is made here where the client gave none."""
        event = self.model_dump()
        event["tenant"] = tenant
        event["event_id"] = self.event_id or new_event_id()
        event["occurred_at"] = (self.occurred_at - _EPOCH) // _MILLISECOND
        return event


def _own(transaction: Transaction, sender: Principal) -> dict[str, Any]:
    """The event. Raises `Problem` 403 where it is not the sender's to send."""
    require_object(sender, "fraud", transaction.merchant_id)
    return transaction.event(tenant_of(sender, transaction.tenant))


class Verdict(BaseModel):
    """What became of one item of a batch."""

    accepted: Accepted | None = Field(default=None, description="Where the broker has it.")
    refused: list[FieldProblem] | None = Field(
        default=None, description="Why it was refused; send it corrected."
    )


class BatchVerdict(BaseModel):
    """A verdict for each item, in order. The accepted ones are with the broker, whatever the others are."""

    accepted: int
    refused: int
    items: list[Verdict]


@router.post("", scope="fraud:write", status_code=202)
async def submit(
    transaction: Transaction, to: Annotated[Publisher, Depends(publisher)], sender: Sender
) -> Accepted:
    """Submit one transaction. Sending it again with the same `event_id` has no further effect."""
    event = _own(transaction, sender)
    return Accepted.of(event["event_id"], await to.publish(CARD_TRANSACTIONS, event))


@router.post(
    "/batch",
    scope="fraud:write",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {
                        "type": "array",
                        "maxItems": BATCH_MAX,
                        "items": Transaction.model_json_schema(),
                    }
                }
            }
        }
    },
)
async def submit_batch(
    transactions: Annotated[list[Any], Body(min_length=1, max_length=BATCH_MAX)],
    to: Annotated[Publisher, Depends(publisher)],
    sender: Sender,
) -> BatchVerdict:
    """Submit up to 1,000 transactions. Invalid ones are refused one by one, the others are accepted; one that
    is not the sender's to send refuses them all."""
    verdicts: list[Verdict] = []
    events: list[dict[str, Any]] = []
    places: list[int] = []
    for item in transactions:
        try:
            events.append(_own(Transaction.model_validate(item), sender))
        except ValidationError as error:
            verdicts.append(Verdict(refused=_faults(error)))
        else:
            places.append(len(verdicts))
            verdicts.append(Verdict())
    receipts = await to.publish_many(CARD_TRANSACTIONS, events)
    for place, event, receipt in zip(places, events, receipts, strict=True):
        verdicts[place] = Verdict(accepted=Accepted.of(event["event_id"], receipt))
    return BatchVerdict(accepted=len(events), refused=len(verdicts) - len(events), items=verdicts)


def _faults(error: ValidationError) -> list[FieldProblem]:
    return [
        FieldProblem(field=".".join(map(str, e["loc"])) or "body", reason=e["msg"])
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
