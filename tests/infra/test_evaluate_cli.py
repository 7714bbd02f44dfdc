"""`millrace models evaluate fraud` on simulated transactions, from the file to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from infra.cli import build
from models.drift import NOTABLE
from models.entities import FEATURES
from tests.models.handbook.simulated import simulated

DAYS = 49


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["models", "evaluate", "fraud", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the file is, and what was said of it."""
    folder = tmp_path_factory.mktemp("evaluate")
    pq.write_table(simulated(DAYS), folder / "simulated.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.entities.TREES", 100)
        arguments = (str(folder / "simulated.parquet"), "--weeks", "2", "--report", str(folder / "report"))
        result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    (folder / "said.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def figures(folder: Path) -> Any:
    return json.loads((folder / "report" / "report.json").read_text())


def test_weeks_are_the_last_of_the_file(figures: Any) -> None:
    """The simulation ends on day 48: its last two weeks are tested, and nothing is published of them."""
    assert figures["weeks"]["tested_from"] == ["2023-02-06", "2023-02-13"]
    assert all(
        m["published"] is None and m["reproduced"] is None for m in figures["table"]["models"].values()
    )


def test_models_learn_from_little_and_cannot_know_all(figures: Any) -> None:
    """A few hundred frauds teach each model to rank them far above others, ours best, and none perfectly."""
    mean = {name: m["mean"]["average_precision"] for name, m in figures["weeks"]["models"].items()}
    assert mean.pop("perfect order") == 1.0 and len(mean) == 3
    base_rate = figures["frauds"] / figures["rows"]
    assert all(10 * base_rate < precision < 0.98 for precision in mean.values()), mean
    assert max(mean, key=lambda name: mean[name]) == "boosted trees, ours"


def test_chances_say_more_than_the_base_rate(figures: Any) -> None:
    """Even where fraud has just begun, and calibration lags, chances tell more than its base rate."""
    calibration = figures["calibration"]
    assert 1 / 3 < calibration["expected_frauds"] / calibration["frauds"] < 3
    assert calibration["brier"] < calibration["brier_of_the_base_rate"]
    assert sum(b["rows"] for b in calibration["bins"]) > 1_000


def test_every_feature_is_watched_for_drift(folder: Path, figures: Any) -> None:
    """A simulation that has just begun drifts in what counts long windows, and not in the hour of the day."""
    drift = figures["drift"]
    assert set(drift) == set(FEATURES) and drift["hour_of_day"] < NOTABLE < drift["customer_count_90d"]
    assert "features have drifted" in (folder / "said.txt").read_text()


def test_the_page_shows_what_was_said(folder: Path, figures: Any) -> None:
    """The page has every table's figures and three plots, and loads nothing from elsewhere."""
    page = (folder / "report" / "report.html").read_text()
    said = (folder / "said.txt").read_text()
    for name, model in figures["weeks"]["models"].items():
        words = f"{model['mean']['average_precision']:.3f}"
        assert name in page and words in page and name in said and words in said
    assert page.count("<svg") == 3 and "http" not in page and "src=" not in page
    for svg in page.split("<figcaption>")[1:]:
        drawing = svg[svg.index("<svg") : svg.index("</svg>") + 6]
        assert len(list(ElementTree.fromstring(drawing).iter("path"))) > 8


def test_a_file_too_short_is_refused(tmp_path: Path) -> None:
    """Twenty days cannot teach, wait and test: the sentence says what would."""
    pq.write_table(simulated(20, customers=20, terminals=20), tmp_path / "short.parquet")
    refused = evaluate(str(tmp_path / "short.parquet"))
    assert refused.exit_code == 2 and "span 20 days" in " ".join(refused.output.split())
