"""The model of fraud: its features, its training, and that its artifact is what was stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from models.artifacts import ArtifactError, load_artifact, store_artifact
from models.fraud import FEATURES, RISK_STEPS, FraudModel, features_of, matrix, risk_limits, train
from models.isolation import UNIT, IsolationTrees, mean_path_length
from models.trees import Floats


def decision(rng: Random) -> dict[str, Any]:
    amount = int(rng.lognormvariate(8, 1))
    counts = sorted(rng.randrange(1, 30) for _ in range(4))
    counts_of = dict(zip(("10m", "1h", "24h", "7d"), counts, strict=True))
    windows = {f"count_{w}": n for w, n in counts_of.items()} | {
        f"sum_{w}_minor": amount * n for w, n in counts_of.items()
    }
    return {
        "amount_minor": amount,
        "occurred_at": 1_700_000_000_000 + rng.randrange(10**9),
        **windows,
        "max_24h_minor": amount * 2,
        "merchants_24h": rng.randrange(1, counts[2] + 1),
        "max_7d_minor": amount * 3,
        "since_previous_ms": rng.choice([None, rng.randrange(10**8)]),
        "country": rng.choice([None, "IE", "FR"]),
        "home_country": "IE",
        "channel": rng.choice(["ONLINE", "PRESENT"]),
    }


def vectors_of(rows: list[dict[str, Any]]) -> Floats:
    return matrix(features_of(rows))


ROWS = [decision(Random(n)) for n in range(1500)]


@pytest.fixture(scope="module")
def artifact() -> Mapping[str, Any]:
    return train(ROWS)


def test_features_are_what_they_say() -> None:
    """Each feature of a known decision has the value that its description gives."""
    row = {
        "amount_minor": 300,
        "occurred_at": 1_762_048_800_000,  # Sunday 2025-11-02, 02:00 UTC
        "count_10m": 1,
        "sum_10m_minor": 300,
        "count_1h": 1,
        "sum_1h_minor": 300,
        "max_24h_minor": 301,
        "merchants_24h": 2,
        "max_7d_minor": 302,
        "count_24h": 2,
        "sum_24h_minor": 400,
        "count_7d": 3,
        "sum_7d_minor": 500,
        "since_previous_ms": 7_200_999,
        "country": "FR",
        "home_country": "IE",
        "channel": "ONLINE",
    }
    first = row | {"count_7d": 1, "sum_7d_minor": 300, "since_previous_ms": None, "country": None}
    monday = row | {"occurred_at": 1_762_128_000_000}
    whole, of_first, on_monday = vectors_of([row, first, monday]).tolist()
    assert whole == [300, 1, 300, 2, 400, 3, 500, 300, 7200, 2, 1, 1, 1, 1, 300, 301, 2, 302]
    said = dict(zip(FEATURES, of_first, strict=True))
    assert (said["amount_pct_of_mean_7d"], said["since_previous_s"], said["foreign"]) == (100, 604_800, 0)
    assert dict(zip(FEATURES, on_monday, strict=True))["weekend"] == 0


def test_path_sums_agree_with_scikit_learn(artifact: Mapping[str, Any]) -> None:
    """The integer forest gives scikit-learn's scores, to within the rounding of its leaves."""
    rows = vectors_of(ROWS)
    forest = IsolationForest(n_estimators=100, random_state=0).fit(rows)
    norm = mean_path_length(np.array([forest.max_samples_]))[0]
    ours = -(2.0 ** (-artifact["trees"].path_sums(rows) / UNIT / (100 * norm)))
    assert np.abs(ours - forest.score_samples(rows)).max() < 1e-6


def test_thresholds_between_neighbouring_numbers_are_kept() -> None:
    """Rows that differ by the last bit of a float32 take the branches that scikit-learn takes."""
    # At 10^9 neighbours are 64 apart: a threshold rounded to the nearest would often be the upper one.
    rows = np.array([(1e9 + 64 * n, 1e9 + 64 * (n * 7 % 40)) for n in range(40)], dtype=np.float32)
    forest = IsolationForest(n_estimators=50, random_state=1).fit(rows)
    norm = mean_path_length(np.array([forest.max_samples_]))[0]
    ours = -(2.0 ** (-IsolationTrees.of(forest).path_sums(rows) / UNIT / (50 * norm)))
    assert np.abs(ours - forest.score_samples(rows)).max() < 1e-6


def test_a_score_depends_on_its_row_alone(artifact: Mapping[str, Any]) -> None:
    """A row has the same path sum in a batch of any size and at any place."""
    rows = vectors_of(ROWS[:300])
    trees = artifact["trees"]
    whole = trees.path_sums(rows)
    assert all(trees.path_sums(rows[n : n + 1])[0] == whole[n] for n in range(len(rows)))
    assert (trees.path_sums(rows[::-1])[::-1] == whole).all()


def test_risk_is_calibrated_on_the_training_rows(artifact: Mapping[str, Any]) -> None:
    """The share of training rows at or above a risk is the share that the risk stands for."""
    model = FraudModel.of(1, artifact)
    risks = model.scores(features_of(ROWS)).risk
    for risk, share in ((0.25, 0.1), (0.5, 0.01)):
        assert abs((risks >= risk).mean() - share) < 0.2 * share
    order = np.argsort(model.trees.path_sums(vectors_of(ROWS)))
    assert (np.diff(risks[order]) <= 0).all(), "a row that is isolated earlier is never less risky"


