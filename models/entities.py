"""The model of fraud that knows customers and terminals: its features, its training, and its chances.

Its features come from the windows of `streams.fraud.entities` alone, so what it is taught is what the stream
can tell at the time of a transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.boosted import BoostedTrees, Calibration
from models.fraud import DAY_MS, HOUR_MS, at_weekend
from models.too_little import TooLittleError
from models.trees import Floats, Ints

Bools = npt.NDArray[np.bool_]


CUSTOMER_DAYS = (1, 3, 7, 14, 30, 90)
RECENT_DAYS = (1, 3, 7, 14)
OUTLYING_DAYS = (1, 3, 7, 14, 30)
RUN_DAYS = (1, 3, 7, 10, 14, 17, 20, 21, 22, 25, 30)
SHARE_DAYS = (1, 3, 7, 14, 21, 30, 60)
KNOWN_DAYS = (7, 14, 30, 60)

FEATURES = (
    "amount_minor",
    "hour_of_day",
    "weekend",
    "usual_minor",
    "usual_count",
    "of_usual",
    "of_max_90d",
    "customer_since_previous_ms",
    "customer_terminals_90d",
    *(f"customer_count_{n}d" for n in CUSTOMER_DAYS),
    *(f"mean_{n}d_of_usual" for n in RECENT_DAYS),
    *(f"max_{n}d_of_usual" for n in RECENT_DAYS),
    *(f"customer_outlying_{n}d" for n in OUTLYING_DAYS),
    *(f"customer_frauds_{n}d" for n in KNOWN_DAYS),
    "customer_share_30d",
    *(f"terminal_frauds_{n}d" for n in RUN_DAYS),
    *(f"terminal_share_{n}d" for n in SHARE_DAYS),
    "terminal_frauds_before_21d",
    "terminal_known_30d",
    "terminal_run_began",
    "terminal_run_ended",
    "terminal_rate",
)
"""Names of the features, in the order of the vector.

`usual_*`: of the customer's transactions from 90 days to 14 days before. `of_*`: the amount as a multiple of
it; -1 where nothing is usual yet. `*_share_*`: frauds among what is known.
`terminal_frauds_before_21d`: known frauds of 30 days that are older than 21.
`terminal_run_began`, `_ended`: in how many of the windows of `RUN_DAYS` the first known fraud of 30 days is
not, and no known fraud is. `terminal_rate`: transactions of a day as a share of those of 30.
"""


def features(occurred_at: Ints, amount_minor: Ints, windows: Mapping[str, Ints]) -> Floats:
    """The features of transactions, float32 (rows, `FEATURES`), from the stream's windows of them.

    `occurred_at` is in ms since 1970, UTC. Each row depends on itself alone.
    """
    days, in_day_ms = np.divmod(occurred_at, DAY_MS)
    usual_count = windows["customer_count_90d"] - windows["customer_count_14d"]
    usual_sum = windows["customer_sum_90d"] - windows["customer_sum_14d"]
    is_usual = usual_sum > 0
    usual = np.where(is_usual, usual_sum / np.maximum(usual_count, 1), -1.0)

    def of_usual(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        # Never NaN: trees of different makers send it different ways.
        return np.where(is_usual, values / usual, -1.0)

    frauds = {n: windows[f"terminal_frauds_{n}d"] for n in (*RUN_DAYS, 60)}
    found: dict[str, npt.NDArray[Any]] = {
        "amount_minor": amount_minor,
        "hour_of_day": in_day_ms // HOUR_MS,
        "weekend": at_weekend(days),
        "usual_minor": usual,
        "usual_count": usual_count,
        "of_usual": of_usual(amount_minor),
        "of_max_90d": amount_minor / np.maximum(windows["customer_max_90d"], 1),
        "customer_share_30d": _share(windows, "customer", 30),
        "terminal_frauds_before_21d": frauds[30] - frauds[21],
        "terminal_run_began": np.sum([frauds[n] < frauds[30] for n in RUN_DAYS], axis=0),
        "terminal_run_ended": np.sum([frauds[n] == 0 for n in RUN_DAYS], axis=0),
        "terminal_rate": windows["terminal_count_1d"] / windows["terminal_count_30d"],
    }
    for n in RECENT_DAYS:
        found[f"mean_{n}d_of_usual"] = of_usual(
            windows[f"customer_sum_{n}d"] / windows[f"customer_count_{n}d"]
        )
        found[f"max_{n}d_of_usual"] = of_usual(windows[f"customer_max_{n}d"])
    for n in SHARE_DAYS:
        found[f"terminal_share_{n}d"] = _share(windows, "terminal", n)
    return np.stack([found[n] if n in found else windows[n] for n in FEATURES], axis=1).astype(np.float32)


def _share(windows: Mapping[str, Ints], whose: str, days: int) -> npt.NDArray[np.float64]:
    known = windows[f"{whose}_known_{days}d"]
    return windows[f"{whose}_frauds_{days}d"] / np.maximum(known, 1)


@dataclass(frozen=True, slots=True, eq=False)
class EntityModel:
    """A trained and calibrated model, ready to score. `features`: names of what it was taught, in order."""

    features: tuple[str, ...]
    trees: BoostedTrees
    calibration: Calibration

    @classmethod
    def of(cls, artifact: Mapping[str, Any]) -> EntityModel:
        """From an `artifact`. Raises ValueError where this code does not compute its features."""
        names = tuple(artifact["features"])
        if names != FEATURES:
            raise ValueError("the model was trained on features of other code; train it again")
        return cls(names, artifact["trees"], artifact["calibration"])

    def artifact(self) -> dict[str, Any]:
        """What is stored of it: whoever scores needs no scikit-learn."""
        return {"features": self.features, "trees": self.trees, "calibration": self.calibration}

    def chances(self, rows: Floats) -> npt.NDArray[np.float64]:
        """The chance of fraud, 0.0 to 1.0, of each row of `features`, by that row alone."""
        return self.calibration.of_margins(self.trees.margins(rows))


TREES = 400
TRAINED_DAYS = 60
GENUINE_ROWS_MAX = 150_000
"""Of more rows that are no fraud every n-th is taught, with n times the weight; all frauds are."""
FRAUDS_MIN = 50
"""That a model is taught at least."""


def train(rows: Floats, is_fraud: Bools, random_state: int = 0) -> Any:
    """A `HistGradientBoostingClassifier` taught on rows of `features`. Takes one thread.

    Raises TooLittleError for fewer than `FRAUDS_MIN` frauds, or as few others.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    genuine = int((~is_fraud).sum())
    if min(genuine, int(is_fraud.sum())) < FRAUDS_MIN:
        raise TooLittleError(
            f"there are {is_fraud.sum()} frauds and {genuine} others to learn from; give {FRAUDS_MIN} of each"
        )
    thin = -(-genuine // GENUINE_ROWS_MAX)
    taught = is_fraud.copy()
    taught[np.flatnonzero(~is_fraud)[::thin]] = True
    weights = np.where(is_fraud[taught], 1.0, thin)
    model = HistGradientBoostingClassifier(
        learning_rate=0.03,
        max_iter=TREES,
        max_leaf_nodes=8,
        min_samples_leaf=50,
        l2_regularization=1.0,
        max_features=0.3,
        early_stopping=False,
        random_state=random_state,
    )
    with threadpool_limits(1):
        return model.fit(rows[taught], is_fraud[taught], sample_weight=weights)
