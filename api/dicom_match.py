"""Attribute matching of DICOM queries (PS3.4 C.2.2.2) as SQL conditions."""

from __future__ import annotations

import re
from datetime import date, time
from typing import Any

from api.dicom_json import Attribute

_TIME = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2})?(?:\.(\d{1,6}))?", re.ASCII)
_INT32_MAX = 2**31 - 1


class Unmatchable(ValueError):
    """A query that cannot be answered; the message says why and what can."""


class Conditions:
    """Conditions on the attributes of a level. Clients' values become parameters, never SQL."""

    def __init__(
        self,
        attributes: tuple[Attribute, ...],
        tenant: str,
        patients: list[str] | None,
        aliases: tuple[str, ...],
    ) -> None:
        """Only rows of this tenant and of these patients (None: all); `aliases` are the tables asked."""
        self._by_name = {n: a for a in attributes for n in (a.tag, a.keyword.lower()) if a.matchable}
        self._known = ", ".join(sorted(a.keyword for a in attributes if a.matchable))
        self.values: list[Any] = [tenant, patients]
        self._conditions = [
            f"{alias}.tenant = $1 AND ($2::text[] IS NULL OR {alias}.patient_id = ANY($2))"
            for alias in aliases
        ]

    def sql(self) -> str:
        """All conditions together; their parameters are `values`."""
        return " AND ".join(self._conditions)

    def match(self, name: str, text: str) -> None:
        """Require that the attribute `name` (keyword or tag) matches `text`. Raises `Unmatchable`."""
        attribute = self._by_name.get(name.lower()) or self._by_name.get(name.upper())
        if attribute is None:
            raise Unmatchable(f"{name} is not searchable here; searchable are {self._known}.")
        if "\0" in text:
            raise Unmatchable(f"{name} has a NUL character, which no value has.")
        text = text.strip()
        if text in ("", "*"):
            return  # universal matching
        if attribute.vr == "UI":
            self._any_of(attribute.column, re.split(r"[,\\]", text))
        elif attribute.vr in ("DA", "TM"):
            self._within(attribute, text)
        elif attribute.vr in ("IS", "US"):
            self._conditions.append(f"{attribute.column} = {self._value(_number(name, text))}")
        elif attribute.keyword == "ModalitiesInStudy":
            wanted = self._value([m.strip() for m in re.split(r"[,\\]", text)])
            self._conditions.append(
                "EXISTS (SELECT FROM series m WHERE m.tenant = st.tenant AND m.study_uid = st.study_uid "
                f"AND m.modality = ANY({wanted}::text[]))"
            )
        elif attribute.vr == "PN":
            # Case does not tell names apart, and each component group (as Kanji) may be asked for alone.
            pattern = self._value(_pattern(text))
            self._conditions.append(
                f"({attribute.column} ILIKE {pattern} OR EXISTS (SELECT FROM "
                f"string_to_table({attribute.column}, '=') g WHERE g ILIKE {pattern}))"
            )
        elif "*" in text or "?" in text:
            self._conditions.append(f"{attribute.column} LIKE {self._value(_pattern(text))}")
        else:
            self._conditions.append(f"{attribute.column} = {self._value(text)}")

    def _any_of(self, column: str, values: list[str]) -> None:
        self._conditions.append(f"{column} = ANY({self._value([v.strip() for v in values])}::text[])")

    def _within(self, attribute: Attribute, text: str) -> None:
        first, dash, last = text.partition("-")
        read = _date if attribute.vr == "DA" else _time
        if not dash:
            last = first
        for bound, comparison, end in ((first, ">=", False), (last, "<=", True)):
            if bound:
                value = self._value(read(attribute.keyword, bound, end))
                self._conditions.append(f"{attribute.column} {comparison} {value}")

    def _value(self, value: Any) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def _pattern(text: str) -> str:
    """DICOM's wildcards as LIKE's."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _number(name: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise Unmatchable(f"{name}={text!r} is not a whole number.") from None
    if abs(value) > _INT32_MAX:
        raise Unmatchable(f"{name}={text!r} is beyond 32 bits.")
    return value


def _date(name: str, text: str, end: bool) -> date:
    try:
        if not re.fullmatch(r"\d{8}", text, re.ASCII):
            raise ValueError(text)
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        raise Unmatchable(f"{name}={text!r} is not a date; write YYYYMMDD, or a range with -.") from None


def _time(name: str, text: str, end: bool) -> time:
    """The first moment that `text` names, or the last: 10 is the whole hour."""
    match = _TIME.fullmatch(text)
    try:
        if not match:
            raise ValueError(text)
        hour, minute, second, fraction = match.groups()
        fill = ("59", "59", "999999") if end else ("00", "00", "000000")
        return time(
            int(hour),
            int(minute or fill[0]),
            int(second or fill[1]),
            int((fraction or "").ljust(6, fill[2][0])),
        )
    except ValueError:
        raise Unmatchable(f"{name}={text!r} is not a time; write HHMMSS, or a range with -.") from None
