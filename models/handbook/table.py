"""The models of the handbook's chapter 3, on its features, with its settings, and what it says they reach.

What is published: Le Borgne, Siblini, Lebichot and Bontempi, "Reproducible Machine Learning for Credit Card
Fraud Detection", chapter 3, its table of results on the simulated data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.fraud import DAY_MS, HOUR_MS, at_weekend
from models.handbook.metrics import Metrics

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NIGHT_UNTIL = 6
"""Night is from midnight to the end of this hour."""
DAYS = (1, 7, 30)
HISTORY_DAYS = max(DAYS) + 7
"""So far its windows reach back, those behind the delay."""
TOLERANCE = 0.01

FEATURES = (
    "amount",
    "during_weekend",
    "during_night",
    *(f"customer_{what}_{n}d" for n in DAYS for what in ("count", "mean")),
    *(f"terminal_{what}_{n}d" for n in DAYS for what in ("known", "risk")),
)
"""Names of the handbook's features, in its order. Its counts of terminals are behind the delay, too."""


def features(occurred_at: Ints, amount_minor: Ints, windows: Mapping[str, Ints]) -> Floats:
    """The handbook's features of rows, float64 (rows, `FEATURES`), from the stream's windows of them."""
    days, in_day_ms = np.divmod(occurred_at, DAY_MS)
    found: dict[str, npt.NDArray[Any]] = {
        "amount": amount_minor / 100.0,
        "during_weekend": at_weekend(days),
        "during_night": in_day_ms // HOUR_MS <= NIGHT_UNTIL,
    }
    for n in DAYS:
        count, known = windows[f"customer_count_{n}d"], windows[f"terminal_known_{n}d"]
        found[f"customer_count_{n}d"] = count
        found[f"customer_mean_{n}d"] = windows[f"customer_sum_{n}d"] / (count * 100.0)
        found[f"terminal_known_{n}d"] = known
        found[f"terminal_risk_{n}d"] = windows[f"terminal_frauds_{n}d"] / np.maximum(known, 1)
    return np.stack([found[name] for name in FEATURES], axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the table: what it is made of, and what is published of it (None: nothing that we know of).

    `over_weeks`: whether it is measured beside ours in every week.
    """

    name: str
    make: Callable[[], Any]
    published: Metrics | None
    over_weeks: bool = False


def _logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(random_state=0)


def _tree(depth: int | None) -> Callable[[], Any]:
    def make() -> Any:
        from sklearn.tree import DecisionTreeClassifier

        return DecisionTreeClassifier(max_depth=depth, random_state=0)

    return make


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(random_state=0, n_jobs=1)


TABLE = (
    Entry("logistic regression", _logistic_regression, Metrics(0.871, 0.606, 0.291), over_weeks=True),
    Entry("decision tree, depth 2", _tree(2), Metrics(0.763, 0.496, 0.241)),
    Entry("decision tree, any depth", _tree(None), None),
    Entry("random forest", _forest, Metrics(0.867, 0.658, 0.287), over_weeks=True),
)


def scores(entry: Entry, taught: Floats, is_fraud: npt.NDArray[np.bool_], asked: Floats) -> Floats:
    """What the model says of the rows `asked` after it was taught; features are scaled as there."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(taught)
    model = entry.make().fit(scaler.transform(taught), is_fraud)
    said: Floats = model.predict_proba(scaler.transform(asked))[:, 1]
    return said
