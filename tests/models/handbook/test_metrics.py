"""Metrics on scores whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest

from models.handbook.metrics import (
    Metrics,
    Scored,
    card_precisions,
    expected_calibration_error,
    reliability,
)


def scored(*rows: tuple[int, int, bool, float]) -> Scored:
    """From (day, customer, is_fraud, score)."""
    days, customers, is_fraud, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Scored(days, customers, is_fraud, scores.astype(np.float64))


def test_a_found_card_is_not_looked_at_again() -> None:
    """Two cards a day are picked by their highest score; one that was found is blocked on later days."""
    found = scored(
        (0, 1, False, 0.1),
        (0, 1, True, 0.9),  # the card's highest of the day, and one of its rows is a fraud
        (0, 2, False, 0.8),
        (0, 3, True, 0.7),
        (1, 1, True, 0.9),  # found on the day before
        (1, 2, True, 0.2),
        (1, 3, True, 0.3),
        (1, 4, False, 0.1),
    )
    assert card_precisions(found, cards=2) == [0.5, 1.0]


def test_cards_fewer_than_are_picked_still_count_as_picked() -> None:
    """Precision is by the number that could have been looked at."""
    assert card_precisions(scored((0, 1, True, 0.5), (0, 2, False, 0.1)), cards=100) == [0.01]


def test_a_perfect_order_and_its_reverse() -> None:
    """All frauds first give areas of 1, all of them last an area of 0 under the ROC curve."""
    rows = [(0, n, n < 3, 10.0 - n) for n in range(10)]
    best = Metrics.of(scored(*rows))
    assert (best.auc_roc, best.average_precision, best.card_precision) == (1.0, 1.0, 0.03)
    assert Metrics.of(scored(*[(d, c, f, -s) for d, c, f, s in rows])).auc_roc == 0.0
    with pytest.raises(ValueError, match="all of one kind"):
        Metrics.of(scored((0, 1, True, 0.5)))


def test_chances_that_are_drawn_from_are_reliable_and_doubled_ones_are_not() -> None:
    """Nearly every bin's interval holds the chance that its rows were drawn by, and none holds twice it."""
    random = np.random.default_rng(5)
    chances = 10 ** random.uniform(-3, -0.5, 200_000)
    is_fraud = random.random(len(chances)) < chances
    bins = reliability(chances, is_fraud)
    assert len(bins) == 8 and sum(b.rows for b in bins) == len(chances)
    assert sum(b.low <= b.chance <= b.high for b in bins) >= 7
    doubled = reliability(2 * chances, is_fraud)
    assert not any(b.low <= b.chance <= b.high for b in doubled)
    assert expected_calibration_error(doubled) > 10 * expected_calibration_error(bins)
