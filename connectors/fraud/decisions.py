"""From a transaction to what became of it: decided, refused, or with the broker and not decided yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from connectors.fraud import idempotency
from connectors.fraud.ledger import Ledger
from connectors.fraud.replies import ANSWER, Asked, Replies, Reply
from connectors.publish import Event, Publisher, Receipt
from infra.claims import BeingWorkedOn, Claims, UsedOtherwise
from infra.identity.principal import Principal
from infra.problems import Problem
from infra.quick_redis import QuickRedis
from infra.settings import Settings
from infra.telemetry.metrics import TRANSACTIONS_ANSWERED
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS

MARGIN_S = 5.0
BEGUN_S = 2.0
USED = "urn:millrace:problem:used-before"


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, and where it stands in `card-decisions`."""

    event_id: str
    partition: int
    offset: int
    values: dict[str, Any]

    @classmethod
    def by(cls, reply: Reply) -> Decided:
        """As it was read off the log."""
        values = {name: reply.event[name] for name in ANSWER}
        return cls(reply.event["event_id"], reply.at.partition, reply.at.offset, values)

    @classmethod
    def of_row(cls, row: Any) -> Decided:
        """As the ledger has it."""
        values = {name: row[name] for name in ANSWER}
        return cls(row["event_id"], row["source_partition"], row["source_offset"], values)

    def document(self) -> dict[str, Any]:
        """The answer's JSON."""
        place = {"topic": CARD_DECISIONS.name, "partition": self.partition, "offset": self.offset}
        return {"event_id": self.event_id, **self.values, **place}


@dataclass(frozen=True, slots=True)
class Refused:
    """It took no effect. `is_clash`: another transaction has its id."""

    field: str
    reason: str
    is_clash: bool = False

    def problem(self) -> Problem:
        """The answer to a single transaction."""
        kind = USED if self.is_clash else "about:blank"
        return Problem(422, "Used before" if self.is_clash else "Refused", self.reason, self.field, kind)


@dataclass(frozen=True, slots=True)
class Pending:
    """The broker has it; its decision is not known yet."""

    event_id: str
    receipt: Receipt


Outcome = Decided | Refused | Pending

_COUNTED = {
    Decided: TRANSACTIONS_ANSWERED.labels("decided"),
    Refused: TRANSACTIONS_ANSWERED.labels("refused"),
    Pending: TRANSACTIONS_ANSWERED.labels("pending"),
}


