"""Isolation forests evaluated in integers, so that a score depends on its row alone.

scikit-learn sums floating point path lengths; here each leaf carries its path length in units of 2^-16
and the sum over the trees is exact. It is the same on every machine, in every order and for every size
of batch. `path_sums` is small where a row is isolated early, that is, anomalous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from models.trees import Floats, Ints, Trees, node_arrays

UNIT = 1 << 16


def mean_path_length(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean path length of an unsuccessful search in a tree of `rows` rows (Liu et al. 2008, equation 1)."""
    n = np.maximum(rows.astype(np.float64), 2.0)
    lengths = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    return np.where(rows <= 1, 0.0, np.where(rows == 2, 1.0, lengths))


@dataclass(frozen=True, eq=False)
class IsolationTrees:
    """All trees of a forest as arrays over their nodes. Children of node i are `child[2i]` and `child[2i+1]`;
    a leaf's are itself. `path` is a leaf's path length in `UNIT`s."""

    roots: Ints
    feature: Ints
    threshold: Floats
    child: Ints
    path: Ints
    depth: int

    @classmethod
    def of(cls, forest: Any) -> IsolationTrees:
        """From a fitted `sklearn.ensemble.IsolationForest` that gives every tree all features."""
        depth = 0

        def paths(tree: Any) -> Ints:
            nonlocal depth
            level = np.zeros(tree.node_count, dtype=np.int64)
            for node in np.flatnonzero(tree.children_left >= 0):  # a child's number is above its parent's
                level[tree.children_left[node]] = level[tree.children_right[node]] = level[node] + 1
            depth = max(depth, int(level.max()))
            length = level + mean_path_length(tree.n_node_samples.astype(np.int64))
            return np.rint(length * UNIT).astype(np.int64)

        return cls(*node_arrays(forest.estimators_, paths), depth)

    def path_sums(self, rows: Floats) -> Ints:
        """Path length summed over the trees, in `UNIT`s, of each row of a matrix (rows, features)."""
        return self._trees.sums(rows)

    @cached_property
    def _trees(self) -> Trees:
        return Trees.of(self.roots, self.feature, self.threshold, self.child, self.path)

    # What is stored is the arrays alone: a list, as in the artifacts of every earlier version.

    def __getstate__(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def __setstate__(self, state: Sequence[Any]) -> None:
        for field, value in zip(fields(self), state, strict=True):
            self.__dict__[field.name] = value
