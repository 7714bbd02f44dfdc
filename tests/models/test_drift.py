"""The population stability index where its value is known."""

from __future__ import annotations

import numpy as np
import pytest

from models.drift import BINS, GRAVE, NOTABLE, Reference

RANDOM = np.random.default_rng(1)
THEN = RANDOM.normal(size=50_000)


def test_the_same_population_has_not_drifted_and_a_moved_one_has() -> None:
    """A second sample stays below what is notable, a shift by half a deviation or more does not."""
    reference = Reference.of(THEN)
    assert len(reference.edges) == BINS - 1 and reference.index(THEN) == 0
    assert reference.index(RANDOM.normal(size=5_000)) < 0.02
    assert NOTABLE < reference.index(THEN + 0.45) < GRAVE < reference.index(THEN + 0.8)


def test_the_index_is_that_of_its_formula() -> None:
    """Two bins of a half each that become a quarter and three quarters: log(3) / 4 by hand."""
    reference = Reference.of(np.array([0.0, 1.0]))
    assert reference.index(np.array([0.0, 1.0, 1.0, 1.0])) == pytest.approx(np.log(3) / 4)


def test_a_value_that_most_have_has_a_bin_of_its_own() -> None:
    """Of a feature that is nearly always 0, the share of zeros counts, and what is new counts finitely."""
    reference = Reference.of(np.array([0.0] * 95 + [1.0] * 5))
    assert reference.index(np.array([0.0] * 95 + [1.0] * 5)) == 0
    assert NOTABLE < reference.index(np.array([0.0] * 80 + [1.0] * 20)) < 10
    assert np.isfinite(reference.index(np.ones(10)))
    with pytest.raises(ValueError, match="give numbers to compare with"):
        Reference.of(np.array([np.nan]))
