"""Replies to transactions, read off the log: decisions, and dead letters of those that were refused.

One thread has one consumer without a group, at the ends of all partitions. It decodes what somebody waits
for (records of their cards) and hands it to the event loop, one wake-up for all that has come.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as KafkaPartition

from connectors.publish import Event, Receipt
from infra.broker import CONNECTING, LIBRDKAFKA
from infra.codec import Codec, RegistryUnavailable, Undecodable
from infra.kafka_access import KafkaAccess
from infra.topic_log import partitions
from schemas.fraud import CARD_DECISIONS, CARD_TRANSACTIONS
from schemas.grants import LOG_READER

log = logging.getLogger(__name__)

KEPT = 20_000
"""Replies that are remembered, for repeats and for who asks again."""
STRAYS = 1_000
"""Dead letters that came before their record's place was known here."""
LETTER_BYTES = 4 << 20
"""A larger dead letter repeats a record that did not come through a gateway."""
POLL_SECONDS = 0.1
POLL_RECORDS = 1_000
ASK_SECONDS = 2.0
AGAIN_SECONDS = 1.0

ANSWER = ("decision", "risk", "reasons", "fired_rules", "rules_version", "model_version", "code_version")
"""What an answer tells of a decision."""

_TRANSACTION = tuple(CARD_TRANSACTIONS.fields)
_KEPT = (*_TRANSACTION, *ANSWER)
_CODES = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

Id = tuple[str, str]
"""Tenant and event id."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A decision as it stands in the log, or the dead letter of a record that was refused."""

    at: Receipt
    event: Event

    def differs(self, transaction: Event) -> str | None:
        """The first field in which the decided transaction is another one; None where it is this one."""
        return next((name for name in _TRANSACTION if self.event[name] != transaction[name]), None)


@dataclass(slots=True)
class Known:
    """A transaction that was sent from here, and what became of it so far."""

    card: bytes
    merchant: str | None
    decision: Reply | None = None
    letter: Reply | None = None
    """The last one."""
    receipt: Receipt | None = None
    """Where the broker has it; of several sendings the last."""
    places: list[tuple[int, int]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Asked:
    """One sending of a transaction: its decision, or the dead letter of this very record; neither yet."""

    event: Event
    question: Question
    decision: Reply | None = None
    letter: Reply | None = None


class Question:
    """Transactions that are sent together, and the replies to them. Used on the event loop."""

    def __init__(self, replies: Replies, events: Sequence[Event]) -> None:
        self.asked = [Asked(event, self) for event in events]
        self._replies = replies
        self._left = len(events)
        self._done = asyncio.get_running_loop().create_future()
        self._is_heard = replies.listening

    def sent(self, receipts: Sequence[Receipt]) -> None:
        """Take note where the broker has put them."""
        for asked, receipt in zip(self.asked, receipts, strict=True):
            self._replies._place(asked, receipt)

    async def answered(self, seconds: float) -> None:
        """Wait until all have a reply, or so long; not at all where replies cannot be heard now."""
        if self._left and self._is_heard:
            await asyncio.wait([self._done], timeout=seconds)

    def settle(self) -> None:
        """One more of them has its reply."""
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)


