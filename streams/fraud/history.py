"""What is known of each card: its transactions of the last 8 days, by event time, with their answers.

Windows are exact and by event time: a window of width w of a transaction at t covers (t - w, t], itself
included, whatever order the records came in. Three bounds keep memory flat, none reads a clock:

- per card, by event time: transactions older than `HORIZON_MS` behind the card's newest are forgotten.
  A transaction up to `LATENESS_MS` behind it still finds all its windows.
- idle cards, by append time: a card without a record for `IDLE_MS` of the topic's own append time is
  forgotten. Event time cannot decide this: history loaded beside live traffic would be idle at once.
- `CARDS_MAX` cards a partition: the one longest without a record goes first.

All three depend on the log alone, so a restart, a replay and any cut into batches forget the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from schemas.declare import DAY_MS, FUTURE_MS
from streams.event_time import BoundedLateness

HOUR_MS = 3_600_000
WINDOWS_MS = {"1h": HOUR_MS, "24h": DAY_MS, "7d": 7 * DAY_MS}
LONGEST_MS = max(WINDOWS_MS.values())
LATENESS_MS = DAY_MS
HORIZON_MS = LONGEST_MS + LATENESS_MS
REMEMBERED = BoundedLateness(HORIZON_MS)
"""What lies at or behind a card's watermark is forgotten; what comes from there finds no windows."""
IDLE_MS = HORIZON_MS + FUTURE_MS
CARDS_MAX = 500_000
CHUNK_BYTES = 1 << 20
COMPACT_MIN = 512

_NEVER = -(1 << 62)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Windows(NamedTuple):
    """What was known of a card as of one transaction's event time, named as in card-decisions.

    Sums in minor units. `late_ms`: how far it lay behind the card's newest transaction.
    `windows_complete`: nothing that belongs in the windows can have been forgotten.
    """

    count_1h: int
    sum_1h_minor: int
    count_24h: int
    sum_24h_minor: int
    count_7d: int
    sum_7d_minor: int
    since_previous_ms: int | None
    late_ms: int
    windows_complete: bool


class CardHistory:
    """One card's transactions in order of event time; ties in the order of the log.

    Amounts are kept as running totals, so that a window's sum is one subtraction. Entries before
    `start` are forgotten; they are cut off now and then, as cutting at each record would cost O(n).
    """

    __slots__ = ("base", "ids", "known_from_ms", "last_append_ms", "start", "times", "totals")

    def __init__(self, known_from_ms: int) -> None:
        self.times = array("q")
        self.totals = array("q")
        self.ids: list[str] = []
        self.start = 0
        self.base = 0
        self.known_from_ms = known_from_ms
        self.last_append_ms = _NEVER

    @property
    def newest_ms(self) -> int:
        return self.times[-1] if self.times else _NEVER

    def insert(self, at_ms: int, amount_minor: int, entry_id: str) -> int:
        """Put a transaction in its place; returns that place."""
        times, totals = self.times, self.totals
        place = len(times)
        if not place or at_ms >= times[-1]:
            totals.append((totals[-1] if place else self.base) + amount_minor)
            times.append(at_ms)
            self.ids.append(entry_id)
            return place
        place = bisect_right(times, at_ms, self.start)
        totals.insert(place, totals[place - 1] if place else self.base)
        times.insert(place, at_ms)
        self.ids.insert(place, entry_id)
        for i in range(place, len(totals)):
            totals[i] += amount_minor
        return place

    def windows(self, place: int) -> Windows:
        """The windows of the transaction at `place`, as of its event time."""
        times, totals, start = self.times, self.totals, self.start
        at_ms = times[place]
        # Later entries of the same millisecond are not known yet: `place` is the last of its ties.
        until = totals[place]
        found: list[int] = []
        first = start
        for width_ms in (LONGEST_MS, DAY_MS, HOUR_MS):  # widest first: each bound limits the next search
            first = bisect_right(times, at_ms - width_ms, first, place)
            found += (until - (totals[first - 1] if first else self.base), place - first + 1)
        late_ms = times[-1] - at_ms
        previous = times[place - 1] if place > start else _NEVER
        sum_7d, count_7d, sum_24h, count_24h, sum_1h, count_1h = found
        return Windows(
            count_1h,
            sum_1h,
            count_24h,
            sum_24h,
            count_7d,
            sum_7d,
            at_ms - previous if previous > at_ms - LONGEST_MS else None,
            late_ms,
            late_ms <= LATENESS_MS and at_ms - LONGEST_MS >= self.known_from_ms,
        )

    def forget_until(self, at_ms: int) -> list[str]:
        """Forget what occurred at `at_ms` or before; returns the ids of what was forgotten."""
        first = self.start
        if self.times[first] > at_ms:
            return []
        self.start = bisect_right(self.times, at_ms, first)
        gone = self.ids[first : self.start]
        if self.start >= COMPACT_MIN and self.start * 2 >= len(self.times):
            self.base = self.totals[self.start - 1]
            del self.times[: self.start], self.totals[: self.start], self.ids[: self.start]
            self.start = 0
        return gone


class Pending:
    """Stands for an answer that is being made: a duplicate in the same batch waits for it."""

    __slots__ = ("answer",)

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer


