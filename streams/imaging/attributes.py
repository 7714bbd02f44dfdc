"""The searchable attributes of a DICOM dataset as the fields of a `dicom-instances` event. Pure.

A value that its tag does not allow becomes null and a note: an odd date must not keep a patient's images
out of the index.
"""

from __future__ import annotations

import re
from typing import Any

from pydicom.dataset import Dataset

from infra.dicom import quietly

_TEXTS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_sex": "PatientSex",
    "study_description": "StudyDescription",
    "study_id": "StudyID",
    "accession_number": "AccessionNumber",
    "referring_physician_name": "ReferringPhysicianName",
    "modality": "Modality",
    "series_description": "SeriesDescription",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "institution_name": "InstitutionName",
    "photometric_interpretation": "PhotometricInterpretation",
}
_DATES = {
    "patient_birth_date": "PatientBirthDate",
    "study_date": "StudyDate",
    "series_date": "SeriesDate",
}
_TIMES = {"study_time": "StudyTime", "series_time": "SeriesTime"}
_NUMBERS = {
    "series_number": "SeriesNumber",
    "instance_number": "InstanceNumber",
    "number_of_frames": "NumberOfFrames",
    "rows": "Rows",
    "columns": "Columns",
    "bits_allocated": "BitsAllocated",
}
KEYWORDS: tuple[str, ...] = (*_TEXTS.values(), *_DATES.values(), *_TIMES.values(), *_NUMBERS.values())
"""The elements that `attributes` reads."""

_MOST_CHARACTERS = 1024  # far beyond what any of these may have (64 a component)
_INT32_MAX = 2**31 - 1
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DATE = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", re.ASCII)  # dots: before 1993
_TIME = re.compile(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(?:\.(\d{1,6}))?)?)?", re.ASCII)


def attributes(dataset: Dataset, notes: list[str]) -> dict[str, Any]:
    """The fields from patient to photometric interpretation; null where the file does not say."""
    fields: dict[str, Any] = {}
    unreadable: list[str] = []
    with quietly(notes):
        for table, convert in ((_TEXTS, _text), (_DATES, _date), (_TIMES, _time), (_NUMBERS, _number)):
            for name, keyword in table.items():
                try:
                    # Conversion happens at access, and fails in as many ways as files are damaged.
                    raw = dataset.get(keyword)
                    fields[name] = None if raw is None else convert(raw)
                except Exception:
                    fields[name] = None
                    unreadable.append(keyword)
    notes.extend(f"{keyword} is not what it should be, and was left out" for keyword in unreadable)
    return fields


def _text(raw: Any) -> str | None:
    values = raw if isinstance(raw, (list, tuple)) or type(raw).__name__ == "MultiValue" else [raw]
    text = "\\".join(str(v) for v in values)
    # Postgres takes no NUL and no lone surrogate; neither belongs in a DICOM text.
    clean = "".join(c if c.isprintable() else " " for c in text).strip()[:_MOST_CHARACTERS]
    return clean or None


def _date(raw: Any) -> str | None:
    text = str(raw).strip("\0 ")
    if not text:
        return None
    match = _DATE.fullmatch(text)
    if not match:
        raise ValueError(text)
    year, month, day = (int(g) for g in match.groups())
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= _MONTH_DAYS[month - 1]:
        raise ValueError(text)
    if (month, day) == (2, 29) and not leap:
        raise ValueError(text)
    return "".join(match.groups())


def _time(raw: Any) -> str | None:
    text = str(raw).strip("\0 ")
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(text)
    hour, minute, second = (g or "00" for g in match.groups()[:3])
    if int(hour) > 23 or int(minute) > 59 or int(second) > 59:
        raise ValueError(text)
    return f"{hour}{minute}{second}.{(match.group(4) or '').ljust(6, '0')}"


def _number(raw: Any) -> int | None:
    text = str(raw).strip("\0 ")
    if not text:
        return None
    value = int(text)
    if abs(value) > _INT32_MAX:
        raise ValueError(text)
    return value
