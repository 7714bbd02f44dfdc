"""DICOM studies, series and instances for GraphQL: the searches of QIDO-RS, with an argument by attribute."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date, time
from inspect import Parameter, Signature
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field, create_model

from api.database import Rows
from api.dicom_json import Attribute
from api.imaging import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL, Database, Level, Limit, Offset, matching

_TYPES = {"DA": date, "TM": time, "IS": int, "US": int}
MATCHES = "As DICOM matches: `*` and `?` in texts, a range with `-` in dates and times, `,` between UIDs."


def keyword(attribute: Attribute) -> str:
    """`PatientName` as `patientName`."""
    return attribute.keyword[0].lower() + attribute.keyword[1:]


def _model(name: str, about: str, level: Level) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for attribute in level.attributes:
        of: Any = list[str] if attribute.column == "st.modalities" else _TYPES.get(attribute.vr, str)
        fields[attribute.keyword.lower()] = (of | None, Field(alias=keyword(attribute)))
    made: type[BaseModel] = create_model(
        name, __doc__=about, __config__=ConfigDict(populate_by_name=True), **fields
    )
    return made


Study = _model("Study", "A DICOM study.", STUDY_LEVEL)
Series = _model("Series", "A DICOM series, with its study.", SERIES_LEVEL)
Instance = _model("Instance", "A DICOM instance, with its series and study.", INSTANCE_LEVEL)


def _search(level: Level, model: type[BaseModel], about: str) -> Callable[..., Awaitable[Any]]:
    by_keyword = {keyword(a): a.keyword for a in level.attributes if a.matchable}

    async def search(database: Rows, limit: int, offset: int, **matches: str | None) -> list[BaseModel]:
        wanted = [(by_keyword[name], text) for name, text in matches.items() if text is not None]
        found, _ = await matching(database, level, wanted, limit, offset)
        return [model.model_construct(**row) for row in found]

    text = Annotated[str | None, Query(max_length=1024)]
    named = Parameter.KEYWORD_ONLY
    search.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter("database", named, annotation=Database),
            *(Parameter(name, named, default=None, annotation=text) for name in by_keyword),
            Parameter("limit", named, default=100, annotation=Limit),
            Parameter("offset", named, default=0, annotation=Offset),
        ],
        return_annotation=list[model],  # type: ignore[valid-type]  # made here
    )
    search.__doc__ = f"{about} {MATCHES}"
    return search


studies = _search(STUDY_LEVEL, Study, "Studies by any of their attributes.")
series = _search(SERIES_LEVEL, Series, "Series by attributes of study and series.")
instances = _search(INSTANCE_LEVEL, Instance, "Instances by attributes of study, series and instance.")
