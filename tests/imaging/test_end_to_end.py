"""Files go in by every door, and come out of searches, thumbnails and tables; nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pydicom
import pytest
from confluent_kafka import Producer
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from requests.exceptions import HTTPError

from connectors.imaging.files import Ingested, files_of, ingest_folder
from connectors.imaging.traffic import steps
from connectors.publish import Publisher
from connectors.traffic import Http, Raw
from infra.codec import Codec
from infra.object_store import FolderStore
from schemas.imaging import DICOM_UPLOADS
from tests.signed_in import key_of

if TYPE_CHECKING:
    from tests.imaging.conftest import Imaging

# Four processes start before the first of these tests; on a loaded machine that alone takes a minute.
pytestmark = pytest.mark.timeout(420)

DATA = Path(pydicom.__file__).parent / "data"
FILES = DATA / "test_files"
CT = (FILES / "CT_small.dcm").read_bytes()
MR = (FILES / "MR_small.dcm").read_bytes()
UNKNOWN = (FILES / "UN_sequence.dcm").read_bytes()


def multipart(*files: bytes, boundary: str = "cut-here") -> tuple[bytes, dict[str, str]]:
    parts = b"".join(
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + f + b"\r\n" for f in files
    )
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return parts + f"--{boundary}--\r\n".encode(), {"Content-Type": kind}


def stow(imaging: Imaging, *files: bytes, study: str = "", **headers: str) -> httpx.Response:
    body, kind = multipart(*files)
    path = "/dicomweb/studies" + (f"/{study}" if study else "")
    return imaging.http.post(imaging.gateway + path, content=body, headers={**kind, **headers})


def test_stow_answers_as_the_standard_says(imaging: Imaging) -> None:
    """200 with all references, 202 with some refused and why, 409 with none; another study is refused."""
    every = stow(imaging, CT, MR)
    assert every.status_code == 200
    assert every.headers["content-type"] == "application/dicom+json"
    ct = pydicom.dcmread(BytesIO(CT))
    answer = pydicom.Dataset.from_json(every.json())
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ct.SOPInstanceUID
    assert "FailedSOPSequence" not in answer

    some = stow(imaging, CT, UNKNOWN, b"no dicom")
    assert some.status_code == 202
    answer = pydicom.Dataset.from_json(some.json())
    assert len(answer.ReferencedSOPSequence) == 1
    failures = answer["OtherFailuresSequence"].value
    assert [f.FailureReason for f in failures] == [0x0122, 0xC000]
    assert "no SOPClassUID" in failures[0].TextValue
    assert "not DICOM" in failures[1].TextValue

    none = stow(imaging, CT, study="1.2.3")
    assert none.status_code == 409
    (failure,) = pydicom.Dataset.from_json(none.json()).FailedSOPSequence
    assert failure.ReferencedSOPInstanceUID == ct.SOPInstanceUID
    assert failure.FailureReason == 0x0110
    assert stow(imaging, CT, study=ct.StudyInstanceUID).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"x", {"Content-Type": "text/plain"}, 415),
        (b"x", {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=b'}, 415),
        (b"x", {"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        (multipart(CT)[0][:-20], multipart(CT)[1], 400),
        (b"garbage", multipart(CT)[1], 400),
        (multipart()[0], multipart()[1], 400),
        (*multipart(CT), 406),
    ],
)
def test_a_body_that_is_no_store_request_is_a_problem(
    imaging: Imaging, content: bytes, headers: dict[str, str], status: int
) -> None:
    """Wrong media types, cut bodies and empty ones are problem documents; nothing of them is published."""
    accept = {"Accept": "application/dicom+xml"} if status == 406 else {}
    url = f"{imaging.gateway}/dicomweb/studies"
    answer = imaging.http.post(url, content=content, headers={**headers, **accept})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_upload_says_what_became_of_each_file(imaging: Imaging) -> None:
    """202 lists accepted and refused files; a form without any DICOM file is 422 naming each."""
    files = [
        ("files", ("../secret/ct.dcm", CT, "application/dicom")),
        ("files", ("notes.txt", b"hello", "application/octet-stream")),
    ]
    answer = imaging.http.post(f"{imaging.gateway}/v1/dicom", files=files)
    assert answer.status_code == 202
    ((accepted,), (refused,)) = (answer.json()[k] for k in ("accepted", "refused"))
    assert accepted["filename"] == "ct.dcm"
    assert accepted["digest"] == hashlib.sha256(CT).hexdigest()
    assert refused["filename"] == "notes.txt"
    indexed, _ = imaging.settled({accepted["event_id"]})
    assert indexed

    none = imaging.http.post(f"{imaging.gateway}/v1/dicom", files=files[1:])
    assert none.status_code == 422
    assert none.json()["errors"][0]["field"] == "notes.txt"


def test_an_independent_client_stores_and_finds(imaging: Imaging) -> None:
    """dicomweb-client, which is nothing of ours, stores a study and finds it at all three levels."""
    study = pydicom.dcmread(BytesIO(MR))
    study.StudyInstanceUID, study.SeriesInstanceUID = "2.25.1001", "2.25.1002"
    study.PatientName, study.PatientID, study.StudyDate = "Ní^Áine=爱=あい", "QIDO_1%", "20240229"
    study.SpecificCharacterSet = "ISO_IR 192"
    images = []
    for n in (1, 2, 3):
        image = deepcopy(study)
        image.SOPInstanceUID, image.InstanceNumber = f"2.25.2000{n}", n
        images.append(image)
    key = imaging.settings.client_headers
    writer, reader = (
        DICOMwebClient(f"{url}/dicomweb", headers=key) for url in (imaging.gateway, imaging.api)
    )
    stored = writer.store_instances(images, study_instance_uid="2.25.1001")
    assert len(stored.ReferencedSOPSequence) == 3
    deadline = time.monotonic() + 90
    while len(reader.search_for_instances("2.25.1001")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    def studies(**filters: str) -> list[Any]:
        return reader.search_for_studies(search_filters=filters)

    (found,) = studies(StudyInstanceUID="2.25.1001")
    dataset = pydicom.Dataset.from_json(found)
    assert dataset.PatientName.ideographic == "爱"
    assert dataset.StudyDate == "20240229"
    assert dataset.NumberOfStudyRelatedInstances == 3
    assert dataset.ModalitiesInStudy == "MR"
    for filters in (
        {"PatientName": "ní^*"},
        {"PatientName": "あい"},
        {"PatientID": "QIDO_1%"},
        {"00100020": "QIDO?1*"},
        {"PatientID": "QIDO_1*", "StudyDate": "20240201-20240301"},
        {"PatientID": "QIDO_1*", "StudyDate": "20240229-"},
        {"PatientID": "QIDO_1*", "ModalitiesInStudy": "CT,MR"},
        {"StudyInstanceUID": "1.2.3,2.25.1001"},
    ):
        assert [s["0020000D"]["Value"] for s in studies(**filters)] == [["2.25.1001"]], filters
    for filters in (
        {"PatientID": "QIDO__%"},  # SQL's own wildcards mean nothing
        {"PatientID": "QIDO_1*", "StudyDate": "-20240228"},
        {"PatientID": "QIDO_1*", "ModalitiesInStudy": "CT"},
        {"PatientID": "' OR 1=1 --"},
    ):
        assert studies(**filters) == [], filters
    (series,) = reader.search_for_series("2.25.1001")
    assert series["0020000E"]["Value"] == ["2.25.1002"]
    instances = reader.search_for_instances("2.25.1001", "2.25.1002", limit=2, offset=1)
    assert [i["00200013"]["Value"] for i in instances] == [[2], [3]]
    assert len(reader.search_for_instances(search_filters={"InstanceNumber": "3", "Rows": "64"})) >= 1
    with pytest.raises(HTTPError, match="400"):
        studies(StudyDate="yesterday")


def test_a_search_says_what_it_cannot_do(imaging: Imaging) -> None:
    """An unknown attribute is 400 naming it; fuzzy matching and cut results are told in a Warning header."""
    url = f"{imaging.api}/dicomweb/studies"
    unknown = imaging.http.get(url, params={"PixelSpacing": "1"})
    assert unknown.status_code == 400
    assert "PixelSpacing" in unknown.json()["detail"]
    stow(imaging, CT, MR)
    deadline = time.monotonic() + 90
    while len(imaging.http.get(url).json()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cut = imaging.http.get(url, params={"limit": "1", "fuzzymatching": "true", "includefield": "all"})
    assert len(cut.json()) == 1
    assert "fuzzymatching is not supported" in cut.headers["warning"]
    assert "larger offset" in cut.headers["warning"]
    assert imaging.http.get(url, headers={"Accept": "application/dicom+xml"}).status_code == 406


def test_thumbnails_are_served_with_their_digest(imaging: Imaging) -> None:
    """A PNG with its digest as ETag, 304 where the client has it, 404 with the reason where there is none."""
    report = (FILES / "test-SR.dcm").read_bytes()
    answers = [imaging.http.post(f"{imaging.gateway}/v1/dicom", files={"f": ("x", f)}) for f in (CT, report)]
    accepted = [a.json()["accepted"][0] for a in answers]
    imaging.settled({a["event_id"] for a in accepted})
    urls = [f"{imaging.api}/v1/instances/{a['sop_instance_uid']}/thumbnail" for a in accepted]
    picture = imaging.http.get(urls[0])
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["etag"] == f'"{hashlib.sha256(picture.content).hexdigest()}"'
    with Image.open(BytesIO(picture.content)) as image:
        assert image.size == (128, 128)
    again = imaging.http.get(urls[0], headers={"If-None-Match": picture.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    none = imaging.http.get(urls[1])
    assert none.status_code == 404
    assert "no pixel data" in none.json()["detail"]
    assert imaging.http.get(f"{imaging.api}/v1/instances/1.2.3/thumbnail").status_code == 404


def test_sending_again_and_sending_other_bytes(imaging: Imaging) -> None:
    """A retry is a duplicate; a second upload is the same; other bytes under a known UID are conflicting."""
    first = changed(MR, StudyInstanceUID="2.25.3001", SOPInstanceUID="2.25.3002", PatientID="FIRST")
    other = changed(MR, StudyInstanceUID="2.25.3001", SOPInstanceUID="2.25.3002", PatientID="OTHER")
    for file, headers in (
        (first, {}),
        (first, {}),
        (first, {"Idempotency-Key": "second"}),
        (other, {}),
    ):
        assert stow(imaging, file, **headers).status_code == 200
        time.sleep(0.2)  # each in a batch of its own
    sql = "SELECT relation FROM dicom_uploads WHERE study_uid = '2.25.3001' ORDER BY uploaded_at"
    deadline = time.monotonic() + 90
    while len(imaging.query(sql)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [r[0] for r in imaging.query(sql)] == ["first", "same", "conflicting"]
    assert imaging.query("SELECT patient_id, digest FROM instances WHERE study_uid = '2.25.3001'") == [
        ("FIRST", hashlib.sha256(first).hexdigest())
    ]
    assert imaging.query("SELECT patient_id FROM studies WHERE study_uid = '2.25.3001'") == [("FIRST",)]


def changed(file: bytes, **values: str) -> bytes:
    dataset = pydicom.dcmread(BytesIO(file))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    out = BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def test_every_shipped_file_is_indexed_or_refused(imaging: Imaging, codec: Codec) -> None:
    """All of pydicom's data folder, ingested twice: each file is in the index or a dead letter, once."""

    async def ingest() -> list[Ingested]:
        publisher = Publisher(imaging.settings.kafka, codec, name="test")
        try:
            store = FolderStore(imaging.settings.object_store)
            return [i async for i in ingest_folder(files_of(DATA), publisher, store, tenant="shipped")]
        finally:
            await publisher.close()

    once, twice = asyncio.run(ingest()), asyncio.run(ingest())
    assert [i.event_id for i in once] == [i.event_id for i in twice]
    ids = {i.event_id for i in once if i.event_id}
    assert {i.reason for i in once if not i.event_id} == set()
    indexed, dead = imaging.settled(ids)
    assert indexed.isdisjoint(dead)
    by_id = {i.event_id: i.path for i in once}
    reasons = {by_id[k].relative_to(DATA).as_posix(): reason for k, reason in dead.items()}
    assert reasons["test_files/dicomdirtests/DICOMDIR"].startswith("sop_class_uid: it is a DICOMDIR")
    assert reasons["test_files/README.txt"].startswith("file: it is not DICOM")
    assert reasons["test_files/JPEGLSNearLossless_08.dcm"].startswith("study_uid: the file has no Study")
    assert len(indexed) >= 150
    (uploads,) = imaging.query("SELECT count(*) FROM instance_uploads WHERE tenant = 'shipped'")
    assert uploads == (len(indexed),)


