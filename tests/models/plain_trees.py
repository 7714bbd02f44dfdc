"""The walk down trees in NumPy: what the compiled loops must agree with, and are measured against."""

from __future__ import annotations

import numpy as np

from models.trees import Floats, Ints


def plain_sums(
    roots: Ints, feature: Ints, threshold: Floats, child: Ints, value: Ints, rows: Floats, depth: int = 0
) -> Ints:
    """All rows go down all trees, a level at a time; without a `depth` until every one stands on a leaf."""
    count, width = rows.shape
    values = np.ascontiguousarray(rows).ravel()
    start = (np.arange(count, dtype=np.int64) * width)[:, np.newaxis]
    node = np.repeat(roots[np.newaxis, :], count, axis=0)
    level = 0
    while not depth or level < depth:
        right = values.take(feature.take(node) + start) > threshold.take(node)
        after = child.take(node + node + right)
        if not depth and (after == node).all():
            break
        node = after
        level += 1
    return np.asarray(value.take(node).sum(axis=1), dtype=np.int64)
