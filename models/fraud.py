"""The model of card fraud: its features, its two forests, and how they are trained.

An Isolation Forest says how rare a transaction is, whatever is known of fraud; where there are labels, a
random forest says how likely it is fraud.

The features are computed from a decision's own fields (inputs and windows), so a row of `card_ledger`
gives exactly the vector that the processor scored: there is no second way to compute them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.forest import ForestTrees
from models.isolation import IsolationTrees
from models.trees import Floats, Ints

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
WINDOW_MAX_MS = 7 * DAY_MS
EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

COUNTS_AND_SUMS = (
    "count_1h",
    "sum_1h_minor",
    "count_24h",
    "sum_24h_minor",
    "count_7d",
    "sum_7d_minor",
)
MORE_WINDOWS = ("count_10m", "sum_10m_minor", "max_24h_minor", "merchants_24h", "max_7d_minor")
FEATURES = (
    "amount_minor",
    *COUNTS_AND_SUMS,
    "amount_pct_of_mean_7d",
    "since_previous_s",
    "hour_of_day",
    "weekend",
    "foreign",
    "online",
    *MORE_WINDOWS,
)
"""Names of the features, in the order of the vector; each is an integer. A new one goes to the end.

`amount_pct_of_mean_7d`: the amount in per cent of the mean of the card's other transactions in 7 days,
100 where there is none. `since_previous_s`: seconds since the previous one, at most 7 days. `hour_of_day`
and `weekend` are UTC. `foreign`: 1 where merchant and holder are known to be in different countries.
"""


NUMBERS = ("occurred_at", "amount_minor", *COUNTS_AND_SUMS, "since_previous_ms", *MORE_WINDOWS)
TEXTS = ("country", "home_country", "channel")


def features(numbers: Mapping[str, Ints], texts: Mapping[str, pa.Array]) -> dict[str, Ints]:
    """The features of decisions (or of ones being made: inputs and windows suffice), in order, by column.

    `numbers` holds int64 arrays (rows,) under `NUMBERS`, with -1 for a `since_previous_ms` that is not known;
    `texts` holds Arrow's text arrays (rows,) under `TEXTS`. Each result is int64 (rows,) and depends on its
    row alone: all is done element by element.
    """
    amount, count_7d, sum_7d = (numbers[name] for name in ("amount_minor", "count_7d", "sum_7d_minor"))
    others_sum = sum_7d - amount
    some = others_sum != 0
    # In floating point: the product of a large amount and a busy card would not fit 64 bits.
    of_mean = np.floor(amount * 100.0 * (count_7d - 1) / np.where(some, others_sum, 1))
    since = numbers["since_previous_ms"]
    days, in_day_ms = np.divmod(numbers["occurred_at"], DAY_MS)
    foreign = pc.not_equal(texts["country"], texts["home_country"])
    return {
        "amount_minor": amount,
        **{name: numbers[name] for name in COUNTS_AND_SUMS},
        "amount_pct_of_mean_7d": np.where(some, of_mean, 100.0).astype(np.int64),
        "since_previous_s": np.where(since < 0, WINDOW_MAX_MS, since) // 1000,
        "hour_of_day": in_day_ms // HOUR_MS,
        "weekend": at_weekend(days).astype(np.int64),
        "foreign": _where(foreign).astype(np.int64),
        "online": _where(pc.equal(texts["channel"], "ONLINE")).astype(np.int64),
        **{name: numbers[name] for name in MORE_WINDOWS},
    }


def at_weekend(days: Ints) -> npt.NDArray[np.bool_]:
    """Which of these days since 1970-01-01 are a Saturday or a Sunday, UTC."""
    found: npt.NDArray[np.bool_] = (days + EPOCH_WEEKDAY) % 7 >= 5
    return found


def matrix(found: Mapping[str, Ints], names: Sequence[str] = FEATURES) -> Floats:
    """The named features as forests take them: float32 (rows, names)."""
    return np.stack([found[name] for name in names], axis=1).astype(np.float32)


def _where(condition: pa.Array) -> npt.NDArray[np.bool_]:
    """A condition by row; unknown is false."""
    held: npt.NDArray[np.bool_] = pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return held


TREES = 100
ROWS_MIN = 256
RISK_STEPS = 1_000
RISK_PER_DECADE = 0.25
"""A row rarer by a factor of ten is riskier by this much: 1 in 100 is 0.5, 1 in 1,000 is 0.75."""


FRAUDS_MIN = 50
"""Labelled rows of either kind that a forest is trained on at least."""
LEVELS = 8
LEAF_ROWS = 5


class Scores(NamedTuple):
    """What a model says of each row, float64 (rows,), each 0.0 to 1.0 and by that row alone.

    `rarity`: the risk by the Isolation Forest, in steps of 1 / RISK_STEPS. `chance`: of fraud, by the forest;
    None where the model has none. `risk`: 1 - (1 - rarity) * (1 - chance).
    """

    rarity: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64] | None

    @property
    def risk(self) -> npt.NDArray[np.float64]:
        if self.chance is None:
            return self.rarity
        return np.float64(1.0) - (1.0 - self.rarity) * (1.0 - self.chance)


@dataclass(slots=True, frozen=True)
class FraudModel:
    """A version of the model, ready to score.

    `features`: names of those that it was trained on, in order. `limits[r]`: the path sum of `trees` at or
    below which the risk is at least (r + 1) / RISK_STEPS; not rising.
    """

    version: int
    features: tuple[str, ...]
    trees: IsolationTrees
    limits: Ints
    forest: ForestTrees | None = None

    @classmethod
    def of(cls, version: int, artifact: Mapping[str, Any]) -> FraudModel:
        """From what `train` made. Raises ValueError where this code does not compute one of its features."""
        names = tuple(artifact["features"])
        if unknown := sorted(set(names) - set(FEATURES)):
            raise ValueError(
                f"model version {version} was trained on features that this code does not compute"
                f" ({', '.join(unknown)}); train it again with `millrace models train fraud`"
            )
        return cls(version, names, artifact["trees"], artifact["limits"], artifact.get("forest"))

    def scores(self, found: Mapping[str, Ints]) -> Scores:
        """What it says of rows with these `features`."""
        rows = matrix(found, self.features)
        sums = self.trees.path_sums(rows)
        # limits falls as risk rises: negated, it can be searched.
        rarity = np.searchsorted(-self.limits, -sums, side="right") / RISK_STEPS
        return Scores(rarity, None if self.forest is None else self.forest.chances(rows))


def features_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Ints]:
    """The `features` of decisions one by one, with None for what is not known."""
    numbers = {
        name: np.array([-1 if row[name] is None else row[name] for row in rows], dtype=np.int64)
        for name in NUMBERS
    }
    texts = {name: pa.array([row[name] for row in rows], type=pa.string()) for name in TEXTS}
    return features(numbers, texts)


def train(rows: Iterable[Mapping[str, Any]], random_state: int = 0) -> dict[str, Any]:
    """Train on decisions (rows with the fields `NUMBERS` and `TEXTS`); returns the artifact.

    Rows may say `is_fraud` (a truth value, or None where nobody knows); with at least `FRAUDS_MIN` frauds and
    as many others there is a forest. The artifact: `trees` and `forest` (of `models`: whoever scores needs no
    scikit-learn), `features` (their names), `limits` (see `FraudModel`), `rows`, `frauds`. The risk by
    rarity is calibrated on the training rows: with the share of them at least as anomalous, it is
    -log10(share) * RISK_PER_DECADE, from 0 to 1. Raises ValueError for fewer than `ROWS_MIN`.
    """
    from sklearn.ensemble import IsolationForest  # slow to import, and needed to train only

    known = list(rows)
    if len(known) < ROWS_MIN:
        raise ValueError(f"there are {len(known)} rows to train on; give at least {ROWS_MIN}")
    vectors = matrix(features_of(known))
    rare = IsolationForest(n_estimators=TREES, random_state=random_state, n_jobs=1).fit(vectors)
    trees = IsolationTrees.of(rare)
    labels = [row.get("is_fraud") for row in known]
    return {
        "trees": trees,
        "forest": _forest(vectors, labels, random_state),
        "features": FEATURES,
        "limits": risk_limits(np.sort(trees.path_sums(vectors))),
        "rows": len(vectors),
        "frauds": sum(map(bool, labels)),
    }


def _forest(vectors: Floats, labels: Sequence[Any], random_state: int) -> ForestTrees | None:
    from sklearn.ensemble import RandomForestClassifier

    labelled = np.array([label is not None for label in labels])
    is_fraud = np.array([bool(label) for label in labels])[labelled]
    if min(is_fraud.sum(), len(is_fraud) - is_fraud.sum()) < FRAUDS_MIN:
        return None
    # Unweighted: a leaf's share of frauds is then the chance itself.
    forest = RandomForestClassifier(
        n_estimators=TREES, max_depth=LEVELS, min_samples_leaf=LEAF_ROWS, random_state=random_state, n_jobs=1
    )
    return ForestTrees.of(forest.fit(vectors[labelled], is_fraud), True)


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