def test_lifelike_traffic_is_accounted_for(imaging: Imaging) -> None:
    """Of simulated traffic every acknowledged upload is indexed or dead, and poison disturbs none."""
    traffic = steps(random.Random(7), lambda: time.time_ns() // 1_000_000)
    acknowledged: set[str] = set()
    producer = Producer({"bootstrap.servers": imaging.settings.kafka_bootstrap_servers})
    poison = 0
    key = key_of(imaging.settings, "simulator", "simulated", ["producer:imaging"])
    with httpx.Client(base_url=imaging.gateway, headers=key) as client:
        while poison < 3:
            step = next(traffic)
            if isinstance(step, Raw):
                producer.produce(step.topic.name, step.value, step.key)
                poison += 1
                continue
            assert isinstance(step, Http)
            answer = client.request(
                step.method, step.path, content=step.content, files=step.files, headers=dict(step.headers)
            )
            assert answer.status_code in (200, 202), answer.text
            if step.path == "/v1/dicom":
                acknowledged |= {a["event_id"] for a in answer.json()["accepted"]}
    producer.flush(10)
    indexed, dead = imaging.settled(acknowledged)
    assert len(indexed) > 100
    assert any(reason.startswith("file: it is damaged DICOM") for reason in dead.values())
    assert indexed.isdisjoint(dead)
    relations = {
        r for (r,) in imaging.query("SELECT DISTINCT relation FROM dicom_uploads WHERE tenant = 'simulated'")
    }
    assert {"first", "conflicting"} <= relations
    deadline = time.monotonic() + 90
    sql = "SELECT count(*) FROM dead_letters WHERE topic = %s AND input_id IS NULL"
    while imaging.query(sql, DICOM_UPLOADS.name) != [(3,)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
