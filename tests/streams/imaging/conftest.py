"""Uploads of DICOM files as the records that the processor is given."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from infra.dicom import Unacceptable, identify
from infra.object_store import FolderStore
from schemas.imaging import DICOM_UPLOADS
from streams.decide import Record

Upload = Callable[..., Record]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "objects")


@pytest.fixture
def upload(store: FolderStore) -> Upload:
    """Store a file's bytes and make the record a connector would write; keywords replace its fields."""

    def of(data: bytes, offset: int = 0, **fields: Any) -> Record:
        stored = store.put(data)
        try:
            identity = identify(BytesIO(data))
            uids = (identity.study_uid, identity.series_uid, identity.sop_instance_uid)
        except Unacceptable:
            uids = (f"sha256:{stored.digest}", "", "")
        event = {
            "event_id": f"upload-{stored.digest[:12]}",
            "tenant": "default",
            "occurred_at": 1_700_000_000_000,
            **dict(zip(("study_uid", "series_uid", "sop_instance_uid"), uids, strict=True)),
            "digest": stored.digest,
            "size_bytes": stored.size_bytes,
            "source": "folder",
            "filename": "scan.dcm",
        }
        return Record(DICOM_UPLOADS.name, 0, offset, 1_700_000_000_500, event | fields)

    return of
