"""Model artifacts in the object store: stored by the hash of their bytes, refused where it differs.

An artifact is a joblib file `models/<sha256>.joblib`, with a card `models/<sha256>.json` that says what
it is. A joblib file is a pickle, and loading one runs its code: only a file whose hash stands in the
table `versions` is ever loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib


class ArtifactError(RuntimeError):
    """An artifact that is missing, altered, or of another scikit-learn; the message gives the remedy."""


def store_artifact(object_store: Path, value: Any, card: dict[str, Any]) -> str:
    """Store `value` and its card; returns the sha256 of its bytes. The card gains hash and versions."""
    out = io.BytesIO()
    joblib.dump(value, out)
    body = out.getvalue()
    sha256 = hashlib.sha256(body).hexdigest()
    described = card | {"sha256": sha256, "bytes": len(body), "sklearn": version("scikit-learn")}
    path = _path(object_store, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, body)
    _write(path.with_suffix(".json"), json.dumps(described, indent=2, sort_keys=True).encode())
    return sha256


def store_form(object_store: Path, body: bytes) -> str:
    """Store a model's ONNX form as `models/<sha256>.onnx`; returns the sha256 of its bytes."""
    sha256 = hashlib.sha256(body).hexdigest()
    path = _path(object_store, sha256).with_suffix(".onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, body)
    return sha256


def load_artifact(object_store: Path, sha256: str) -> Any:
    """The value of the artifact `sha256`. Raises `ArtifactError`."""
    path = _path(object_store, sha256)
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"model {sha256[:12]} is not in {path.parent}; copy it there, or train one with `millrace models"
            " train fraud`"
        ) from None
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{path} has the hash {found[:12]} instead of {sha256[:12]}: it was altered and will not be"
            " loaded; restore it from a copy, or train a new model"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return joblib.load(io.BytesIO(body))
        except UserWarning as other:  # sklearn's InconsistentVersionWarning: scores could differ silently
            raise ArtifactError(
                f"model {sha256[:12]} was trained with another scikit-learn than"
                f" {version('scikit-learn')};"
                f" train it again or install that version ({other})"
            ) from other


def _path(object_store: Path, sha256: str) -> Path:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise ArtifactError(f"{sha256!r} is not a sha256; give the 64 hex digits in the table versions")
    return object_store / "models" / f"{sha256}.joblib"


def _write(path: Path, body: bytes) -> None:
    # Renamed into place: a reader finds the whole file or none.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
