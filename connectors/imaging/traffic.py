"""Simulated imaging traffic: small synthetic studies of invented patients, and what goes wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from random import Random

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from connectors.traffic import Http, Raw, Step
from schemas.imaging import DICOM_UPLOADS

# The root of UIDs made from UUIDs (PS3.5 B.2): it needs no registration.
_UID_ROOT = "2.25."
_SIDE_PIXELS = 96
_MODALITIES = {
    "CT": ("1.2.840.10008.5.1.4.1.1.2", ("CHEST", "ABDOMEN", "HEAD"), 8),
    "MR": ("1.2.840.10008.5.1.4.1.1.4", ("BRAIN", "KNEE", "LSPINE"), 6),
    "CR": ("1.2.840.10008.5.1.4.1.1.1", ("CHEST", "HAND", "FOOT"), 1),
    "US": ("1.2.840.10008.5.1.4.1.1.6.1", ("ABDOMEN", "HEART"), 3),
}
_FAMILY_NAMES = ("Byrne", "Nowak", "García", "Yılmaz", "Jansen", "Okafor", "Murphy", "Rossi", "Lindqvist")
_GIVEN_NAMES = ("Aoife", "Jan", "Lucía", "Emre", "Saskia", "Chidi", "Niamh", "Giulia", "Astrid")
_ENDLESS_SEQUENCE = b"\xfa\xff\xfa\xffSQ\0\0\xff\xff\xff\xffno item here"
_BOUNDARY = "millrace-simulated-study"


def steps(rng: Random, now_ms: Callable[[], int]) -> Iterator[Step]:
    """Studies come slice by slice, by STOW-RS or by form; of 100 uploads about 3 are sent again, 2 have the
    UIDs of an earlier file with other pixels, 2 are damaged where only the processor sees it, and 1 record
    is poison."""
    recent: list[bytes] = []
    n = 0
    while True:
        for slice_bytes in _study(rng, now_ms()):
            n += 1
            yield _sent(rng, slice_bytes)
            recent = [*recent[-50:], slice_bytes]
            chance = rng.random()
            if chance < 0.03:
                yield _sent(rng, rng.choice(recent))
            elif chance < 0.05:
                changed = bytearray(rng.choice(recent))
                changed[-1 - rng.randrange(1000)] ^= 1
                yield _sent(rng, bytes(changed))
            elif chance < 0.06:
                yield _sent(rng, slice_bytes[: len(slice_bytes) - 500])  # indexed, without its thumbnail
            elif chance < 0.07:
                yield _sent(rng, slice_bytes + _ENDLESS_SEQUENCE)  # a dead letter
            if n % 100 == 20:
                yield _poison(rng, n // 100)


def _sent(rng: Random, file: bytes) -> Http:
    if rng.random() < 0.5:
        return Http("POST", "/v1/dicom", files={"files": ("image.dcm", file, "application/dicom")})
    head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return Http(
        "POST",
        "/dicomweb/studies",
        content=head + file + f"\r\n--{_BOUNDARY}--\r\n".encode(),
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'},
    )


def _poison(rng: Random, n: int) -> Raw:
    value = rng.randbytes(100)
    if n % 2:
        value = b"\x00" + (999_999).to_bytes(4, "big") + value  # framed, but of no registered schema
    return Raw(DICOM_UPLOADS, _uid(rng).encode(), value)


def _uid(rng: Random) -> UID:
    return UID(_UID_ROOT + str(rng.getrandbits(128)))


def _study(rng: Random, at_ms: int) -> Iterator[bytes]:
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    modality = rng.choice(tuple(_MODALITIES))
    sop_class, parts, most_slices = _MODALITIES[modality]
    patient = rng.randrange(400)
    study = Dataset()
    study.SpecificCharacterSet = "ISO_IR 192"
    study.PatientID = f"SIM-{patient:05d}"
    study.PatientName = f"{_FAMILY_NAMES[patient % 9]}^{_GIVEN_NAMES[patient // 9 % 9]}"
    study.PatientBirthDate = f"{1930 + patient % 90}{1 + patient % 12:02d}{1 + patient % 28:02d}"
    study.PatientSex = "FM"[patient % 2]
    study.StudyInstanceUID = _uid(rng)
    study.StudyDate, study.StudyTime = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    study.StudyID = str(rng.randrange(10_000))
    study.AccessionNumber = f"A{rng.randrange(10**8):08d}"
    study.BodyPartExamined = rng.choice(parts)
    study.StudyDescription = f"{modality} {study.BodyPartExamined}"
    study.ReferringPhysicianName = "Simulated^Doctor"
    study.SOPClassUID = UID(sop_class)
    study.Modality = modality
    for number in range(1, rng.randint(1, 2) + 1):
        series_uid = _uid(rng)
        for slice_number in range(1, rng.randint(1, most_slices) + 1):
            yield _slice(study, series_uid, number, slice_number, rng)


def _slice(study: Dataset, series_uid: UID, series: int, number: int, rng: Random) -> bytes:
    image = Dataset()
    image.update(study)
    image.SOPInstanceUID = _uid(rng)
    image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = series_uid, series, number
    image.SeriesDescription = f"Series {series}"
    image.Rows = image.Columns = _SIDE_PIXELS
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.WindowCenter, image.WindowWidth = "1000", "2000"
    image.PixelData = _phantom(rng, number)
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _phantom(rng: Random, number: int) -> bytes:
    """An ellipse with a bright ring and a few spots, a little noisy: 12 bits in 16, little-endian."""
    y, x = np.mgrid[-1 : 1 : _SIDE_PIXELS * 1j, -1 : 1 : _SIDE_PIXELS * 1j]
    radius = np.hypot(x / 0.8, y / (0.9 - 0.02 * number))
    pixels = np.where(radius < 1, 700.0, 20.0) + np.where(abs(radius - 1) < 0.05, 1000, 0)
    for _ in range(rng.randint(1, 4)):
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.6)
        spot = np.hypot(x - distance * math.cos(angle), y - distance * math.sin(angle))
        pixels += np.where(spot < rng.uniform(0.05, 0.2), rng.uniform(-300, 800), 0)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, 30, pixels.shape)
    return np.clip(pixels + noise, 0, 4095).astype("<u2").tobytes()