def test_few_rows_reach_no_high_risk() -> None:
    """What the training rows are too few to say is not said: 99 rows end at 1 in 100."""
    limits = risk_limits(np.arange(1, 100, dtype=np.int64))
    nought = np.zeros(1, np.int64)
    leaf = IsolationTrees(nought, nought, np.zeros(1, np.float32), np.zeros(2, np.int64), nought, depth=0)
    model = FraudModel(1, FEATURES, leaf, limits)
    assert model.scores(features_of(ROWS[:1])).risk == [0.5]
    assert (np.diff(limits) <= 0).all() and len(limits) == RISK_STEPS


def test_training_repeats(artifact: Mapping[str, Any], tmp_path: Path) -> None:
    """The same rows give the same artifact, byte for byte."""
    assert store_artifact(tmp_path, train(ROWS), {}) == store_artifact(tmp_path, artifact, {})


def test_too_few_rows_are_refused() -> None:
    """Training on a handful says how many rows it needs."""
    with pytest.raises(ValueError, match="there are 10 rows to train on; give at least 256"):
        train(ROWS[:10])


def test_artifacts_come_back(artifact: Mapping[str, Any], tmp_path: Path) -> None:
    """An artifact is found under its hash, with a card that says what it is, and scores the same."""
    sha256 = store_artifact(tmp_path, artifact, {"rows": artifact["rows"]})
    card = json.loads((tmp_path / "models" / f"{sha256}.json").read_text())
    assert (card["sha256"], card["rows"]) == (sha256, 1500) and card["sklearn"]
    some = features_of(ROWS[:50])
    loaded = FraudModel.of(1, load_artifact(tmp_path, sha256))
    assert (loaded.scores(some).risk == FraudModel.of(1, artifact).scores(some).risk).all()


def test_an_altered_artifact_is_refused(artifact: Mapping[str, Any], tmp_path: Path) -> None:
    """A file whose bytes are not those of its name is not loaded; nor is one that is missing."""
    sha256 = store_artifact(tmp_path, artifact, {})
    path = tmp_path / "models" / f"{sha256}.joblib"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="was altered and will not be loaded"):
        load_artifact(tmp_path, sha256)
    with pytest.raises(ArtifactError, match="copy it there, or train one"):
        load_artifact(tmp_path, "0" * 64)
    with pytest.raises(ArtifactError, match="is not a sha256"):
        load_artifact(tmp_path, "../../etc/passwd")


def test_another_scikit_learn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of another scikit-learn is refused, as it could score otherwise without a word."""
    monkeypatch.setattr("sklearn.base.__version__", "0.0.1")
    sha256 = store_artifact(tmp_path, IsolationForest(n_estimators=2).fit(vectors_of(ROWS[:300])), {})
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"another scikit-learn .*train it again"):
        load_artifact(tmp_path, sha256)


def test_a_model_of_unknown_features_is_refused(artifact: Mapping[str, Any]) -> None:
    """A model trained on a feature that this code does not compute names it."""
    with pytest.raises(ValueError, match=r"features that this code does not compute \(speed\)"):
        FraudModel.of(1, {**artifact, "features": ("speed", *FEATURES[1:])})


def test_a_model_of_fewer_features_still_scores() -> None:
    """A model from before a feature was added scores by those that it knows: a replay needs it."""
    names = FEATURES[:13]
    rows = matrix(features_of(ROWS), names)
    trees = IsolationTrees.of(IsolationForest(n_estimators=20, random_state=0).fit(rows))
    limits = risk_limits(np.sort(trees.path_sums(rows)))
    model = FraudModel.of(1, {"features": names, "trees": trees, "limits": limits})
    changed = [row | {"count_10m": 99} for row in ROWS]
    scores = model.scores(features_of(ROWS))
    assert scores.chance is None and scores.risk.max() > 0.5
    assert (model.scores(features_of(changed)).risk == scores.risk).all()


def test_known_frauds_teach_a_forest(artifact: Mapping[str, Any]) -> None:
    """Where rows say which of them were frauds, the model gives frauds a high chance and others a low one."""
    taught = train([row | {"is_fraud": row["count_1h"] > 15} for row in ROWS])
    model, found = FraudModel.of(1, taught), features_of(ROWS)
    chance = model.scores(found).chance
    assert chance is not None and taught["frauds"] == (is_fraud := found["count_1h"] > 15).sum()
    assert chance[is_fraud].min() > 0.5 > chance[~is_fraud].max()
    scores = model.scores(found)
    assert (scores.risk == 1 - (1 - scores.rarity) * (1 - chance)).all()
    assert artifact["forest"] is None and artifact["frauds"] == 0


def test_few_known_frauds_teach_nothing() -> None:
    """Frauds too few to learn from give no forest, nor do rows of which nobody knows."""
    assert train([row | {"is_fraud": n < 49} for n, row in enumerate(ROWS)])["forest"] is None
    unknown = [row | {"is_fraud": True if n < 60 else None} for n, row in enumerate(ROWS)]
    assert train(unknown)["forest"] is None
