"""The anomaly model of card fraud: its features, and how it is trained.

The features are computed from a decision's own fields (inputs and windows), so a row of `card_ledger`
gives exactly the vector that the processor scored: there is no second way to compute them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.isolation import IsolationTrees
from models.trees import Floats, Ints

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
WINDOW_MAX_MS = 7 * DAY_MS
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

FEATURES = (
    "amount_minor",
    "count_1h",
    "sum_1h_minor",
    "count_24h",
    "sum_24h_minor",
    "count_7d",
    "sum_7d_minor",
    "amount_pct_of_mean_7d",
    "since_previous_s",
    "hour_of_day",
    "weekend",
    "foreign",
    "online",
)
"""Names of the features, in the order of the vector; each is an integer.

`amount_pct_of_mean_7d`: the amount in per cent of the mean of the card's other transactions in 7 days,
100 where there is none. `since_previous_s`: seconds since the previous one, at most 7 days. `hour_of_day`
and `weekend` are UTC. `foreign`: 1 where merchant and holder are known to be in different countries.
"""


def features(decision: Mapping[str, Any]) -> dict[str, int]:
    """The features of a decision (or of one being made: its inputs and windows suffice), in order."""
    amount = decision["amount_minor"]
    count_7d = decision["count_7d"]
    sum_7d = decision["sum_7d_minor"]
    others_sum = sum_7d - amount
    since = decision["since_previous_ms"]
    days, in_day_ms = divmod(decision["occurred_at"], DAY_MS)
    country, home = decision["country"], decision["home_country"]
    return {
        "amount_minor": amount,
        "count_1h": decision["count_1h"],
        "sum_1h_minor": decision["sum_1h_minor"],
        "count_24h": decision["count_24h"],
        "sum_24h_minor": decision["sum_24h_minor"],
        "count_7d": count_7d,
        "sum_7d_minor": sum_7d,
        "amount_pct_of_mean_7d": amount * 100 * (count_7d - 1) // others_sum if others_sum else 100,
        "since_previous_s": (WINDOW_MAX_MS if since is None else since) // 1000,
        "hour_of_day": in_day_ms // HOUR_MS,
        "weekend": int((days + EPOCH_WEEKDAY) % 7 >= 5),
        "foreign": int(country is not None and home is not None and country != home),
        "online": int(decision["channel"] == "ONLINE"),
    }


TREES = 100
ROWS_MIN = 256
RISK_STEPS = 1_000
RISK_PER_DECADE = 0.25
"""A row rarer by a factor of ten is riskier by this much: 1 in 100 is 0.5, 1 in 1,000 is 0.75."""


@dataclass(slots=True, frozen=True)
class AnomalyModel:
    """A version of the anomaly model, ready to score.

    `limits[r]`: the path sum at or below which the risk is at least (r + 1) / RISK_STEPS; not rising.
    """

    version: int
    trees: IsolationTrees
    limits: Ints

    @classmethod
    def of(cls, version: int, artifact: Mapping[str, Any]) -> AnomalyModel:
        """From what `train` made. Raises ValueError where it was made for other features."""
        if tuple(artifact["features"]) != FEATURES:
            raise ValueError(
                f"model version {version} was trained on other features than this code computes"
                f" ({', '.join(sorted(set(artifact['features']) ^ set(FEATURES))) or 'their order differs'});"
                " train it again with `millrace models train fraud`"
            )
        return cls(version, artifact["trees"], artifact["limits"])

    def risks(self, vectors: Sequence[tuple[int, ...]]) -> list[float]:
        """The risk of each vector, 0.0 to 1.0 in steps of 1 / RISK_STEPS; each depends on its row alone."""
        sums = self.trees.path_sums(np.array(vectors, dtype=np.float32))
        # limits falls as risk rises: negated, it can be searched.
        steps = np.searchsorted(-self.limits, -sums, side="right")
        return [step / RISK_STEPS for step in steps.tolist()]


def train(rows: Iterable[Mapping[str, Any]], random_state: int = 0) -> dict[str, Any]:
    """Train on decisions (rows with the fields that `features` reads); returns the artifact.

    The artifact: `trees` (`IsolationTrees`: whoever scores needs no scikit-learn), `features` (their names),
    `limits` (see `AnomalyModel`), `rows`. The risk of a row is calibrated on the training rows: with the
    share of them at least as anomalous, risk = -log10(share) * RISK_PER_DECADE, from 0 to 1.
    Raises ValueError for fewer than `ROWS_MIN`.
    """
    from sklearn.ensemble import IsolationForest  # slow to import, and needed to train only

    matrix = np.array([tuple(features(row).values()) for row in rows], dtype=np.float32)
    if len(matrix) < ROWS_MIN:
        raise ValueError(f"there are {len(matrix)} rows to train on; give at least {ROWS_MIN}")
    forest = IsolationForest(n_estimators=TREES, random_state=random_state, n_jobs=1).fit(matrix)
    trees = IsolationTrees.of(forest)
    sums = np.sort(np.concatenate([trees.path_sums(part) for part in _parts(matrix)]))
    return {
        "trees": trees,
        "features": FEATURES,
        "limits": risk_limits(sums),
        "rows": len(matrix),
    }


def risk_limits(sorted_sums: Ints) -> Ints:
    """For each step of risk the largest path sum that reaches it, from the training rows' sums.

    That is the k-th smallest of them with k = share * (rows + 1), rounded down; where k is 0 the training
    rows are too few to say so, and no row reaches the step.
    """
    steps = np.arange(1, RISK_STEPS + 1) / RISK_STEPS
    shares = 10.0 ** (-steps / RISK_PER_DECADE)
    reach = np.floor(shares * (len(sorted_sums) + 1)).astype(np.int64) - 1
    never = np.int64(-1)
    return np.where(reach >= 0, sorted_sums[np.clip(reach, 0, len(sorted_sums) - 1)], never)


def _parts(matrix: Floats) -> Iterator[Floats]:
    for start in range(0, len(matrix), 4096):
        yield matrix[start : start + 4096]
