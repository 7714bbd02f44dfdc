"""What a client prefers, as far as it is heeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.prefer import WAIT_MOST_S, Preference


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], Preference()),
        (["respond-async"], Preference(True)),
        (["Respond-Async, wait=5"], Preference(True, 5)),
        (["respond-async", "wait=5"], Preference(True, 5)),
        (['wait="5"; foo=bar, return=minimal'], Preference(False, 5)),
        (["wait=1, wait=9"], Preference(False, 1)),
        (["wait=600"], Preference(False, WAIT_MOST_S)),
        (["wait=soon"], Preference()),
        (["wait=-1"], Preference()),
        (["wait"], Preference()),
    ],
)
def test_preferences_are_read_as_the_rfc_says(values: list[str], wanted: Preference) -> None:
    """Names in any case, several headers or one, the first counts, what is unusable is left out."""
    assert Preference.parse(values) == wanted


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=3))
def test_whatever_is_sent_is_no_error(values: list[str]) -> None:
    """A header that means nothing changes nothing."""
    found = Preference.parse(values)
    assert found.wait_s is None or 0 <= found.wait_s <= WAIT_MOST_S
