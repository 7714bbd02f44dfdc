"""`millrace models train fraud` on a real database and object store."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from infra import versions
from infra.cli import build
from infra.postgres import connect
from infra.settings import Settings
from models.artifacts import load_artifact
from models.entities import FEATURES, EntityModel
from models.fraud import FraudModel
from models.onnx_form import check_parity
from streams.fraud import PROCESSORS
from tests.models.handbook.simulated import simulated


def millrace(*arguments: str) -> Result:
    result = CliRunner().invoke(build(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_training_puts_a_model_in_force(
    database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a ledger the model learns from simulated traffic; trained again the same is not published."""
    monkeypatch.setenv("MILLRACE_OBJECT_STORE", str(tmp_path))
    with connect(database.database_url) as connection:
        before = versions.latest(connection, "fraud", ["model"])["model"]
        first = millrace("models", "train", "fraud", "--rows", "8000")
        version = versions.latest(connection, "fraud", ["model"])["model"]
        # Of 8,000 simulated transactions some are sent again, which teach nothing.
        said = re.search(rf"fraud model {version} is in force: (\d+) rows", first.output)
        assert version == before + 1 and said is not None and 7_200 < int(said[1]) < 8_000
        body = versions.body(connection, "fraud", "model", version)
        model = PROCESSORS["fraud-scoring"]().load_version("model", version, body)
        assert isinstance(model, FraudModel) and model.version == version
        assert model.forest is not None, "the simulation knows its thieves"
        assert "is the same already" in millrace("models", "train", "fraud", "--rows", "8000").output
        assert versions.latest(connection, "fraud", ["model"])["model"] == version


def test_training_from_a_file(database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that `millrace ingest fraud` knows is scored by the processor's own code and learned from."""
    monkeypatch.setenv("MILLRACE_OBJECT_STORE", str(tmp_path / "objects"))
    rows = [
        {"event_id": f"e{n}", "occurred_at": 1_700_000_000_000 + n * 60_000, "card_id": f"c{n % 9}"}
        | {"amount_minor": n * 37 % 5000, "currency": "EUR", "is_fraud": n * 37 % 5000 > 4500}
        for n in range(1200)
    ]
    path = tmp_path / "transactions.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    output = millrace("models", "train", "fraud", "--from", str(path)).output
    assert f"1200 rows, {sum(row['is_fraud'] for row in rows)} frauds among them" in output
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), other)
    refused = CliRunner().invoke(build(), ["models", "train", "fraud", "--from", str(other)])
    assert refused.exit_code == 2 and "has other columns" in refused.output


def test_a_model_of_entities_is_registered(
    database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back from the registry with its card, its ONNX form says the same, and it decides nothing."""
    monkeypatch.setenv("MILLRACE_OBJECT_STORE", str(tmp_path))
    monkeypatch.setattr("models.entities.TREES", 60)
    pq.write_table(simulated(42), tmp_path / "simulated.parquet")
    with connect(database.database_url) as connection:
        before = versions.latest(connection, "fraud", ["model", "entity-model"])
        said = millrace("models", "train", "fraud-entities", str(tmp_path / "simulated.parquet")).output
        after = versions.latest(connection, "fraud", ["model", "entity-model"])
        version = before["entity-model"] + 1
        assert after == {"model": before["model"], "entity-model": version}
        body = versions.body(connection, "fraud", "entity-model", version)
    assert f"fraud entity-model {version} is registered: {body['sha256'][:12]}" in said
    # The last day is 2023-02-12: on the day after, labels up to 2023-02-05 are known.
    dates = [body[name] for name in ("trained_from", "trained_until", "tested_from")]
    assert dates == ["2023-01-02", "2023-02-06", "2023-02-06"]
    assert 0.2 < body["average_precision"] < 1 and 0 < body["card_precision_100"] < 1
    model = EntityModel.of(load_artifact(tmp_path, body["sha256"]))
    form = (tmp_path / "models" / f"{body['onnx_sha256']}.onnx").read_bytes()
    rows = np.random.default_rng(1).uniform(-1, 50, (500, len(FEATURES))).astype(np.float32)
    check_parity(form, model.trees, model.calibration, rows)
    listed = millrace("models", "list").output
    assert f"entity-model {version} " in listed and body["sha256"][:12] in listed