class FraudState:
    """The cards of one partition, and the answer to every transaction that is still remembered.

    An answer is kept as MessagePack of its values in the order of the schema (`fields`): it serves the
    duplicate, the delta and the snapshot alike. Loading a delta repeats the same insertions, so what was
    forgotten, and when, needs no record of its own.
    """

    def __init__(self, fields: tuple[str, ...]) -> None:
        self._fields = fields
        self._at = fields.index("occurred_at")
        self._amount = fields.index("amount_minor")
        self._card = fields.index("card_id")
        self._tenant = fields.index("tenant")
        self._id = fields.index("event_id")
        self._cards: OrderedDict[str, CardHistory] = OrderedDict()
        self._answers: dict[str, bytes | Pending] = {}
        self._swept_through_ms = _NEVER
        self._newest_append_ms = _NEVER
        self._applied: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        """How many transactions are remembered."""
        return len(self._answers)

    @property
    def cards_total(self) -> int:
        return len(self._cards)

    def answer(self, tenant: str, event_id: str) -> dict[str, Any] | None:
        """The answer given (or being given, in this batch) to the transaction, if it is remembered."""
        stored = self._answers.get(_scoped(tenant, event_id))
        if stored is None:
            return None
        if isinstance(stored, Pending):
            return stored.answer
        return dict(zip(self._fields, _decode(stored), strict=False))

    def insert(self, answer: dict[str, Any], append_ms: int) -> tuple[Windows, Pending | None]:
        """Put a new transaction in its place and give its windows.

        `answer` holds at least its inputs; complete it and hand the `Pending` to `keep`. There is none for
        a transaction older than the horizon: it is answered, but not remembered.
        """
        event_id, tenant, card_id = answer["event_id"], answer["tenant"], answer["card_id"]
        at_ms, amount = answer["occurred_at"], answer["amount_minor"]
        windows = self._insert(tenant, card_id, event_id, at_ms, amount, append_ms)
        if windows is None:
            newest = self._cards[_scoped(tenant, card_id)].newest_ms
            return Windows(1, amount, 1, amount, 1, amount, None, newest - at_ms, False), None
        pending = Pending(answer)
        self._answers[_scoped(tenant, event_id)] = pending
        return windows, pending

    def keep(self, pending: Pending, append_ms: int) -> None:
        """Remember a completed answer. In the order of the log, once per `Pending`."""
        answer = pending.answer
        body = _encode([answer[name] for name in self._fields])
        entry_id = _scoped(answer["tenant"], answer["event_id"])
        # A later record of the batch may have pushed it beyond the horizon already.
        if self._answers.get(entry_id) is pending:
            self._answers[entry_id] = body
        self._applied.append((append_ms, body))

    def delta(self) -> bytes | None:
        if not self._applied:
            return None
        body = _encode({"applied": self._applied})
        self._applied = []
        return body

    def snapshot(self) -> Iterator[bytes]:
        cards: list[Any] = []
        size = 0
        for card, history in self._cards.items():
            bodies: list[bytes] = []
            part = (card, history.known_from_ms, history.last_append_ms, bodies)
            cards.append(part)
            for entry_id in history.ids[history.start :]:
                body = self._answers[entry_id]
                assert isinstance(body, bytes), "a snapshot is taken between batches"
                bodies.append(body)
                size += len(body)
                if size >= CHUNK_BYTES:
                    yield self._chunk(cards)
                    bodies = []
                    cards, size = [(*part[:3], bodies)], 0
        if cards:
            yield self._chunk(cards)

    def load(self, chunk: bytes) -> None:
        content = _decode(chunk)
        if "applied" in content:
            for append_ms, body in content["applied"]:
                values = _decode(body)
                tenant, event_id = values[self._tenant], values[self._id]
                self._insert(
                    tenant, values[self._card], event_id, values[self._at], values[self._amount], append_ms
                )
                self._answers[_scoped(tenant, event_id)] = body
            return
        self._swept_through_ms = content["swept_through_ms"]
        self._newest_append_ms = content["newest_append_ms"]
        for card, known_from_ms, last_append_ms, bodies in content["cards"]:
            history = self._cards.get(card)
            if history is None:
                history = self._cards[card] = CardHistory(known_from_ms)
                history.last_append_ms = last_append_ms
            for body in bodies:
                values = _decode(body)
                entry_id = _scoped(values[self._tenant], values[self._id])
                history.insert(values[self._at], values[self._amount], entry_id)
                self._answers[entry_id] = body

    def _chunk(self, cards: list[Any]) -> bytes:
        return _encode(
            {
                "swept_through_ms": self._swept_through_ms,
                "newest_append_ms": self._newest_append_ms,
                "cards": cards,
            }
        )

    def _insert(
        self, tenant: str, card_id: str, event_id: str, at_ms: int, amount: int, append_ms: int
    ) -> Windows | None:
        card = _scoped(tenant, card_id)
        history = self._cards.get(card)
        if history is None:
            history = self._cards[card] = CardHistory(self._swept_through_ms)
        elif REMEMBERED.is_late(at_ms, history.newest_ms):
            return None
        else:
            self._cards.move_to_end(card)
        self._newest_append_ms = max(self._newest_append_ms, append_ms)
        history.last_append_ms = self._newest_append_ms
        place = history.insert(at_ms, amount, _scoped(tenant, event_id))
        windows = history.windows(place)
        for gone in history.forget_until(REMEMBERED.watermark(history.newest_ms)):
            del self._answers[gone]
        self._forget_idle()
        return windows

    def _forget_idle(self) -> None:
        while True:
            card, history = next(iter(self._cards.items()))
            if history.last_append_ms > self._newest_append_ms - IDLE_MS and len(self._cards) <= CARDS_MAX:
                return
            self._swept_through_ms = max(self._swept_through_ms, history.newest_ms)
            for gone in history.ids[history.start :]:
                del self._answers[gone]
            del self._cards[card]


def _scoped(tenant: str, name: str) -> str:
    """A name that cannot meet another tenant's. (Names are printable: no NUL can stand in them.)"""
    return name if tenant == "default" else f"{tenant}\0{name}"
