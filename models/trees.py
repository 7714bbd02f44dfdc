"""An ensemble of decision trees laid out for the compiled loops (`tree_walk`).

A tree's nodes are 8 bytes each, by level, siblings side by side. A node is

    key << 32 | feature << 24 | index of its left child within the tree

where a row goes right if its value is above the threshold that the key stands for. A leaf is its own left
child, and its key is above all: walking on from it stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models import tree_walk

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

FEATURES_MAX = 1 << 8
NODES_MAX = 1 << 24
"""Of one tree."""

_ABOVE_ALL = np.iinfo(np.int32).max


def not_above(thresholds: npt.NDArray[np.float64]) -> Floats:
    """The largest float32 not above each: `x <= threshold` then means the same for every float32 x."""
    rounded = thresholds.astype(np.float32)
    above = rounded.astype(np.float64) > thresholds
    return np.where(above, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float32)


def node_arrays(
    estimators: Iterable[Any], values: Callable[[Any], Ints]
) -> tuple[Ints, Ints, Floats, Ints, Ints]:
    """What `Trees.of` takes, from scikit-learn's fitted trees; `values` gives those of a `tree_`'s nodes."""
    roots, features, thresholds, children, found = [], [], [], [], []
    offset = 0
    for estimator in estimators:
        tree = estimator.tree_
        nodes = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        roots.append(offset)
        features.append(np.where(leaf, 0, tree.feature))
        thresholds.append(not_above(np.where(leaf, np.inf, tree.threshold)))
        pair = [np.where(leaf, nodes, tree.children_left), np.where(leaf, nodes, tree.children_right)]
        children.append(np.stack(pair, axis=1).ravel() + offset)
        found.append(np.where(leaf, values(tree), 0))
        offset += tree.node_count
    return (
        np.array(roots, dtype=np.int64),
        np.concatenate(features).astype(np.int64),
        np.concatenate(thresholds),
        np.concatenate(children).astype(np.int64),
        np.concatenate(found).astype(np.int64),
    )


@dataclass(slots=True, frozen=True, eq=False)
class Trees:
    """Trees ready for the loops.

    `values`: what each of `nodes` adds to the sum if it is the leaf. `choices`: the nodes that are no leaves
    again, children before parents, as (key, feature, left child, node). `trees`: of each tree the first node,
    the depth, the first choice, how many, and 1 where it may be evaluated whole. `width`: how many features a
    row must have.
    """

    nodes: npt.NDArray[np.uint64]
    values: Ints
    choices: npt.NDArray[np.int32]
    trees: Ints
    width: int

    @classmethod
    def of(cls, roots: Ints, feature: Ints, threshold: Floats, child: Ints, value: Ints) -> Trees:
        """From arrays over all nodes; `roots` are the trees' first nodes. A row goes to `child[2i + 1]` where
        its `feature[i]` is above `threshold[i]`, else to `child[2i]`; a leaf's are itself.

        Raises ValueError for a node that is its own descendant, and for trees beyond the layout's bounds.
        """
        pairs = child.reshape(-1, 2)
        is_leaf = pairs[:, 0] == np.arange(len(pairs))
        used = np.where(is_leaf, 0, feature)
        if used.min() < 0 or used.max() >= FEATURES_MAX:
            raise ValueError(
                f"features {used.min()} to {used.max()} are compared; give 0 to {FEATURES_MAX - 1}"
            )
        keys = np.empty(len(pairs), dtype=np.int32)
        tree_walk.keys(np.ascontiguousarray(threshold, dtype=np.float32).view(np.uint32), keys)
        keys[is_leaf] = _ABOVE_ALL
        orders, lefts, choices, trees = [], [], [], []
        nodes_total = choices_total = 0
        for root in roots:
            order, depth = _by_level(root, pairs, is_leaf)
            inner = np.flatnonzero(~is_leaf[order])
            left = np.arange(len(order))
            left[inner] = 1 + 2 * np.arange(
                len(inner)
            )  # each pair of children follows those of the node before
            choice = np.stack([keys[order[inner]], used[order[inner]], left[inner], inner], axis=1)
            # What trees evaluated whole add up to is an int32.
            is_small = (
                len(inner) <= tree_walk.WHOLE_CHOICES
                and int(np.abs(value[order]).max()) * len(roots) < 1 << 31
            )
            trees.append((nodes_total, depth, choices_total, len(inner), int(is_small)))
            orders.append(order)
            lefts.append(left)
            choices.append(choice[::-1])
            nodes_total += len(order)
            choices_total += len(inner)
        order = np.concatenate(orders)
        where = used[order] << 24 | np.concatenate(lefts)
        choices.append(np.zeros((1, 4), dtype=np.int64))  # the loop points to the next, if there is none too
        return cls(
            keys[order].view(np.uint32).astype(np.uint64) << np.uint64(32) | where.astype(np.uint64),
            np.ascontiguousarray(value[order], dtype=np.int64),
            np.concatenate(choices).astype(np.int32),
            np.array(trees, dtype=np.int64),
            int(used.max()) + 1,
        )

    def sums(self, rows: Floats) -> Ints:
        """For each row of a float32 matrix (rows, features) the values of its leaves, one a tree, summed.

        NaN is above no threshold. Raises ValueError where rows have fewer features than the trees compare.
        """
        if rows.ndim != 2 or rows.shape[1] < self.width:
            raise ValueError(
                f"the rows have the shape {rows.shape}; give (rows, at least {self.width} features)"
            )
        sums = np.zeros(len(rows), dtype=np.int64)
        bits = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32)
        tree_walk.add_values(self.nodes, self.values, self.choices, self.trees, bits, sums)
        return sums


def _by_level(root: int, pairs: Ints, is_leaf: npt.NDArray[np.bool_]) -> tuple[Ints, int]:
    """A tree's nodes by level, from left to right, and its depth."""
    levels = [np.array([root], dtype=np.int64)]
    size = 1
    while len(inner := levels[-1][~is_leaf[levels[-1]]]):
        levels.append(pairs[inner].ravel())
        size += len(levels[-1])
        if size > len(pairs):
            raise ValueError("a node is its own descendant; give trees that end in leaves")
    if size > NODES_MAX:
        raise ValueError(f"a tree has {size} nodes; give trees of at most {NODES_MAX}")
    return np.concatenate(levels), len(levels) - 1
