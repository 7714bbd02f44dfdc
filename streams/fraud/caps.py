"""How much a new rule may decline: counted by event-time day, in the state, so that a replay counts the same.

A rule with a cap may turn at most that share of a partition's transactions of a day into DECLINE, at least
`DECLINES_MIN`. Counted are the transactions up to the one in question, and those of its declines where
nothing but rules with a cap declined. Beyond the cap it asks for review and adds no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from models.rules.batch import Bools
from models.rules.ruleset import Rule
from models.trees import Ints
from schemas.declare import DAY_MS
from streams.fraud.histories import Histories
from streams.fraud.history import HORIZON_MS

DECLINES_MIN = 10
DAYS = HORIZON_MS // DAY_MS + 1
"""How many days are counted; a transaction from before them is declined by no rule with a cap."""

_TAG = b"\xc1"
"""Begins a chunk that holds declines too. No chunk of histories does: MessagePack never uses it."""


class Day(msgspec.Struct):
    """A day's transactions while a rule had a cap, and the declines of each such rule, by its key."""

    transactions: int = 0
    declines: dict[str, int] = {}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[int, Day])


class Declines:
    """The days of one partition."""

    def __init__(self) -> None:
        self.days: dict[int, Day] = {}
        self.is_changed = False

    def count(self, day: int, transactions: int) -> None:
        """Take note of transactions of a day; days that lie too far back are forgotten."""
        self.is_changed = True
        newest = max(self.days, default=day)
        if day <= newest - DAYS:
            return
        if day not in self.days:
            self.days[day] = Day()
            for old in [d for d in self.days if d <= max(newest, day) - DAYS]:
                del self.days[old]
        self.days[day].transactions += transactions

    def admit(self, day: int, rule: Rule) -> bool:
        """Whether the rule may decline one more of the day's transactions; it then has."""
        assert rule.cap is not None
        found = self.days.get(day)
        if found is None:
            return False
        declines = found.declines.get(rule.key, 0)
        if declines >= max(DECLINES_MIN, int(rule.cap * found.transactions)):
            return False
        found.declines[rule.key] = declines + 1
        return True


class FraudState(Histories):
    """The state of one partition: the cards' histories, and the declines of rules with a cap."""

    def __init__(self) -> None:
        super().__init__()
        self.declines = Declines()

    def delta(self) -> bytes | None:
        """As that of the histories; with the declines in front where they have changed."""
        histories = super().delta()
        if not self.declines.is_changed:
            return histories
        self.declines.is_changed = False
        return self._counted() + (histories or b"")

    def snapshot(self) -> Iterator[bytes]:
        if self.declines.days:
            yield self._counted()
        yield from super().snapshot()

    def load(self, chunk: bytes) -> None:
        if chunk[:1] == _TAG:
            end = 5 + int.from_bytes(chunk[1:5], "little")
            self.declines.days = _decoder.decode(chunk[5:end])
            chunk = chunk[end:]
        if chunk:
            super().load(chunk)

    def _counted(self) -> bytes:
        body = _encoder.encode(dict(sorted(self.declines.days.items())))
        return _TAG + len(body).to_bytes(4, "little") + body


def suppressed(
    fired: Sequence[tuple[Rule, Bools]],
    blamed: Bools,
    days: Ints,
    states: Sequence[tuple[Declines, int, int]],
) -> dict[str, Bools]:
    """Where rules with a cap have used it up, by the rule's key.

    `blamed`: where rules with a cap alone would decline. `days`: each row's. `states`: of each partition its
    declines, and its rows from and to. Counts every row once.
    """
    capped = [(rule, where) for rule, where in fired if rule.cap is not None]
    found: dict[str, Bools] = {}
    for declines, start, end in states:
        counted = start
        for row in [*(np.flatnonzero(blamed[start:end]) + start).tolist(), None]:
            until = end if row is None else row + 1
            for day, transactions in zip(*np.unique(days[counted:until], return_counts=True), strict=True):
                declines.count(int(day), int(transactions))
            counted = until
            if row is None:
                continue
            for rule, where in capped:
                if where[row] and not declines.admit(int(days[row]), rule):
                    found.setdefault(rule.key, np.zeros(len(blamed), dtype=bool))[row] = True
    # In the order of the rules, not in that in which they were first at their caps: batches would show.
    return {rule.key: found[rule.key] for rule, _ in capped if rule.key in found}
