"""Events of uploads: what makes two of them the same, and what they never carry."""

from __future__ import annotations

import json
import random
from io import BytesIO
from itertools import islice
from pathlib import Path

import fastavro
import pytest

from connectors.imaging.traffic import steps
from connectors.imaging.uploads import upload_event
from connectors.traffic import Http, Raw
from infra.dicom import Identity, Unacceptable, identify
from infra.object_store import StoredObject
from schemas.declare import Topic
from schemas.imaging import DICOM_INSTANCES, DICOM_UPLOADS, PIPELINE

STORED = StoredObject("ab" * 32, 7)
IDENTITY = Identity("1.2", "1.2.3", "1.2.3.4", "1.2.840.10008.5.1.4.1.1.2")


def event_id(tenant: str = "t", digest: str = "ab" * 32, client_id: str = "") -> str:
    stored = StoredObject(digest, 7)
    event = upload_event(stored, IDENTITY, tenant=tenant, source="stow", filename=None, client_id=client_id)
    return str(event["event_id"])


def test_a_retry_has_the_same_id_and_anything_else_another() -> None:
    """Tenant, content and the client's own id make the event's id, and nothing else does."""
    assert event_id() == event_id()
    others = {event_id(), event_id(tenant="u"), event_id(digest="cd" * 32), event_id(client_id="2")}
    assert len(others) == 4


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/jo/Doe^Jane/scan.dcm", "scan.dcm"),
        ("C:\\patients\\scan.dcm", "scan.dcm"),
        ("a\0b\n.dcm", "a b .dcm"),
        ("x" * 400, "x" * 199 + "…"),
        ("folder/", None),
        (None, None),
    ],
)
def test_a_file_name_is_one_line_without_folders(given: str | None, kept: str | None) -> None:
    """Folders may name people, and control characters no database keeps."""
    event = upload_event(STORED, IDENTITY, tenant="t", source="form", filename=given)
    assert event["filename"] == kept


def test_a_file_without_identity_is_keyed_by_its_digest() -> None:
    """Such files spread over the partitions, and no study's key can be mistaken for theirs."""
    event = upload_event(STORED, None, tenant="t", source="folder", filename="x")
    assert event["study_uid"] == "sha256:" + "ab" * 32
    assert (event["series_uid"], event["sop_instance_uid"]) == ("", "")


@pytest.mark.parametrize("topic", [DICOM_UPLOADS, DICOM_INSTANCES], ids=lambda t: t.name)
def test_the_examples_are_valid(topic: Topic) -> None:
    """Every example event of a topic is one of its schema, with all its fields."""
    examples = json.loads((topic.schema_path.parent / "examples" / f"{topic.name}.json").read_text())
    assert examples
    for example in examples:
        fastavro.validate(example, fastavro.parse_schema(topic.schema), strict=True)
    assert topic in PIPELINE.topics


def test_traffic_is_endless_lifelike_and_repeatable() -> None:
    """The same seed gives the same studies; among them repeats, hidden damage and poison."""
    first, again = (list(islice(steps(random.Random(3), lambda: 1_700_000_000_000), 620)) for _ in range(2))
    assert first == again
    files = []
    for step in first:
        if isinstance(step, Http):
            content = step.content or step.files["files"][1]  # type: ignore[index]
            files.append(content[content.index(b"DICM") - 128 :])
    studies = {identify(BytesIO(f)).study_uid for f in files}
    assert 20 < len(studies) < len(files)
    assert sum(isinstance(s, Raw) for s in first) == 6


def test_identity_is_found_where_elements_are_out_of_order(tmp_path: Path) -> None:
    """A file whose tags do not ascend is read whole, as the processor will read it."""

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        header = group.to_bytes(2, "little") + number.to_bytes(2, "little")
        return header + vr + len(value).to_bytes(2, "little") + value

    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    late = element(0x20, 0x11, b"IS", b"1 ") + element(8, 0x18, b"UI", b"1.2.3")
    head = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2") + element(0x20, 0x0D, b"UI", b"1.2.1")
    file = b"\0" * 128 + b"DICM" + meta + head + element(0x20, 0x0E, b"UI", b"1.2.2") + late
    assert identify(BytesIO(file)).sop_instance_uid == "1.2.3"
    with pytest.raises(Unacceptable, match="SOPInstanceUID"):
        identify(BytesIO(file[: -len(late)]))


def test_a_file_of_countless_elements_is_refused_at_the_door() -> None:
    """An upload cannot keep the gateway busy with millions of elements of nothing."""
    meta = b"\x02\x00\x10\x00UI\x12\x001.2.840.10008.1.2\0"
    file = b"\0" * 128 + b"DICM" + meta + b"\x08\x00\x05\x00\0\0\0\0" * 200_000
    with pytest.raises(Unacceptable, match="more than 50000 elements"):
        identify(BytesIO(file))
