"""The decision of imaging-ingest: pure, total, and the same however the log is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.object_store import FolderStore
from streams.decide import NoState, Outcomes, Record
from streams.imaging.examine import Examined, examine
from streams.imaging.ingest import Examine, ImagingIngest
from streams.imaging.sandbox import Sandbox

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
CT = (FILES / "CT_small.dcm").read_bytes()
# One of each way of storing pixels, small enough to be read a thousand times.
KINDS = [
    (FILES / name).read_bytes()
    for name in (
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "image_dfl.dcm",
        "rtplan.dcm",
        "test-SR.dcm",
        "ExplVR_LitEndNoMeta.dcm",
    )
]


def decide(store: FolderStore, records: list[Record], by: Examine = examine) -> Outcomes:
    out = Outcomes()
    ImagingIngest(store, by).decide(NoState(), records, {}, out)
    return out


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox()
    yield box
    box.close()


def changed(change: Callable[[pydicom.Dataset], None], data: bytes = CT) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    change(dataset)
    out = BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def test_an_instance_says_what_the_file_says(store: FolderStore, upload: Callable[..., Record]) -> None:
    """The searchable attributes of a CT slice stand in its event, and its picture is in the store."""
    ((_, event),) = decide(store, [upload(CT)]).emitted
    assert event["patient_name"] == "CompressedSamples^CT1"
    assert event["patient_id"] == "1CT1"
    assert (event["study_date"], event["study_time"]) == ("20040119", "072730.000000")
    assert (event["modality"], event["rows"], event["columns"]) == ("CT", 128, 128)
    assert event["instance_number"] == 1
    assert event["transfer_syntax_uid"] == "1.2.840.10008.1.2.1"
    with Image.open(BytesIO(store.read(event["thumbnail_digest"]))) as picture:
        assert picture.size == (128, 128)
        assert np.asarray(picture).std() > 20


def test_names_in_any_script_are_unicode() -> None:
    """A Japanese name comes with all its component groups, whatever character set the file used."""
    charsets = FILES.parent / "charset_files"
    answer = examine((charsets / "chrH31.dcm").read_bytes())
    assert isinstance(answer, Examined)
    assert answer.attributes["patient_name"] == "Yamada^Tarou=山田^太郎=やまだ^たろう"


def test_odd_values_are_left_out_and_named() -> None:
    """A date, time or number that is none becomes null with a note; the rest of the file is indexed."""

    def spoil(dataset: pydicom.Dataset) -> None:
        with pydicom.config.disable_value_validation():
            dataset.StudyDate = "20230230"
            dataset.StudyTime = "2561"
            dataset["InstanceNumber"]._value = "99999999999"
            dataset.PatientSex = "F\0\0"

    answer = examine(changed(spoil))
    assert isinstance(answer, Examined)
    assert [answer.attributes[k] for k in ("study_date", "study_time", "instance_number")] == [None] * 3
    assert answer.attributes["patient_sex"] == "F"
    for keyword in ("StudyDate", "StudyTime", "InstanceNumber"):
        assert any(note.startswith(keyword) for note in answer.notes)


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"digest": "0" * 64}, "digest", "no object"),
        ({"digest": "../x"}, "digest", "not a SHA-256"),
        ({"size_bytes": 1}, "size_bytes", "the event says 1"),
        ({"study_uid": "1.2.3"}, "study_uid", "the event says '1.2.3', the file"),
        ({"sop_instance_uid": ""}, "sop_instance_uid", "the event says ''"),
    ],
)
def test_an_event_that_is_not_the_files_is_refused(
    store: FolderStore, upload: Callable[..., Record], fields: dict[str, Any], field: str, reason: str
) -> None:
    """An event whose digest, size or UIDs are not those of a stored file is a dead letter saying which."""
    out = decide(store, [upload(CT, **fields)])
    ((_, _, found_field, found_reason),) = out.dead
    assert found_field == field
    assert reason in found_reason
    assert out.emitted == []


@pytest.mark.parametrize(
    ("keyword", "value", "field"),
    [
        ("SOPClassUID", "1.2.840.10008.1.20.1", "sop_class_uid"),
        ("SOPClassUID", "1.2.3.4", "sop_class_uid"),
        ("StudyInstanceUID", "", "study_uid"),
        ("SeriesInstanceUID", "1.2.x", "series_uid"),
        ("SOPInstanceUID", "1." * 40 + "1", "sop_instance_uid"),
    ],
)
def test_a_file_without_its_uids_is_refused(
    store: FolderStore, upload: Callable[..., Record], keyword: str, value: str, field: str
) -> None:
    """A missing or malformed UID, or a class that stores nothing, is refused naming the field."""

    def spoil(dataset: pydicom.Dataset) -> None:
        with pydicom.config.disable_value_validation():
            dataset[keyword]._value = value

    ((_, _, found_field, _),) = decide(store, [upload(changed(spoil))]).dead
    assert found_field == field


def test_what_a_codec_says_is_always_the_same() -> None:
    """A codec's message that names an object by its address says the same of the same file in every run."""
    damaged = bytearray((FILES / "SC_rgb_dcmtk_+eb+cy+np.dcm").read_bytes())
    damaged[int(0.5390625 * len(damaged))] ^= 1
    answer = examine(bytes(damaged))
    assert isinstance(answer, Examined)
    assert "cannot identify image file <_io.BytesIO object>" in str(answer.thumbnail_reason)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from(KINDS),
    cut=st.none() | st.floats(0, 1),
    flips=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1), st.integers(1, 255)), max_size=30
    ),
)
def test_a_damaged_file_always_comes_to_an_answer(
    store: FolderStore,
    upload: Callable[..., Record],
    sandbox: Sandbox,
    data: bytes,
    cut: float | None,
    flips: list[tuple[float, int]],
) -> None:
    """However a real file is truncated and its bits are flipped, it is answered once, and always alike.

    Decided in the sandbox, as in the processor: this test has found files that crash a codec.
    """
    damaged = bytearray(data if cut is None else data[: int(cut * len(data))])
    for place, flip in flips:
        if damaged:
            damaged[int(place * len(damaged))] ^= flip
    record = upload(bytes(damaged))
    out, again = (decide(store, [record], sandbox.examine) for _ in range(2))
    assert len(out.emitted) + len(out.dead) == 1
    assert out.emitted == again.emitted
    assert out.dead == again.dead


@pytest.mark.parametrize("batch", [1, 2, 7, 512])
def test_answers_do_not_depend_on_the_batches(
    store: FolderStore, upload: Callable[..., Record], batch: int
) -> None:
    """The same log, duplicates and refusals in it, gives the same answers in batches of 1, 2, 7 and 512."""
    log = [upload(data, offset=n) for n, data in enumerate([*KINDS, b"", b"no dicom", *KINDS[:3], CT[:2000]])]
    whole = decide(store, log)
    cut = Outcomes()
    logic = ImagingIngest(store, examine)
    for start in range(0, len(log), batch):
        logic.decide(NoState(), log[start : start + batch], {}, cut)
    assert cut == whole
    assert len(whole.emitted) + len(whole.dead) == len(log)


def test_a_file_that_was_cut_within_its_pixels_says_so(
    store: FolderStore, upload: Callable[..., Record]
) -> None:
    """A compressed file without its end is refused as cut short, not as one without UIDs."""
    whole = (FILES / "MR_small_jp2klossless.dcm").read_bytes()
    ((_, _, field, reason),) = decide(store, [upload(whole[:-400])]).dead
    assert field == "file"
    assert "cut short" in reason
