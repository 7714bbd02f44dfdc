"""Ids derived from keys: the same for a repeat, never the same for anything else."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.fraud.idempotency import KEY_MAX, claim_name, derived_id, fingerprint, given_key
from infra.problems import Problem

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMED = st.tuples(TEXT, TEXT, TEXT, TEXT, st.none() | st.integers(0, 999))


@given(NAMED, NAMED)
def test_an_id_tells_its_origin_apart(
    one: tuple[str, str, str, str, int | None], other: tuple[str, str, str, str, int | None]
) -> None:
    """Tenant, sender, key, card and place in the batch make an id, however their texts would join."""
    assert (derived_id(*one) == derived_id(*other)) == (one == other)
    assert (claim_name(*one[:3]) == claim_name(*other[:3])) == (one[:3] == other[:3])


@given(TEXT, TEXT, TEXT, TEXT)
def test_what_stands_at_a_border_counts(tenant: str, sender: str, key: str, card: str) -> None:
    """Text that moves from one part to the next makes another id."""
    moved = derived_id(tenant, sender + "x", key, card), derived_id(tenant, sender, "x" + key, card)
    assert moved[0] != moved[1]


@given(NAMED)
def test_an_id_is_a_uuid(named: tuple[str, str, str, str, int | None]) -> None:
    """Of version 8 and the RFC's variant: 122 bits of the hash."""
    found = uuid.UUID(derived_id(*named))
    assert (found.version, found.variant) == (8, uuid.RFC_4122)


def test_an_id_stays_what_it_is() -> None:
    """A release that derived another one would decide a repeat anew."""
    assert derived_id("default", "shop", "key-1", "card-1") == "ed730110-509a-8646-8457-b8c690b10c54"
    assert derived_id("default", "shop", "key-1", "card-1", 0) == "574e4ba7-e3f9-856b-8bc4-45aba3af1c72"


@given(st.dictionaries(TEXT, st.integers(-(2**53), 2**53) | TEXT | st.none(), max_size=6), st.randoms())
def test_a_fingerprint_is_of_the_meaning(body: dict[str, Any], rng: Any) -> None:
    """The order of the members does not matter; a value does."""
    shuffled = list(body.items())
    rng.shuffle(shuffled)
    assert fingerprint(dict(shuffled)) == fingerprint(body)
    assert fingerprint({**body, "more": 1}) != fingerprint({**body, "more": 2})


@pytest.mark.parametrize("key", ["", "x" * (KEY_MAX + 1), "schlüssel", "a\tb"])
def test_a_key_that_cannot_be_one_is_refused(key: str) -> None:
    """422 names the header and the remedy."""
    with pytest.raises(Problem) as refused:
        given_key(key)
    assert refused.value.status == 422 and refused.value.errors[0][0] == "Idempotency-Key"


@pytest.mark.parametrize("key", [None, "x", "x" * KEY_MAX, '"quoted"', "with blanks"])
def test_a_key_is_taken_as_it_is(key: str | None) -> None:
    """It means nothing to us."""
    assert given_key(key) == key
