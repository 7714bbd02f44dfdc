"""What is trained on, what is tested on, and when: the handbook's protocol, in days.

A fold trains on days that end `DELAY_DAYS` before its tests begin, as labels of later ones are not known by
then, and tests on the `TEST_DAYS` after. Cards known to be defrauded are blocked, so their transactions are
no test: those with a fraud in the last training week, and for each tested day those up to the delay before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.too_little import TooLittleError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY_MS = 86_400_000
DELAY_DAYS = 7
TEST_DAYS = 7
WEEK = 7


@dataclass(frozen=True, slots=True, order=True)
class Fold:
    """One round of training and test. Days are numbered since 1970-01-01, UTC."""

    tested_from: int
    trained_days: int = WEEK

    @property
    def trained_until(self) -> int:
        """The first day that is not trained on any more."""
        return self.tested_from - DELAY_DAYS

    @property
    def trained_from(self) -> int:
        return self.trained_until - self.trained_days

    @property
    def tested_until(self) -> int:
        return self.tested_from + TEST_DAYS

    def training_rows(self, days: Ints) -> Ints:
        """The rows to train on, by the day of each row."""
        return np.flatnonzero((days >= self.trained_from) & (days < self.trained_until))

    def test_rows(self, days: Ints, customers: Ints, is_fraud: Bools) -> Ints:
        """The rows to test on, rising: of each day those whose card is not known to be defrauded."""
        found = []
        for day in range(self.tested_from, self.tested_until):
            known_days = (days >= self.trained_until - WEEK) & (days < day - DELAY_DAYS)
            known = np.unique(customers[known_days & is_fraud])
            rows = np.flatnonzero(days == day)
            found.append(rows[~np.isin(customers[rows], known)])
        return np.concatenate(found)


def prequential(first_day: int, last_day: int, folds: int, trained_days: int = WEEK) -> list[Fold]:
    """The last `folds` weeks up to `last_day` as tests, the earliest first; fewer where not as many fit.

    `first_day` and `last_day` are the first and last whole days that are known. Raises TooLittleError where
    not even one week can be tested.
    """
    needed = WEEK + DELAY_DAYS + TEST_DAYS
    last = last_day + 1 - TEST_DAYS
    fit = min(folds, (last - first_day - WEEK - DELAY_DAYS) // TEST_DAYS + 1)
    if fit < 1:
        raise TooLittleError(
            f"the transactions span {last_day + 1 - first_day} days, and a week of training, one of delay and"
            f" one of test need {needed}; give a file that reaches further back"
        )
    return [Fold(last - TEST_DAYS * n, trained_days) for n in reversed(range(fit))]


def day_name(day: int) -> str:
    """A day since 1970-01-01 as people write it."""
    return str(np.datetime64(day, "D"))
