"""Boosted trees evaluated in integers, and the chance that their margin stands for.

scikit-learn adds the leaves' log-odds in floating point; here each leaf carries them in units of 2^-20 and
the sum over the trees is exact, as in `isolation`: a margin depends on its row alone, not on batch, order or
machine. What a margin means is learned from rows that the trees were not taught (`Calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.too_little import TooLittleError
from models.trees import Floats, Ints, Trees, not_above

UNIT = 1 << 20
STEPS = 64
"""So many chances are told apart for each 1 of log-odds."""
LOG_ODDS_MAX = 16
"""Beyond it, either way, all chances are the same."""


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """All trees of a classifier as arrays over their nodes. Children of node i are `child[2i]` and
    `child[2i+1]`; a leaf's are itself. `margin` is what a leaf adds to the log-odds, in `UNIT`s, and `start`
    what they are before any tree."""

    roots: Ints
    feature: Ints
    threshold: Floats
    child: Ints
    margin: Ints
    start: int

    @classmethod
    def of(cls, model: Any) -> BoostedTrees:
        """From a fitted `sklearn.ensemble.HistGradientBoostingClassifier` of two classes.

        Raises ValueError for one with categories or of more classes.
        """
        if model.n_trees_per_iteration_ != 1 or model.is_categorical_ is not None:
            raise ValueError(
                "the model has categories or more than two classes; train it on numbers and a label"
            )
        roots, features, thresholds, children, margins = [], [], [], [], []
        offset = 0
        # Where scikit-learn keeps what it has learned; the parity of every trained model is tested.
        for (predictor,) in model._predictors:
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            at = np.arange(len(nodes))
            roots.append(offset)
            features.append(np.where(leaf, 0, nodes["feature_idx"]))
            thresholds.append(not_above(np.where(leaf, np.inf, nodes["num_threshold"])))
            pair = [np.where(leaf, at, nodes["left"]), np.where(leaf, at, nodes["right"])]
            children.append(np.stack(pair, axis=1).ravel() + offset)
            margins.append(np.where(leaf, np.rint(nodes["value"] * UNIT), 0))
            offset += len(nodes)
        return cls(
            np.array(roots, dtype=np.int64),
            np.concatenate(features).astype(np.int64),
            np.concatenate(thresholds),
            np.concatenate(children).astype(np.int64),
            np.concatenate(margins).astype(np.int64),
            int(np.rint(model._baseline_prediction.item() * UNIT)),
        )

    def margins(self, rows: Floats) -> Ints:
        """The log-odds, in `UNIT`s, of each row of a float32 matrix (rows, features)."""
        return self._trees.sums(rows) + self.start

    @cached_property
    def _trees(self) -> Trees:
        return Trees.of(self.roots, self.feature, self.threshold, self.child, self.margin)

    # What is stored is the arrays alone.

    def __getstate__(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def __setstate__(self, state: Sequence[Any]) -> None:
        for field, value in zip(fields(self), state, strict=True):
            self.__dict__[field.name] = value


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a margin means: log-odds of `slope` * margin + `offset`.

    `chances` holds the chance of each step of log-odds from -`LOG_ODDS_MAX` on: the exponential is computed
    once, when the model is made, as its last bit may differ between machines.
    """

    slope: float
    offset: float
    chances: npt.NDArray[np.float64]

    @classmethod
    def of(cls, margins: Ints, is_fraud: npt.NDArray[np.bool_]) -> Calibration:
        """The likeliest one, of rows that the trees were not taught.

        Raises TooLittleError where they are all of one kind, or speak against the margins.
        """
        from sklearn.linear_model import LogisticRegression

        if is_fraud.all() or not is_fraud.any():
            raise TooLittleError(
                "the rows to calibrate on are all of one kind; give some with frauds and others"
            )
        column = (margins / UNIT).reshape(-1, 1)
        # Nearly without a penalty: two numbers of thousands of rows need none.
        line = LogisticRegression(C=1e6, max_iter=1_000).fit(column, is_fraud)
        return cls.line(float(line.coef_[0, 0]), float(line.intercept_[0]))

    @classmethod
    def line(cls, slope: float, offset: float) -> Calibration:
        """Of slope and offset; a slope that is not above 0 would turn the order round and is refused."""
        if slope <= 0:
            raise TooLittleError(
                f"higher margins would mean lower chances (slope {slope:.3g}); calibrate on more rows"
            )
        steps = np.arange(-LOG_ODDS_MAX * STEPS, LOG_ODDS_MAX * STEPS + 1) / STEPS
        return cls(slope, offset, 1.0 / (1.0 + np.exp(-steps)))

    def of_margins(self, margins: Ints) -> npt.NDArray[np.float64]:
        """The chances, 0.0 to 1.0, by row; they never fall as margins rise."""
        log_odds = margins / UNIT * self.slope + self.offset
        step = np.rint(np.clip(log_odds, -LOG_ODDS_MAX, LOG_ODDS_MAX) * STEPS).astype(np.int64)
        return self.chances[step + LOG_ODDS_MAX * STEPS]
