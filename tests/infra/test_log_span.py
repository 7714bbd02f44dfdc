"""Bounds as operators write them, and stretches of a log as they cut them."""

from __future__ import annotations

import pytest

from infra.checkpoints import TopicPartition
from infra.log_span import Bound, stretch
from infra.moments import MomentError

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Bound(offset=0)),
        ("1200", Bound(offset=1200)),
        ("2026-03-01", Bound(time_ms=1_772_323_200_000)),
        ("2026-03-01T01:00:00+01:00", Bound(time_ms=1_772_323_200_000)),
        ("2026-03-01T00:00:00.5Z", Bound(time_ms=1_772_323_200_500)),
    ],
)
def test_a_bound_is_an_offset_or_a_time(text: str, expected: Bound) -> None:
    """Digits are an offset; a time without a zone is UTC."""
    assert Bound.parse(text) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "12:00", "1.5"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    """The message shows what to write instead."""
    with pytest.raises(MomentError, match=r"2026-03-01T12:00:00Z, or an offset such as 1200"):
        Bound.parse(text)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, {A: (5, 20), B: (0, 8)}),
        (Bound(offset=10), None, {A: (10, 20), B: (8, 8)}),
        (None, Bound(offset=7), {A: (5, 7), B: (0, 7)}),
        (Bound(offset=0), Bound(offset=3), {A: (5, 5), B: (0, 3)}),
        (Bound(offset=9), Bound(offset=6), {A: (9, 9), B: (8, 8)}),
    ],
)
def test_a_stretch_stays_within_the_log(
    first: Bound | None, last: Bound | None, expected: dict[TopicPartition, tuple[int, int]]
) -> None:
    """Offsets that a partition does not have are cut off, and the end is never before the start."""
    assert stretch(None, {A: 5, B: 0}, {A: 20, B: 8}, first, last) == expected  # type: ignore[arg-type]
