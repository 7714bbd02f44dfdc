"""Times and offsets as operators write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from infra.moments import MomentError, moment, moment_or_offset

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_times_are_read_as_people_write_them() -> None:
    """`2h` ago, a date, a time with its zone or in UTC; anything else is refused in a sentence."""
    assert moment("2h", NOW) == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert moment("7d", NOW) == datetime(2026, 2, 22, 12, tzinfo=UTC)
    assert moment("2026-02-01", NOW) == datetime(2026, 2, 1, tzinfo=UTC)
    assert moment("2026-02-01T12:00:00+02:00", NOW) == datetime(2026, 2, 1, 10, tzinfo=UTC)
    with pytest.raises(MomentError, match="is no time; write 2h"):
        moment("yesterday", NOW)
    with pytest.raises(MomentError, match="is before all times"):
        moment(f"{10**12}d", NOW)


def test_a_whole_number_is_an_offset() -> None:
    """1200 is an offset and 2h is not; what is neither is refused with both remedies."""
    assert moment_or_offset("1200", NOW) == 1200
    assert moment_or_offset("2h", NOW) == datetime(2026, 3, 1, 10, tzinfo=UTC)
    for neither in ("soon", "-1", "\u0665"):
        with pytest.raises(MomentError, match=r"is no time; .* or an offset such as 1200"):
            moment_or_offset(neither, NOW)
