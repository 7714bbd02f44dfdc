"""Card histories in plain Python, record by record: what the compiled ones must agree with.

Each window is a scan of the card's transactions; nothing is kept ready, and no bound is cut short.
"""

from __future__ import annotations

from bisect import insort_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.fraud.histories import Bounds

NEVER = -(1 << 62)


@dataclass
class Use:
    """A transaction as the log gives it; card and id are scoped by tenant."""

    at_ms: int
    amount: int
    append_ms: int
    card: str
    id: str
    merchant: str | None


@dataclass
class Card:
    """A card's transactions in order of event time, ties in the order of the log."""

    known_from_ms: int
    last_append_ms: int = NEVER
    uses: list[Use] = field(default_factory=list)


class PlainHistories:
    """`insert` answers with the windows of a new transaction, None where its id is remembered.

    Behind them come count, sum and maximum of each window in `named_ms`.
    """

    def __init__(self, bounds: Bounds, named_ms: Sequence[int] = ()) -> None:
        self.bounds = bounds
        self.named_ms = named_ms
        self.cards: OrderedDict[str, Card] = OrderedDict()
        self.answers: dict[str, bytes] = {}
        self.swept_through_ms = NEVER
        self.newest_append_ms = NEVER

    def insert(self, use: Use, answer: bytes) -> list[int] | None:
        if use.id in self.answers:
            return None
        horizon_ms = self.bounds.widths_ms[3] + self.bounds.lateness_ms
        card = self.cards.get(use.card)
        if card is None:
            card = self.cards[use.card] = Card(self.swept_through_ms)
        elif use.at_ms <= card.uses[-1].at_ms - horizon_ms:
            alone = Card(NEVER, uses=[use])
            windows = self.windows(alone, 0)
            windows[12:14] = [card.uses[-1].at_ms - use.at_ms, 0]
            return windows
        else:
            self.cards.move_to_end(use.card)
        self.newest_append_ms = max(self.newest_append_ms, use.append_ms)
        card.last_append_ms = self.newest_append_ms
        insort_right(card.uses, use, key=lambda other: other.at_ms)
        self.answers[use.id] = answer
        windows = self.windows(card, next(n for n, other in enumerate(card.uses) if other is use))
        while card.uses[0].at_ms <= card.uses[-1].at_ms - horizon_ms:
            del self.answers[card.uses.pop(0).id]
        while True:
            name, oldest = next(iter(self.cards.items()))
            if (
                oldest.last_append_ms > self.newest_append_ms - self.bounds.idle_ms
                and len(self.cards) <= self.bounds.cards_max
            ):
                return windows
            self.swept_through_ms = max(self.swept_through_ms, oldest.uses[-1].at_ms)
            for gone in oldest.uses:
                del self.answers[gone.id]
            del self.cards[name]

    def windows(self, card: Card, place: int) -> list[int]:
        at_ms = card.uses[place].at_ms
        inside = [
            [use for use in card.uses[: place + 1] if use.at_ms > at_ms - width_ms]
            for width_ms in self.bounds.widths_ms
        ]
        ten, hour, day, week = inside
        late_ms = card.uses[-1].at_ms - at_ms
        named = []
        for width_ms in self.named_ms:
            amounts = [use.amount for use in card.uses[: place + 1] if use.at_ms > at_ms - width_ms]
            named += [len(amounts), sum(amounts), max(amounts)]
        return [
            len(ten),
            sum(use.amount for use in ten),
            len(hour),
            sum(use.amount for use in hour),
            len(day),
            sum(use.amount for use in day),
            max(use.amount for use in day),
            len({use.merchant for use in day} - {None}),
            len(week),
            sum(use.amount for use in week),
            max(use.amount for use in week),
            at_ms - week[-2].at_ms if len(week) > 1 else -1,
            late_ms,
            int(
                late_ms <= self.bounds.lateness_ms and at_ms - self.bounds.widths_ms[3] >= card.known_from_ms
            ),
            *named,
        ]
