"""The attributes of the index as DICOM: their tags, and rows in the DICOM JSON model (PS3.18 annex F)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any


@dataclass(frozen=True, slots=True)
class Attribute:
    """A DICOM attribute and the SQL expression that holds it, over the aliases st, se and i.

    One that is not `matchable` is computed for the answer and cannot be searched by.
    """

    tag: str
    keyword: str
    vr: str
    column: str
    matchable: bool = True


STUDY: tuple[Attribute, ...] = (
    Attribute("00080020", "StudyDate", "DA", "st.study_date"),
    Attribute("00080030", "StudyTime", "TM", "st.study_time"),
    Attribute("00080050", "AccessionNumber", "SH", "st.accession_number"),
    Attribute("00080056", "InstanceAvailability", "CS", "'ONLINE'", matchable=False),
    Attribute("00080061", "ModalitiesInStudy", "CS", "st.modalities"),
    Attribute("00080090", "ReferringPhysicianName", "PN", "st.referring_physician_name"),
    Attribute("00081030", "StudyDescription", "LO", "st.study_description"),
    Attribute("00100010", "PatientName", "PN", "st.patient_name"),
    Attribute("00100020", "PatientID", "LO", "st.patient_id"),
    Attribute("00100030", "PatientBirthDate", "DA", "st.patient_birth_date"),
    Attribute("00100040", "PatientSex", "CS", "st.patient_sex"),
    Attribute("0020000D", "StudyInstanceUID", "UI", "st.study_uid"),
    Attribute("00200010", "StudyID", "SH", "st.study_id"),
    Attribute("00201206", "NumberOfStudyRelatedSeries", "IS", "st.series_total", matchable=False),
    Attribute("00201208", "NumberOfStudyRelatedInstances", "IS", "st.instances_total", matchable=False),
)
SERIES: tuple[Attribute, ...] = (
    Attribute("00080021", "SeriesDate", "DA", "se.series_date"),
    Attribute("00080031", "SeriesTime", "TM", "se.series_time"),
    Attribute("00080060", "Modality", "CS", "se.modality"),
    Attribute("00080070", "Manufacturer", "LO", "se.manufacturer"),
    Attribute("00080080", "InstitutionName", "LO", "se.institution_name"),
    Attribute("0008103E", "SeriesDescription", "LO", "se.series_description"),
    Attribute("00180015", "BodyPartExamined", "CS", "se.body_part"),
    Attribute("0020000E", "SeriesInstanceUID", "UI", "se.series_uid"),
    Attribute("00200011", "SeriesNumber", "IS", "se.series_number"),
    Attribute("00201209", "NumberOfSeriesRelatedInstances", "IS", "se.instances_total", matchable=False),
)
INSTANCE: tuple[Attribute, ...] = (
    Attribute("00080016", "SOPClassUID", "UI", "i.sop_class_uid"),
    Attribute("00080018", "SOPInstanceUID", "UI", "i.sop_instance_uid"),
    Attribute("00083002", "AvailableTransferSyntaxUID", "UI", "i.transfer_syntax_uid"),
    Attribute("00200013", "InstanceNumber", "IS", "i.instance_number"),
    Attribute("00280008", "NumberOfFrames", "IS", "i.number_of_frames"),
    Attribute("00280010", "Rows", "US", "i.rows"),
    Attribute("00280011", "Columns", "US", "i.columns"),
    Attribute("00280100", "BitsAllocated", "US", "i.bits_allocated"),
)

_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")


def dataset(attributes: tuple[Attribute, ...], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row, whose columns are named by keyword in lower case, in tag order; empty values as the bare VR."""
    out: dict[str, Any] = {}
    for attribute in sorted(attributes, key=lambda a: a.tag):
        values = _values(attribute.vr, row[attribute.keyword.lower()])
        out[attribute.tag] = {"vr": attribute.vr, "Value": values} if values else {"vr": attribute.vr}
    return out


def _values(vr: str, value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, date):
        return [f"{value.year:04d}{value.month:02d}{value.day:02d}"]
    if isinstance(value, time):
        return [value.strftime("%H%M%S.%f" if value.microsecond else "%H%M%S")]
    if vr == "PN":
        return [_name(n) for n in value.split("\\")]
    if isinstance(value, str):
        return value.split("\\")
    return list(value) if isinstance(value, list) else [value]


def _name(text: str) -> dict[str, str]:
    return {
        group: part.strip()
        for group, part in zip(_NAME_GROUPS, text.split("="), strict=False)
        if part.strip()
    }
