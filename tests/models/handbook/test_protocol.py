"""What is trained and tested on, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.handbook.protocol import Fold, prequential


def test_a_fold_trains_a_week_waits_a_week_and_tests_a_week() -> None:
    """Days 0 to 6 teach, 7 to 13 are not known yet, 14 to 20 are tested."""
    fold = Fold(tested_from=14)
    days = np.arange(30)
    assert fold.training_rows(days).tolist() == [0, 1, 2, 3, 4, 5, 6]
    nobody, nothing = np.zeros(30, dtype=np.int64), np.zeros(30, dtype=bool)
    assert fold.test_rows(days, nobody, nothing).tolist() == [14, 15, 16, 17, 18, 19, 20]


def test_cards_known_to_be_defrauded_are_no_test() -> None:
    """A fraud of the training week blocks its card, a later one from the day after it becomes known."""
    # Card 1 was defrauded in the training week, card 2 on day 8, card 3 before that week, card 4 never.
    days = np.array([-1, 5, 8, *([14] * 4), *([15] * 4), *([16] * 4)])
    cards = np.array([3, 1, 2, *([1, 2, 3, 4] * 3)])
    is_fraud = np.array([True, True, True, *([False] * 12)])
    rows = Fold(tested_from=14).test_rows(days, cards, is_fraud)
    tested = [(int(days[row]), int(cards[row])) for row in rows]
    assert tested == [
        *[(14, c) for c in (2, 3, 4)],
        *[(15, c) for c in (2, 3, 4)],
        *[(16, c) for c in (3, 4)],
    ]


def test_weeks_are_the_last_ones_and_as_many_as_fit() -> None:
    """Tests end on the last day; where the days do not reach back for all weeks, there are fewer."""
    assert [f.tested_from for f in prequential(0, 99, folds=4)] == [72, 79, 86, 93]
    assert [f.tested_from for f in prequential(0, 27, folds=4)] == [14, 21]
    with pytest.raises(ValueError, match=r"span 20 days, and a week of training.* need 21; give a file"):
        prequential(0, 19, folds=4)
