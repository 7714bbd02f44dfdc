"""Compiled trees against the same walk in NumPy, and against scikit-learn."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import IsolationForest, RandomForestClassifier

from models import tree_walk
from models.forest import ForestTrees
from models.isolation import UNIT, IsolationTrees
from models.trees import Floats, Ints, Trees
from tests.models.plain_trees import plain_sums

FEATURES = 13


def plain_path_sums(trees: IsolationTrees, rows: Floats) -> Ints:
    return plain_sums(trees.roots, trees.feature, trees.threshold, trees.child, trees.path, rows)


@cache
def training() -> Floats:
    """Whole numbers of any size, negative ones, and fractions."""
    rng = np.random.default_rng(7)
    rows = np.rint(rng.lognormal(5, 2, (2_000, FEATURES)))
    rows[:, 1] = rng.normal(0, 1, 2_000)
    rows[:, 2] = -rows[:, 2]
    rows[:, 3] = rng.integers(0, 2, 2_000)
    return rows.astype(np.float32)


@cache
def isolation() -> IsolationTrees:
    return IsolationTrees.of(IsolationForest(n_estimators=100, random_state=0).fit(training()))


@cache
def classifier() -> RandomForestClassifier:
    rows = training()
    rng = np.random.default_rng(8)
    labels = (rows[:, 1] + rng.normal(0, 0.5, len(rows)) > 1).astype(np.int64)
    return RandomForestClassifier(100, min_samples_leaf=4, random_state=0).fit(rows, labels)


@cache
def chances() -> ForestTrees:
    return ForestTrees.of(classifier())


def values() -> st.SearchStrategy[float]:
    """Any float32, and such as thresholds are made of."""
    known = np.unique(np.concatenate([isolation().threshold, chances().threshold]))
    return (
        st.floats(width=32)
        | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf")])
        | st.sampled_from(known.tolist())
        | st.sampled_from(training().ravel()[:500].tolist())
    )


@given(st.data())
@settings(max_examples=200)
def test_sums_are_those_of_the_plain_walk(data: st.DataObject) -> None:
    """Any rows, with NaN, infinities and values on thresholds, have bit for bit the NumPy walk's sums."""
    count = data.draw(st.integers(0, 40))
    rows = data.draw(hnp.arrays(np.float32, (count, FEATURES), elements=values(), fill=values()))
    assert (isolation().path_sums(rows) == plain_path_sums(isolation(), rows)).all()
    forest = chances()
    expected = plain_sums(forest.roots, forest.feature, forest.threshold, forest.child, forest.share, rows)
    assert (forest.share_sums(rows) == expected).all()