class Replies:
    """The replies that one process waits for. Make it on its event loop, and `close` it there."""

    def __init__(self, access: KafkaAccess, registry_url: str) -> None:
        self._access = access
        self._registry_url = registry_url
        self._loop = asyncio.get_running_loop()
        self._known: OrderedDict[Id, Known] = OrderedDict()
        self._cards: Counter[bytes] = Counter()
        self._placed: dict[tuple[int, int], Asked] = {}
        self._strays: OrderedDict[tuple[int, int], Reply] = OrderedDict()
        self._closing = threading.Event()
        self._begun = asyncio.Event()
        self.listening = False
        self._thread = threading.Thread(target=self._run, name="replies", daemon=True)
        self._thread.start()

    async def begun(self, seconds: float) -> None:
        """Wait until it listens or has failed to for the first time, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()

    def ask(self, events: Sequence[Event]) -> Question:
        """Listen for the replies to these. Call it before they are sent, and `forget` it afterwards."""
        question = Question(self, events)
        for asked in question.asked:
            name = _id(asked.event)
            known = self._known.get(name)
            if known is None:
                card = str(asked.event[CARD_TRANSACTIONS.key]).encode()
                known = self._known[name] = Known(card, asked.event["merchant_id"])
                self._cards[card] += 1
            known.asked.append(asked)
        return question

    def forget(self, question: Question) -> None:
        """Nobody waits for it any more. What comes is remembered all the same, for who asks again."""
        for asked in question.asked:
            known = self._known.get(_id(asked.event))
            if known is not None and asked in known.asked:
                known.asked.remove(asked)
        while len(self._known) > KEPT:
            name, oldest = next(iter(self._known.items()))
            if oldest.asked:
                self._known.move_to_end(name)
                break
            del self._known[name]
            self._unlist(oldest)
            for place in oldest.places:
                self._placed.pop(place, None)

    def known(self, tenant: str, event_id: str) -> Known | None:
        """A transaction that was sent from here, while it is remembered; None for any other."""
        return self._known.get((tenant, event_id))

    async def close(self) -> None:
        """End the thread."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join, 5.0)

    # On the loop

    def _place(self, asked: Asked, receipt: Receipt) -> None:
        place = (receipt.partition, receipt.offset)
        known = self._known.get(_id(asked.event))
        if known is None:
            return
        self._placed[place] = asked
        known.places.append(place)
        known.receipt = receipt
        letter = self._strays.pop(place, None)
        if letter is not None:
            self._refuse(place, letter)

    def _take(self, decisions: Sequence[Reply], letters: Sequence[Reply]) -> None:
        for reply in decisions:
            known = self._known.get(_id(reply.event))
            if known is None:
                continue
            if known.decision is None:
                # Only the first: it is the one that the ledger keeps.
                known.decision = reply
                self._unlist(known)
            for asked in known.asked:
                if asked.decision is None and asked.letter is None:
                    asked.decision = known.decision
                    asked.question.settle()
        for letter in letters:
            self._refuse((letter.event["partition"], letter.event["offset"]), letter)

    def _refuse(self, place: tuple[int, int], letter: Reply) -> None:
        asked = self._placed.get(place)
        if asked is None:
            self._strays[place] = letter
            while len(self._strays) > STRAYS:
                self._strays.popitem(last=False)
            return
        known = self._known.get(_id(asked.event))
        if known is not None:
            known.letter = letter
        if asked.decision is None and asked.letter is None:
            asked.letter = letter
            asked.question.settle()

    def _unlist(self, known: Known) -> None:
        left = self._cards[known.card] - 1
        if left > 0:
            self._cards[known.card] = left
        else:
            self._cards.pop(known.card, None)

    # In the thread

    def _run(self) -> None:
        told = ""
        while not self._closing.is_set():
            try:
                with closing(Codec(self._registry_url)) as codec, closing(self._consumer()) as consumer:
                    if self._begin(consumer):
                        told = ""
                        self._listen(consumer, codec)
            except (KafkaException, RegistryUnavailable) as error:
                if (reason := str(error)) != told:
                    told = reason
                    log.warning("replies cannot be heard now", extra={"reason": reason})
            except Exception:
                log.exception("replies cannot be heard now")
            self.listening = False
            self._tell(self._begun.set)
            self._closing.wait(AGAIN_SECONDS)

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                **self._access.config(),
                **CONNECTING,
                "group.id": LOG_READER,  # required, but no group is joined and nothing is committed
                "enable.auto.commit": False,
                # Only where retention has passed a position: the next record that is left.
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            },
            logger=LIBRDKAFKA,
        )

    def _begin(self, consumer: Consumer) -> bool:
        """Stand at the ends; False where this process ends meanwhile."""
        places = []
        for at in partitions((CARD_DECISIONS, CARD_TRANSACTIONS.dlq)):
            if self._closing.is_set():
                return False
            asked = KafkaPartition(at.topic, at.partition)
            _, end = consumer.get_watermark_offsets(asked, timeout=ASK_SECONDS)
            places.append(KafkaPartition(at.topic, at.partition, end))
        consumer.assign(places)
        # From here on nothing is missed: whatever is sent now is answered behind these places.
        self.listening = True
        self._tell(self._begun.set)
        return True

    def _listen(self, consumer: Consumer, codec: Codec) -> None:
        while not self._closing.is_set():
            # consume(n) waits for n records or the whole time-out: wait for one, then take what is there.
            messages = consumer.consume(1, POLL_SECONDS)
            if not messages:
                continue
            messages += consumer.consume(POLL_RECORDS - 1, 0)
            decisions: list[Reply] = []
            letters: list[Reply] = []
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.fatal() or error.code() in _CODES:
                        raise KafkaException(error)
                elif message.topic() == CARD_TRANSACTIONS.dlq.name:
                    if len(message.value() or b"") <= LETTER_BYTES:
                        letters += _decoded(codec, CARD_TRANSACTIONS.dlq, message)
                elif message.key() in self._cards:
                    decisions += _decoded(codec, CARD_DECISIONS, message)
            if decisions or letters:
                self._tell(partial(self._take, decisions, letters))

    def _tell(self, call: Callable[[], None]) -> None:
        """Have the loop call it."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)


def _decoded(codec: Codec, topic: Any, message: Message) -> list[Reply]:
    value = message.value()
    try:
        event = codec.decode(topic, value if isinstance(value, bytes) else None).event
    except Undecodable:
        return []  # not ours: what we wait for was encoded by our processor
    if topic is CARD_DECISIONS:
        event = {name: event[name] for name in _KEPT}
    return [Reply(Receipt(topic.name, int(message.partition() or 0), int(message.offset() or 0)), event)]


def _id(event: Event) -> Id:
    return event["tenant"], event["event_id"]
