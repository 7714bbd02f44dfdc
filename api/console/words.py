"""Figures and times in the words of the console, the same on every page and in every stream."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from models.rules.currencies import DECIMALS
from schemas.json_bytes import to_json

NONE = "–"
"""Nothing is known."""


def rate(per_second: float | None) -> str:
    """Records a second, without a unit: `0`, `3.2`, `1,234`."""
    if per_second is None:
        return NONE
    return f"{per_second:,.1f}" if 0.05 <= per_second < 10 else f"{per_second:,.0f}"


def span(seconds: float | None) -> str:
    """A length of time: `0.4 s`, `35 s`, `12 min`, `3.4 h`, `2.1 d`."""
    if seconds is None:
        return NONE
    for limit, unit, text in ((10, 1, "{:.1f} s"), (120, 1, "{:.0f} s"), (7200, 60, "{:.0f} min")):
        if seconds < limit:
            return text.format(seconds / unit)
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def number(n: float | None) -> str:
    return NONE if n is None else f"{n:,.0f}"


def money(minor: int, currency: str) -> str:
    """An amount in major units, with its currency: `12.50 EUR`, `1,200 JPY`."""
    decimals = DECIMALS.get(currency, 2)
    return f"{minor / 10**decimals:,.{decimals}f} {currency}"


def moment(at: datetime | None) -> str:
    """A time in UTC, to the second."""
    return NONE if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def of_ms(ms: float | None) -> str:
    """As `moment`, of milliseconds since 1970. An event time may lie outside what a calendar holds."""
    if ms is None:
        return NONE
    try:
        return moment(datetime.fromtimestamp(ms / 1000, UTC))
    except (ValueError, OverflowError, OSError):
        return f"{ms:.0f} ms"


def counted(n: int, one: str, many: str | None = None) -> str:
    """`1 letter`, `2 letters`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def plain(value: Any) -> Any:
    """A value of a row or event as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, bytes | memoryview):
        return to_json(bytes(value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)
