"""How good scores are: ranks, cards found a day, and whether a chance is what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.too_little import TooLittleError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CARDS = 100
"""As many cards a day as investigators look at."""
EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
"""Of the bins of chances: as fine where frauds are nearly certain as where they are rare."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Tested rows: day, customer, whether they were fraud, and what a model said (higher is riskier)."""

    days: Ints
    customers: Ints
    is_fraud: Bools
    scores: Floats


@dataclass(frozen=True, slots=True)
class Metrics:
    """Area under the ROC curve, average precision, and the share of defrauded among the cards picked."""

    auc_roc: float
    average_precision: float
    card_precision: float

    @classmethod
    def of(cls, scored: Scored) -> Metrics:
        """Of rows among which there is at least one fraud and one that is none (else TooLittleError)."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        if scored.is_fraud.all() or not scored.is_fraud.any():
            raise TooLittleError("the tested rows are all of one kind; test on days with frauds and others")
        return cls(
            float(roc_auc_score(scored.is_fraud, scored.scores)),
            float(average_precision_score(scored.is_fraud, scored.scores)),
            float(np.mean(card_precisions(scored))),
        )

    def values(self) -> tuple[float, float, float]:
        return self.auc_roc, self.average_precision, self.card_precision

    @classmethod
    def mean(cls, found: list[Metrics]) -> Metrics:
        return cls(*(float(np.mean(column)) for column in zip(*(m.values() for m in found), strict=True)))


def card_precisions(scored: Scored, cards: int = CARDS) -> list[float]:
    """For each day, rising, the share of defrauded cards among the `cards` with the highest scores.

    A card's score is its highest of the day. A card that was found defrauded is blocked from the next day on.
    Cards of one score are picked by their number.
    """
    blocked = np.empty(0, dtype=np.int64)
    precisions = []
    for day in np.unique(scored.days):
        rows = np.flatnonzero((scored.days == day) & ~np.isin(scored.customers, blocked))
        names, card = np.unique(scored.customers[rows], return_inverse=True)
        best = np.full(len(names), -np.inf)
        np.maximum.at(best, card, scored.scores[rows])
        defrauded = np.zeros(len(names), dtype=bool)
        np.logical_or.at(defrauded, card, scored.is_fraud[rows])
        picked = np.argsort(-best, kind="stable")[:cards]
        found = names[picked[defrauded[picked]]]
        precisions.append(len(found) / cards)
        blocked = np.concatenate([blocked, found])
    return precisions


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of like chances: how many, their mean chance, and the share of frauds with its 95 % interval."""

    rows: int
    chance: float
    share: float
    low: float
    high: float


def reliability(chances: Floats, is_fraud: Bools) -> list[Bin]:
    """Rows by their chance, between `EDGES`, the lowest chances first; bins without a row are left out."""
    number = np.searchsorted(EDGES, chances, side="right")
    found = []
    for n in np.unique(number):
        rows = number == n
        share, count = float(is_fraud[rows].mean()), int(rows.sum())
        found.append(Bin(count, float(chances[rows].mean()), share, *_wilson(share, count)))
    return found


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean distance of chance and share, by the rows of each bin."""
    rows = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.chance - b.share) for b in bins) / rows


def _wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 %."""
    z = 1.959964
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * float(np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)))
    return max(0.0, middle - half), min(1.0, middle + half)
