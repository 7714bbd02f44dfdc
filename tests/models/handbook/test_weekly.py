"""That a week's model is what could have been known before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.fraud.labelled import read
from infra.cli._labelled_rows import rows_of
from models.entities import EntityModel
from models.handbook.protocol import DAY_MS, Fold
from models.handbook.weekly import Weekly
from tests.models.handbook.simulated import START, simulated

DAYS, TESTED_FROM = 42, 35
FIRST = int(START.astype("datetime64[D]").astype(int))


def model_of(path: Path, table: pa.Table) -> tuple[EntityModel, Weekly]:
    """The model for the week from `TESTED_FROM` on."""
    pq.write_table(table, path)
    rows = rows_of(read([path]), FIRST, FIRST + DAYS - 1, lambda _: None)
    weekly = Weekly(rows)
    return weekly.model(Fold(FIRST + TESTED_FROM)), weekly


def test_labels_that_are_not_known_yet_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels of the last seven days and the future turned round, a model is the same bit by bit."""
    monkeypatch.setattr("models.entities.TREES", 20)
    monkeypatch.setattr("models.entities.FRAUDS_MIN", 20)
    table = simulated(DAYS)
    days = table["occurred_at"].cast(pa.int64()).to_numpy() // DAY_MS - FIRST
    unknown = days >= TESTED_FROM - 7
    label = table["is_fraud"].to_numpy()
    turned = np.where(unknown, 1 - label, label).astype(np.int8)
    other = table.set_column(table.column_names.index("is_fraud"), "is_fraud", pa.array(turned))
    model, weekly = model_of(tmp_path / "a.parquet", table)
    same, _ = model_of(tmp_path / "b.parquet", other)
    for one, two in zip(model.trees.__getstate__(), same.trees.__getstate__(), strict=True):
        assert np.array_equal(one, two)
    assert (model.calibration.slope, model.calibration.offset) == (
        same.calibration.slope,
        same.calibration.offset,
    )
    assert model.calibration.slope != 1.0, "there were weeks to calibrate on"
    # What was known does matter.
    before = label.copy()
    before[np.flatnonzero(days == TESTED_FROM - 8)[::40]] ^= 1
    changed = table.set_column(table.column_names.index("is_fraud"), "is_fraud", pa.array(before))
    later, _ = model_of(tmp_path / "c.parquet", changed)
    assert not np.array_equal(later.trees.margin, model.trees.margin)
    assert set(weekly.drift(Fold(FIRST + TESTED_FROM))) == set(model.features)
