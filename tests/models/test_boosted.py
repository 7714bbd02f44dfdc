"""Boosted trees in integers against scikit-learn's, and what their margins mean."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from models.boosted import LOG_ODDS_MAX, UNIT, BoostedTrees, Calibration
from models.entities import train
from models.onnx_form import PARITY, ParityError, chances, check_parity, onnx_form
from models.trees import Floats

ROWS = 6_000


def rows_and_labels(seed: int) -> tuple[Floats, Any]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(ROWS, 12)).astype(np.float32)
    rows[:, 3] = np.rint(rows[:, 3] * 3)  # ties, and thresholds between integers
    chance = 1 / (1 + np.exp(4 - 2 * rows[:, 0] - 1.5 * rows[:, 3] * (rows[:, 1] > 0)))
    return rows, random.random(ROWS) < chance


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Floats]:
    rows, labels = rows_and_labels(1)
    return train(rows, labels), rows_and_labels(2)[0]


def test_margins_agree_with_scikit_learn(fitted: tuple[Any, Floats]) -> None:
    """The integer trees give scikit-learn's log-odds, to within the rounding of their leaves."""
    model, rows = fitted
    margins = BoostedTrees.of(model).margins(rows)
    assert np.abs(margins / UNIT - model.decision_function(rows)).max() < 400 / UNIT


def test_a_margin_depends_on_its_row_alone(fitted: tuple[Any, Floats]) -> None:
    """A row has the same margin in a batch of any size and at any place, and after being stored."""
    trees = BoostedTrees.of(fitted[0])
    rows = fitted[1][:300]
    whole = trees.margins(rows)
    assert (trees.margins(rows[::-1])[::-1] == whole).all()
    assert all(trees.margins(rows[n : n + 1])[0] == whole[n] for n in range(0, 300, 7))
    assert (pickle.loads(pickle.dumps(trees)).margins(rows) == whole).all()


def test_training_repeats() -> None:
    """The same rows give the same trees."""
    rows, labels = rows_and_labels(3)
    first, second = (BoostedTrees.of(train(rows, labels)).margins(rows) for _ in range(2))
    assert (first == second).all()


def test_what_is_thinned_out_keeps_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model taught on every fourth genuine row expects about as many frauds as there are, not more."""
    monkeypatch.setattr("models.entities.GENUINE_ROWS_MAX", 1_500)
    rows, labels = rows_and_labels(4)
    margins = BoostedTrees.of(train(rows, labels)).margins(rows)
    expected = (1 / (1 + np.exp(-margins / UNIT))).sum()
    assert abs(expected / labels.sum() - 1) < 0.25


def test_models_of_other_kinds_are_refused() -> None:
    """Trees of three classes have no one margin."""
    rows, _ = rows_and_labels(5)
    three = HistGradientBoostingClassifier(max_iter=2).fit(rows, np.arange(ROWS) % 3)
    with pytest.raises(ValueError, match="more than two classes"):
        BoostedTrees.of(three)


def test_too_few_frauds_are_refused() -> None:
    """A model taught on a handful of frauds would guess: it says how many it needs."""
    rows, _ = rows_and_labels(6)
    with pytest.raises(
        ValueError, match="there are 49 frauds and 5951 others to learn from; give 50 of each"
    ):
        train(rows, np.arange(ROWS) < 49)


def test_a_calibration_finds_the_line_that_labels_were_drawn_by() -> None:
    """Slope and offset come back, and chances are those of the log-odds, in order, between 0 and 1."""
    random = np.random.default_rng(7)
    margins = np.rint(random.normal(-3, 2, 60_000) * UNIT).astype(np.int64)
    labels = random.random(len(margins)) < 1 / (1 + np.exp(1.0 - 0.7 * margins / UNIT))
    found = Calibration.of(margins, labels)
    assert abs(found.slope - 0.7) < 0.03 and abs(found.offset + 1.0) < 0.06
    chances = found.of_margins(np.sort(margins))
    assert (np.diff(chances) >= 0).all() and 0 < chances[0] < chances[-1] < 1
    far = Calibration.line(1.0, 0.0).of_margins(np.array([-1000 * UNIT, 0, 1000 * UNIT]))
    assert np.allclose(far, 1 / (1 + np.exp([LOG_ODDS_MAX, 0, -LOG_ODDS_MAX])))


def test_a_calibration_against_the_order_is_refused() -> None:
    """Labels that fall as margins rise, or all of one kind, teach nothing."""
    margins = np.arange(-500, 500) * (UNIT // 100)
    with pytest.raises(ValueError, match="higher margins would mean lower chances"):
        Calibration.of(margins, margins < 0)
    with pytest.raises(ValueError, match="all of one kind"):
        Calibration.of(margins, margins < 10**9)


def test_the_onnx_form_says_the_same(fitted: tuple[Any, Floats]) -> None:
    """An ONNX runtime gives scikit-learn's chances, and ours, also next to thresholds."""
    model, rows = fitted
    trees, line = BoostedTrees.of(model), Calibration.line(1.0, 0.0)
    near = np.nextafter(trees.threshold[:ROWS, None], np.float32(np.inf)) * np.ones((1, 12), np.float32)
    asked = np.concatenate([rows, trees.threshold[:ROWS, None] * np.ones((1, 12), np.float32), near])
    asked = np.ascontiguousarray(asked[np.isfinite(asked).all(axis=1)], dtype=np.float32)
    body = onnx_form(trees, line, [f"feature {n}" for n in range(12)])
    assert np.abs(chances(body, asked) - model.predict_proba(asked)[:, 1]).max() < 1e-5
    assert check_parity(body, trees, line, asked) <= PARITY


def test_an_onnx_form_of_another_model_is_told(fitted: tuple[Any, Floats]) -> None:
    """A form that says otherwise than the model is refused with the distance."""
    model, rows = fitted
    trees = BoostedTrees.of(model)
    body = onnx_form(trees, Calibration.line(1.0, 0.5), ["x"] * 12)
    with pytest.raises(ParityError, match="do not use it"):
        check_parity(body, trees, Calibration.line(1.0, 0.0), rows)
