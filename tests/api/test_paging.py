"""Cursors: what goes in comes out, and nothing else gets through to the database."""

from __future__ import annotations

import base64
import string
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.paging import decode_cursor, encode_cursor
from infra.problems import Problem

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
)


@given(st.lists(VALUES, max_size=6))
def test_a_cursor_gives_back_its_values(values: list[Any]) -> None:
    """Values of every type come back equal and of the same type, from text that is safe in a URL."""
    text = encode_cursor(*values)
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")
    back = decode_cursor(text, *(type(v) for v in values))
    assert back == tuple(values)
    assert [type(v) for v in back] == [type(v) for v in values]


def test_a_datetime_keeps_its_instant_to_the_microsecond() -> None:
    """A datetime of another zone comes back as the same instant; one without a zone is refused."""
    moment = datetime(2018, 4, 1, 12, 0, 0, 123456, timezone(timedelta(hours=2)))
    assert decode_cursor(encode_cursor(moment)) == (moment,)
    with pytest.raises(ValueError, match="time zone"):
        encode_cursor(datetime(2018, 4, 1))  # noqa: DTZ001


def forged(body: str) -> str:
    return base64.urlsafe_b64encode(body.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "ä",
        "====",
        encode_cursor("a") + "!",
        forged("{}"),
        forged('{"t": "2018-04-01T00:00:00+00:00"}'),
        forged('[{"t": "2018-04-01T00:00:00"}]'),
        forged('[{"t": "yesterday"}]'),
        forged('[{"t": 5}]'),
        forged('[{"x": "1"}]'),
        forged("[{}]"),
        forged('[{"t": "2018-04-01", "d": "2018-04-01"}]'),
        forged('[{"n": "many"}]'),
        forged('[{"u": "many"}]'),
        forged("[[1]]"),
        forged(f"[{2**63}]"),
        forged('["a\\u0000b"]'),
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """Anything but a cursor of ours is a 422 problem on the field `cursor`."""
    with pytest.raises(Problem) as caught:
        decode_cursor(text, str)
    assert caught.value.status == 422
    assert [field for field, _ in caught.value.errors] == ["cursor"]


@given(st.text())
def test_no_text_at_all_breaks_it(text: str) -> None:
    """Whatever text comes, it is decoded or refused; nothing else is raised."""
    try:
        assert isinstance(decode_cursor(text), tuple)
    except Problem as problem:
        assert problem.status == 422


def test_a_cursor_of_another_list_is_refused() -> None:
    """A cursor with another number or other types of values than the list's order is not accepted."""
    cursor = encode_cursor(datetime(2018, 4, 1, tzinfo=UTC), "a", 5)
    assert len(decode_cursor(cursor, datetime, str, int)) == 3
    for types in ((datetime, str), (datetime, str, str), (date, str, int), (datetime, str, int, UUID)):
        with pytest.raises(Problem):
            decode_cursor(cursor, *types)
    with pytest.raises(Problem):
        decode_cursor(encode_cursor(True), int)
    with pytest.raises(Problem):
        decode_cursor(encode_cursor(Decimal(1)), int)
