"""Random forests evaluated in integers, so that a chance depends on its row alone.

scikit-learn averages the shares of a class in floating point; here each leaf carries its share in units of
2^-16 and the sum over the trees is exact, as in `isolation`. The chance is one division of that sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.isolation import UNIT
from models.trees import Floats, Ints, Trees, node_arrays


@dataclass(frozen=True, eq=False)
class ForestTrees:
    """All trees of a classifier as arrays over their nodes. Children of node i are `child[2i]` and
    `child[2i+1]`; a leaf's are itself. `share` is the share of the label in a leaf, in `UNIT`s."""

    roots: Ints
    feature: Ints
    threshold: Floats
    child: Ints
    share: Ints

    @classmethod
    def of(cls, forest: Any, label: Any = 1) -> ForestTrees:
        """From a fitted `sklearn.ensemble.RandomForestClassifier` of one output without missing values.

        Raises ValueError for a label that it was not trained on.
        """
        labels = list(forest.classes_)
        if label not in labels:
            raise ValueError(f"the forest was not trained on the label {label!r}; give one of {labels}")
        column = labels.index(label)

        def shares(tree: Any) -> Ints:
            weights = tree.value[:, 0, :]
            units: Ints = np.rint(weights[:, column] / weights.sum(axis=1) * UNIT).astype(np.int64)
            return units

        return cls(*node_arrays(forest.estimators_, shares))

    def share_sums(self, rows: Floats) -> Ints:
        """Shares summed over the trees, in `UNIT`s, of each row of a float32 matrix (rows, features)."""
        return self._trees.sums(rows)

    def chances(self, rows: Floats) -> npt.NDArray[np.float64]:
        """The chance of the label, 0.0 to 1.0, of each row of a float32 matrix (rows, features)."""
        return self.share_sums(rows) / np.float64(len(self.roots) * UNIT)

    @cached_property
    def _trees(self) -> Trees:
        return Trees.of(self.roots, self.feature, self.threshold, self.child, self.share)

    # What is stored is the arrays alone.

    def __getstate__(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def __setstate__(self, state: Sequence[Any]) -> None:
        for field, value in zip(fields(self), state, strict=True):
            self.__dict__[field.name] = value
