"""Every file that pydicom ships is indexed, or refused with a reason that a person can act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fastavro
import pydicom
import pytest

from infra.object_store import FolderStore
from schemas.imaging import DICOM_INSTANCES
from streams.decide import NoState, Outcomes, Record
from streams.imaging.examine import Examined, examine
from streams.imaging.ingest import ImagingIngest

DATA = Path(pydicom.__file__).parent / "data"
# What is physically in the package; get_testdata_files() would also download.
FILES = sorted(p for p in DATA.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(DATA)))
def test_a_file_is_indexed_or_refused_with_a_reason(
    path: Path, store: FolderStore, upload: Callable[..., Record]
) -> None:
    """One file comes to exactly one valid instance, or to exactly one dead letter with a reason."""
    record = upload(path.read_bytes())
    out = Outcomes()
    ImagingIngest(store, examine).decide(NoState(), [record], {}, out)
    assert len(out.emitted) + len(out.dead) == 1
    if out.dead:
        ((dead, _, field, reason),) = out.dead
        assert dead is record
        assert field in (*DICOM_INSTANCES.fields, "file")
        assert len(reason) > 8
        assert reason.isprintable()
        return
    ((topic, event),) = out.emitted
    assert topic is DICOM_INSTANCES
    fastavro.validate(event, fastavro.parse_schema(DICOM_INSTANCES.schema), strict=True)
    assert event["input_id"] == record.event["event_id"]
    assert (event["thumbnail_digest"] is None) == (event["thumbnail_reason"] is not None)
    if event["thumbnail_digest"] is not None:
        assert store.read(event["thumbnail_digest"]).startswith(b"\x89PNG")


def test_how_many_come_to_what() -> None:
    """A release of pydicom or of a codec that changes what we accept is noticed."""
    answers = Counter[str]()
    for path in FILES:
        answer = examine(path.read_bytes())
        if not isinstance(answer, Examined):
            answers["refused"] += 1
        else:
            answers["indexed" if answer.thumbnail else "indexed without thumbnail"] += 1
    assert answers == {"indexed": 96, "indexed without thumbnail": 67, "refused": 42}
