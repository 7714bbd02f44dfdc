"""Card transactions over HTTP, one or many at a time, answered with their decisions.

See docs/adr/0064-decision-api.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

import orjson
from fastapi import Body, Depends, Header, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from connectors.fraud.decisions import Decided, Decisions, Outcome, Pending, Refused, deciding, decisions
from connectors.fraud.idempotency import HEADER, KEY_MAX, derived_id, given_key
from connectors.fraud.ledger import LedgerAway
from connectors.identity import new_event_id
from connectors.ownership import require_object, tenant_of
from connectors.prefer import Preference
from connectors.publish import Accepted, Publisher, publisher
from infra.identity import secured
from infra.identity.principal import Principal
from infra.problems import FieldProblem, Problem

BATCH_MAX = 1_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

router = secured.SecuredRouter(prefix="/v1/transactions", tags=["fraud"], lifespan=deciding)

Sender = Annotated[Principal, Depends(secured.principal)]
To = Annotated[Publisher, Depends(publisher)]
Deciding = Annotated[Decisions, Depends(decisions)]
Key = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description=f"1 to {KEY_MAX} characters of your choice. The same key with the same body has the same"
        " decision, with another body 422, and while it is being worked on 409. It is remembered for 24 h.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`respond-async`: the acknowledgement alone, at once. `wait=5`: wait up to so many"
        " seconds for the decision (30 at most). RFC 7240.",
    ),
]


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

    def event(self, tenant: str, event_id: str | None = None) -> dict[str, Any]:
        """The event for `card-transactions`; `event_id` where the client gave none, else one is made here."""
        event = self.model_dump()
        event["tenant"] = tenant
        event["event_id"] = self.event_id or event_id or new_event_id()
        event["occurred_at"] = (self.occurred_at - _EPOCH) // _MILLISECOND
        return event


def _own(
    transaction: Transaction, sender: Principal, key: str | None, number: int | None = None
) -> dict[str, Any]:
    """The event, its id made here where the client gave none. Raises `Problem` 403 where the sender may not
    send it."""
    require_object(sender, "fraud", transaction.merchant_id)
    tenant = tenant_of(sender, transaction.tenant)
    if key is None:
        return transaction.event(tenant)
    return transaction.event(tenant, derived_id(tenant, sender.subject, key, transaction.card_id, number))


class Decision(BaseModel):
    """The decision on a transaction."""

    event_id: str = Field(description="The transaction's id: the client's own, or the one made here.")
    decision: Literal["APPROVE", "REVIEW", "DECLINE"]
    risk: float = Field(description="0.0 to 1.0, model and rules together.")
    reasons: list[str] = Field(description="Why, one sentence each.")
    fired_rules: list[str] = Field(description="As id@version.")
    rules_version: int
    model_version: int
    code_version: int
    topic: str = Field(examples=["card-decisions"])
    partition: int = Field(examples=[3])
    offset: int = Field(description="Where the decision stands in the log.", examples=[1_024])


class Verdict(BaseModel):
    """What became of one item of a batch; one of the three."""

    decided: Decision | None = Field(default=None, description="Its decision.")
    accepted: Accepted | None = Field(
        default=None, description="Where the broker has it, undecided yet: ask for its decision."
    )
    refused: list[FieldProblem] | None = Field(
        default=None, description="Why it was refused; send it corrected."
    )


class BatchVerdict(BaseModel):
    """A verdict for each item, in order. What is not refused is with the broker, whatever the others are."""

    accepted: int = Field(description="How many were not refused.")
    refused: int
    decided: int = Field(description="How many of the accepted ones have their decision here.")
    items: list[Verdict]


_UNDECIDED: dict[str, Any] = {"decided": None, "accepted": None, "refused": None}

_LATER: dict[int | str, dict[str, Any]] = {
    202: {
        "model": Accepted,
        "description": "The broker has it. `Location` is where its decision will be.",
    },
    409: {"description": "A request with this Idempotency-Key is being worked on."},
}


@router.post("", scope="fraud:write", response_model=Decision, responses=_LATER)
async def submit(
    transaction: Transaction,
    request: Request,
    to: To,
    deciding: Deciding,
    sender: Sender,
    key: Key = None,
    prefer: Prefer = None,
) -> Response:
    """Submit one transaction, and have its decision. Sending it again, with the same `event_id` or the same
    `Idempotency-Key`, has no further effect and the same answer.

    202 where the decision takes longer than usual (or was not asked for), with a link to it.
    """
    wanted = Preference.parse(request.headers.getlist("prefer"))
    key = given_key(key)
    event = _own(transaction, sender, key)
    wait_s = _wait_s(wanted, deciding)
    async with deciding.claimed(sender, key, event, wait_s):
        (outcome,) = await deciding.decide(to, [event], wait_s, sender)
        if isinstance(outcome, Refused):
            # Raised in here: it took no effect, so the key is free for the corrected transaction.
            raise outcome.problem()
    return _answer(outcome, wanted.applied)


@router.get(
    "/{event_id:path}/decision", scope="fraud:write", tagged=True, response_model=Decision, responses=_LATER
)
async def decision(event_id: str, deciding: Deciding, sender: Sender) -> Response:
    """The decision on a transaction that was submitted here: 200, or 202 while there is none yet.

    422 where it was refused; 404 where nothing is known of it.
    """
    try:
        outcome = await deciding.of(sender, event_id)
    except LedgerAway:
        raise Problem(
            503, "Database is away", "The ledger does not answer now; ask again later.",
            headers={"Retry-After": "2"},
        ) from None  # fmt: skip
    if outcome is None:
        raise Problem(
            404,
            "No decision",
            f"There is no decision on {event_id!r}: it was not sent, is on its way, or is a dead letter.",
        )
    if isinstance(outcome, Refused):
        raise outcome.problem()
    return _answer(outcome, {})


@router.post(
    "/batch",
    scope="fraud:write",
    response_model=BatchVerdict,
    responses={202: {"model": BatchVerdict, "description": "Not all are decided yet."}, 409: _LATER[409]},
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
    request: Request,
    to: To,
    deciding: Deciding,
    sender: Sender,
    key: Key = None,
    prefer: Prefer = None,
) -> Response:
    """Submit up to 1,000 transactions, with a verdict for each. Invalid ones are refused one by one, the
    others are accepted; one that is not the sender's to send refuses them all.

    200 where each has its decision or was refused, 202 where the decision of some is not known yet.
    """
    wanted = Preference.parse(request.headers.getlist("prefer"))
    key = given_key(key)
    verdicts: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    places: list[int] = []
    for number, item in enumerate(transactions):
        try:
            events.append(_own(Transaction.model_validate(item), sender, key, number))
        except ValidationError as error:
            verdicts.append(_UNDECIDED | {"refused": _faults(error)})
        else:
            places.append(len(verdicts))
            verdicts.append(_UNDECIDED)
    wait_s = _wait_s(wanted, deciding)
    async with deciding.claimed(sender, key, transactions, wait_s):
        outcomes = await deciding.decide(to, events, wait_s, sender)
    for place, outcome in zip(places, outcomes, strict=True):
        verdicts[place] = _UNDECIDED | _verdict(outcome)
    counts = {name: sum(v[name] is not None for v in verdicts) for name in _UNDECIDED}
    body = {
        "accepted": counts["decided"] + counts["accepted"],
        "refused": counts["refused"],
        "decided": counts["decided"],
        "items": verdicts,
    }
    return _json(202 if counts["accepted"] else 200, body, wanted.applied)


def _wait_s(wanted: Preference, deciding: Decisions) -> float:
    if wanted.respond_async:
        return 0.0
    return deciding.wait_s if wanted.wait_s is None else float(wanted.wait_s)


def _answer(outcome: Decided | Pending, headers: Mapping[str, str]) -> Response:
    if isinstance(outcome, Decided):
        return _json(200, outcome.document(), headers)
    link = f"{router.prefix}/{quote(outcome.event_id, safe='')}/decision"
    return _json(202, _accepted(outcome), {**headers, "Location": link, "Retry-After": "1"})


def _verdict(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Decided():
            return {"decided": outcome.document()}
        case Pending():
            return {"accepted": _accepted(outcome)}
        case Refused():
            return {"refused": [{"field": outcome.field, "reason": outcome.reason}]}


def _accepted(outcome: Pending) -> dict[str, Any]:
    return Accepted.of(outcome.event_id, outcome.receipt).model_dump()


def _json(status: int, body: Any, headers: Mapping[str, str]) -> Response:
    return Response(orjson.dumps(body), status, dict(headers), "application/json")


def _faults(error: ValidationError) -> list[dict[str, str]]:
    return [
        {"field": ".".join(map(str, e["loc"])) or "body", "reason": e["msg"]}
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
