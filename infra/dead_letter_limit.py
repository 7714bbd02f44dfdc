"""The limit that stops a consumer which refuses most of what it reads.

A few dead letters are the senders' fault; thousands in a row are ours: a schema that was released in the
wrong order, a rule that refuses everything, a table without a column. Going on would empty the topic into
the dead letters, where every record needs a redrive.
"""

from __future__ import annotations

from collections import deque

from infra import exit_codes

WINDOW_RECORDS = 1_000
"""The share is taken of this many records, or of the last batch where that is larger."""
NEVER_PCT = 100


class OverLimit(RuntimeError):
    """Too many records became dead letters; nothing of the batch that passed the limit was committed."""

    exit_code = exit_codes.OVER_LIMIT


class DeadLetterLimit:
    """Counts one consumer's records and dead letters. `percent` 100 never stops it.

    Until a consumer has read `WINDOW_RECORDS`, the share is of that many all the same: the first ten
    records of a morning may all be bad.
    """

    def __init__(self, consumer: str, percent: int) -> None:
        self._consumer = consumer
        self._percent = percent
        self._batches: deque[tuple[int, int]] = deque()
        self._records = 0
        self._dead = 0

    def check(self, records: int, dead: int) -> None:
        """Raise `OverLimit` if a batch of so many records, so many of them refused, passes the limit.

        Call it before the batch takes effect, and `count` afterwards.
        """
        all_records = max(WINDOW_RECORDS, self._records + records)
        if self._percent >= NEVER_PCT or not dead:
            return
        if (self._dead + dead) * 100 > self._percent * all_records:
            raise OverLimit(
                f"{self._consumer}: {self._dead + dead} of its last {self._records + records} records would"
                f" be dead letters, more than {self._percent} per cent of {all_records}; look at the reasons"
                " (table dead_letters), mend the cause, then `millrace up`; to let them pass, set"
                " MILLRACE_DEAD_LETTER_LIMIT_PCT=100"
            )

    def count(self, records: int, dead: int) -> None:
        """Take note of a batch that took effect; forget what lies before the window."""
        if not records:
            return
        self._batches.append((records, dead))
        self._records += records
        self._dead += dead
        while self._records - self._batches[0][0] >= WINDOW_RECORDS:
            old_records, old_dead = self._batches.popleft()
            self._records -= old_records
            self._dead -= old_dead