class Decisions:
    """Gets transactions decided, for one process. Made on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self.wait_s = settings.number("decision_wait_ms") / 1000
        self._publish_s = settings.number("publish_timeout_ms") / 1000
        self._replies = Replies(settings.kafka, settings.schema_registry_url)
        self._claims = Claims(QuickRedis(settings.redis_url), "millrace:claim:")
        self._ledger = Ledger(settings)

    async def begun(self) -> None:
        """Wait until replies are heard, so that the first requests have theirs; not long, if none can be."""
        await self._replies.begun(BEGUN_S)

    async def close(self) -> None:
        """End the thread and close the connections."""
        await self._replies.close()
        await self._claims.close()
        await self._ledger.close()

    @asynccontextmanager
    async def claimed(
        self, sender: Principal, key: str | None, body: Any, wait_s: float
    ) -> AsyncIterator[None]:
        """Work on a request with an `Idempotency-Key` meanwhile; without one there is nothing to claim.

        Raises `Problem`: 409 where somebody works on it, 422 where it was used with another body.
        """
        if key is None:
            yield
            return
        name = idempotency.claim_name(sender.tenant, sender.subject, key)
        held_s = self._publish_s + wait_s + MARGIN_S
        try:
            async with self._claims.claimed(name, idempotency.fingerprint(body), held_s):
                yield
        except BeingWorkedOn:
            raise Problem(
                409,
                "In progress",
                "A request with this Idempotency-Key is being worked on; send it again to have its answer.",
                headers={"Retry-After": "1"},
            ) from None
        except UsedOtherwise:
            raise Problem(
                422,
                "Used before",
                "This Idempotency-Key was used with another body; give another transaction another key.",
                idempotency.HEADER,
                USED,
            ) from None

    async def decide(
        self, to: Publisher, events: Sequence[Event], wait_s: float, sender: Principal
    ) -> list[Outcome]:
        """What became of each, after `wait_s` at the latest. Raises `Problem` as `Publisher.publish_many`."""
        outcomes = await self._decide(to, events, wait_s, sender)
        for kind, counted in _COUNTED.items():
            counted.inc(sum(type(outcome) is kind for outcome in outcomes))
        return outcomes

    async def _decide(
        self, to: Publisher, events: Sequence[Event], wait_s: float, sender: Principal
    ) -> list[Outcome]:
        if wait_s <= 0:
            receipts = await to.publish_many(CARD_TRANSACTIONS, events)
            return [Pending(e["event_id"], r) for e, r in zip(events, receipts, strict=True)]
        outcomes = [self._known(event) for event in events]
        places = [n for n, outcome in enumerate(outcomes) if outcome is None]
        if places:
            question = self._replies.ask([events[n] for n in places])
            try:
                receipts = await to.publish_many(CARD_TRANSACTIONS, [a.event for a in question.asked])
                question.sent(receipts)
                await question.answered(wait_s)
            finally:
                self._replies.forget(question)
            for n, asked, receipt in zip(places, question.asked, receipts, strict=True):
                outcomes[n] = _outcome(asked, receipt, sender)
        return [outcome for outcome in outcomes if outcome is not None]

    async def of(self, asker: Principal, event_id: str) -> Outcome | None:
        """What became of a transaction of the asker's; None where nothing is known of it.

        Raises `LedgerAway`.
        """
        sees = asker.sees("merchant")
        known = self._replies.known(asker.tenant, event_id)
        if known is not None and known.decision is not None:
            merchant = known.decision.event["merchant_id"]
            return Decided.by(known.decision) if sees is None or merchant in sees else None
        if known is not None and sees is not None and known.merchant not in sees:
            known = None
        if known is not None and known.letter is not None:
            return _refused(known.letter, asker)
        row = await self._ledger.decision(asker, event_id)
        if row is not None:
            return Decided.of_row(row)
        return None if known is None or known.receipt is None else Pending(event_id, known.receipt)

    def _known(self, event: Event) -> Outcome | None:
        """The outcome of a transaction that was decided while it is remembered here."""
        known = self._replies.known(event["tenant"], event["event_id"])
        if known is None or known.decision is None:
            return None
        return _compared(known.decision, event)


def _outcome(asked: Asked, receipt: Receipt, sender: Principal) -> Outcome:
    if asked.decision is not None:
        return _compared(asked.decision, asked.event)
    if asked.letter is not None:
        return _refused(asked.letter, sender)
    return Pending(asked.event["event_id"], receipt)


def _compared(decision: Reply, event: Event) -> Outcome:
    field = decision.differs(event)
    if field is None:
        return Decided.by(decision)
    # Not with which value: that transaction may be another's.
    return Refused(
        field,
        f"The id {event['event_id']} was used for another transaction, with another {field}; give this one"
        " an id (or Idempotency-Key) of its own.",
        is_clash=True,
    )


def _refused(letter: Reply, asker: Principal) -> Refused:
    field, reason = letter.event["field"] or "body", letter.event["error"]
    if asker.sees("merchant") is not None:
        # The reason may repeat what another's transaction of this id has.
        reason = f"{field} cannot be used, or differs from the transaction of this id that was sent before"
    return Refused(field, f"{reason}.")


@asynccontextmanager
async def deciding(app: FastAPI) -> AsyncIterator[None]:
    """Give `app` its `Decisions`, for its lifespan."""
    app.state.decisions = made = Decisions(app.state.settings)
    try:
        await made.begun()
        yield
    finally:
        await made.close()


async def decisions(connection: HTTPConnection) -> Decisions:
    """The gateway's, for `Annotated[Decisions, Depends(decisions)]`."""
    found = connection.app.state.decisions
    assert isinstance(found, Decisions)
    return found