@given(st.data())
@settings(max_examples=100)
def test_any_trees_are_walked(data: st.DataObject) -> None:
    """Trees of any shape, a single leaf too, have the sums of the NumPy walk, in batches of any size."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))

    def some(low: int, high: int, shape: int | tuple[int, int]) -> Floats:
        signs = rng.choice([-1, 1], shape)  # for -0.0
        return np.asarray(rng.integers(low, high, shape) * np.float32(1) * signs, dtype=np.float32)

    parts, roots, offset = [], [], 0
    for _ in range(data.draw(st.integers(1, 5))):
        nodes = 1 + 2 * data.draw(st.sampled_from([0, 1, 2, 10, 47, 48, 49, 300]))
        child = np.repeat(np.arange(nodes, dtype=np.int64), 2)
        leaves = [0]
        chain = data.draw(st.booleans())  # as deep as it can be, or as it comes
        for first in range(1, nodes, 2):
            node = leaves.pop(-1 if chain else rng.integers(len(leaves)))
            child[2 * node : 2 * node + 2] = [first, first + 1]
            leaves += [first, first + 1]
        parts.append(child + offset)
        roots.append(offset)
        offset += nodes
    width = data.draw(st.sampled_from([1, 3, 256]))
    least = 2 ** data.draw(st.sampled_from([20, 31, 34, 60]))
    arrays = (
        np.array(roots, dtype=np.int64),
        rng.integers(0, width, offset),
        some(-9, 9, offset),
        np.concatenate(parts).astype(np.int64),
        rng.integers(-least, least, offset) // len(roots),
    )
    rows = some(-10, 10, (data.draw(st.sampled_from([1, 7, 8, 9, 33, 300])), width))
    assert (Trees.of(*arrays).sums(rows) == plain_sums(*arrays, rows)).all()


@pytest.mark.parametrize("bytes_most", [16, 32, 64])
def test_every_vector_unit_gives_the_same(bytes_most: int) -> None:
    """A sum does not depend on the processor: every kind of vector unit that this one has gives the same."""
    assert isolation()._trees.trees[:, 4].sum() > 50, "most of these trees are evaluated whole"
    rows = training()[:333]
    expected = plain_path_sums(isolation(), rows)
    tree_walk.use_vectors(bytes_most)
    try:
        assert (isolation().path_sums(rows) == expected).all()
    finally:
        tree_walk.use_vectors(64)


def test_a_sum_depends_on_its_row_alone() -> None:
    """A row has the same sum in a batch of any size, at any place, and in a matrix of any memory layout."""
    rows = training()[:700]
    for sums in (isolation().path_sums, chances().share_sums):
        whole = sums(rows)
        assert (sums(rows[::-1])[::-1] == whole).all()
        assert (sums(np.asfortranarray(rows)) == whole).all()
        for size in (1, 2, 7, 512):
            parts = [sums(rows[start : start + size]) for start in range(0, len(rows), size)]
            assert (np.concatenate(parts) == whole).all()


def test_chances_agree_with_scikit_learn() -> None:
    """The chance of each label is scikit-learn's, to within the rounding of the leaves."""
    rng = np.random.default_rng(9)
    rows = np.concatenate([training(), rng.lognormal(3, 3, (500, FEATURES)).astype(np.float32)])
    theirs = classifier().predict_proba(rows)
    for label in (0, 1):
        ours = ForestTrees.of(classifier(), label).chances(rows)
        assert np.abs(ours - theirs[:, label]).max() <= 0.5 / UNIT + 1e-12
    assert len(np.unique(chances().share_sums(rows))) > 500


def test_a_label_that_was_not_trained_on_is_refused() -> None:
    """A classifier knows nothing of a label that it never saw, and says which it knows."""
    with pytest.raises(ValueError, match="not trained on the label 2; give one of"):
        ForestTrees.of(classifier(), 2)


def test_trees_come_back_from_a_pickle() -> None:
    """What is stored are the arrays alone, whether or not rows have been walked, and they score the same."""
    rows = training()[:50]
    for trees, sums in ((isolation(), "path_sums"), (chances(), "share_sums")):
        expected = getattr(trees, sums)(rows)
        body = pickle.dumps(trees)
        again = pickle.loads(body)
        assert pickle.dumps(again) == body
        assert (getattr(again, sums)(rows) == expected).all()


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 0)])
def test_rows_of_too_few_features_are_refused(shape: tuple[int, ...]) -> None:
    """Rows with fewer features than the trees compare are refused, never read beyond their end."""
    with pytest.raises(ValueError, match=r"at least 13 features"):
        isolation().path_sums(np.zeros(shape, dtype=np.float32))


def test_trees_without_end_are_refused() -> None:
    """A node that is its own descendant is refused when the trees are made, never walked for ever."""
    one = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="its own descendant"):
        Trees.of(one[:1], one, one.astype(np.float32), np.array([1, 1, 0, 0]), one)
    with pytest.raises(ValueError, match="features 0 to 256 are compared; give 0 to 255"):
        Trees.of(
            one[:1],
            np.array([256, 0, 0]),
            np.zeros(3, np.float32),
            np.array([1, 2, 1, 1, 2, 2]),
            np.zeros(3, np.int64),
        )
