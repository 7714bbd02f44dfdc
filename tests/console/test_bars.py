"""Counts by day, drawn."""

from __future__ import annotations

from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from api.console.bars import DAYS_MOST, HEIGHT, WIDTH, by_day

FIRST = date(2026, 3, 1)


def test_every_day_has_its_place() -> None:
    """Also one on which nothing matched; the highest bar is of the day with the most."""
    drawn = by_day({"2026-03-01": 4, "2026-03-03": 2}, FIRST, date(2026, 3, 3))
    assert [(bar.day.day, bar.count) for bar in drawn.bars] == [(1, 4), (2, 0), (3, 2)]
    assert drawn.top == 5
    first, none, last = drawn.bars
    assert [bar.height for bar in drawn.bars] == [round(HEIGHT * n / 5, 1) for n in (4, 0, 2)]
    assert first.x < none.x < last.x


@given(st.dictionaries(st.integers(0, 500), st.integers(0, 10**7), max_size=30), st.integers(0, 500))
def test_bars_stay_within_the_picture(counts: dict[int, int], days: int) -> None:
    """Whatever was counted: no bar is higher than the scale or lies outside of it, and a year is the most."""
    last = date.fromordinal(FIRST.toordinal() + days)
    by_iso = {date.fromordinal(FIRST.toordinal() + n).isoformat(): count for n, count in counts.items()}
    drawn = by_day(by_iso, FIRST, last)
    assert len(drawn.bars) == min(days + 1, DAYS_MOST) and drawn.bars[-1].day == last
    for bar in drawn.bars:
        assert 0 <= bar.x <= bar.x + bar.width <= WIDTH + 0.1
        assert bar.y >= -0.1 and bar.y + bar.height <= HEIGHT + 0.1 and bar.count <= drawn.top
