"""DICOM's matching rules as SQL conditions; values of clients are parameters and never SQL."""

from __future__ import annotations

from datetime import date, time
from typing import Any

import pytest

from api.dicom_json import STUDY, dataset
from api.dicom_match import Conditions, Unmatchable

OWN = "st.tenant = $1 AND ($2::text[] IS NULL OR st.patient_id = ANY($2))"


def matched(name: str, text: str) -> tuple[str, list[Any]]:
    conditions = Conditions(STUDY, "t", ["p"], ("st",))
    conditions.match(name, text)
    return conditions.sql(), conditions.values[2:]


@pytest.mark.parametrize(
    ("name", "text", "condition", "values"),
    [
        ("PatientID", "A*B?_%\\", "st.patient_id LIKE $3", ["A%B_\\_\\%\\\\"]),
        ("PatientID", "A_1", "st.patient_id = $3", ["A_1"]),
        ("0020000d", "1.2, 1.3", "st.study_uid = ANY($3::text[])", [["1.2", "1.3"]]),
        ("StudyDate", "20240131", "st.study_date >= $3 AND st.study_date <= $4", [date(2024, 1, 31)] * 2),
        ("StudyDate", "-20240131", "st.study_date <= $3", [date(2024, 1, 31)]),
        ("StudyTime", "10-", "st.study_time >= $3", [time(10)]),
        ("StudyTime", "-10", "st.study_time <= $3", [time(10, 59, 59, 999_999)]),
        ("StudyTime", "-101530.5", "st.study_time <= $3", [time(10, 15, 30, 599_999)]),
    ],
)
def test_a_value_becomes_a_condition(name: str, text: str, condition: str, values: list[Any]) -> None:
    """Wildcards, lists and ranges become comparisons, with SQL's own wildcards escaped."""
    assert matched(name, text) == (f"{OWN} AND {condition}", values)


@pytest.mark.parametrize("text", ["", "*", "  "])
def test_an_empty_value_matches_everything(text: str) -> None:
    """Universal matching adds no condition."""
    assert matched("PatientName", text) == (OWN, [])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("PixelSpacing", "1", "not searchable"),
        ("NumberOfStudyRelatedSeries", "1", "not searchable"),
        ("StudyDate", "2024", "YYYYMMDD"),
        ("StudyDate", "20240230", "YYYYMMDD"),
        ("StudyTime", "2561", "HHMMSS"),
        ("PatientID", "a\0", "NUL"),
    ],
)
def test_what_cannot_match_is_told(name: str, text: str, words: str) -> None:
    """An attribute we do not index, or a value that is none, is refused with what would do."""
    with pytest.raises(Unmatchable, match=words):
        matched(name, text)


def test_a_row_is_a_dicom_json_dataset() -> None:
    """Names have their component groups, dates and times their DICOM form, and empty values no Value."""
    row: dict[str, Any] = dict.fromkeys(a.keyword.lower() for a in STUDY)
    row |= {
        "patientname": "Yamada^Tarou=山田^太郎",
        "studydate": date(999, 2, 3),
        "studytime": time(1, 2, 3, 40),
        "modalitiesinstudy": ["CT", "MR"],
        "numberofstudyrelatedseries": 2,
    }
    found = dataset(STUDY, row)
    assert list(found) == sorted(found)
    assert found["00100010"]["Value"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]
    assert found["00080020"]["Value"] == ["09990203"]
    assert found["00080030"]["Value"] == ["010203.000040"]
    assert found["00080061"]["Value"] == ["CT", "MR"]
    assert found["00201206"] == {"vr": "IS", "Value": [2]}
    assert found["00100020"] == {"vr": "LO"}
