"""Times and places of a log as operators write them, the same in every command."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_AGO = re.compile(r"(\d+)\s*([smhdw])")
_UNIT = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class MomentError(ValueError):
    """Text that names no time, or neither a time nor an offset; the message says what to write."""


def moment(text: str, now: datetime | None = None) -> datetime:
    """`90m`, `2h`, `7d` (ago), or an ISO date or time, UTC unless it says otherwise. Raises `MomentError`."""
    if ago := _AGO.fullmatch(text.strip()):
        try:
            return (now or datetime.now(UTC)) - timedelta(**{_UNIT[ago[2]]: int(ago[1])})
        except OverflowError:
            raise MomentError(f"{text!r} is before all times; write 2h, 7d or 2026-03-01") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise MomentError(f"{text!r} is no time; write 2h, 7d, 2026-03-01 or 2026-03-01T12:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def moment_or_offset(text: str, now: datetime | None = None) -> datetime | int:
    """A whole number is an offset, anything else a `moment`. Raises `MomentError`."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return moment(text, now)
    except MomentError as error:
        raise MomentError(f"{error}, or an offset such as 1200") from None
