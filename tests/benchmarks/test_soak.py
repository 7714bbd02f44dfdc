"""When memory counts as flat."""

from __future__ import annotations

import pytest

from benchmarks.soak import ALLOWED, STRETCHES, flatness

MB = 1_000_000


def test_growth_is_found_and_a_moments_peak_is_not() -> None:
    """Medians of stretches: a peak of a second leaves them; a slow rise of a fifth does not."""
    even = [(float(s), 200 * MB) for s in range(1_200)]
    assert flatness(even, 300) == (200 * MB, 200 * MB)
    even[700] = (700.0, 900 * MB)
    assert flatness(even, 300) == (200 * MB, 200 * MB)
    rising = [(float(s), 200 * MB + s * 40_000) for s in range(1_200)]
    least, most = flatness(rising, 300)
    assert most > ALLOWED * least


def test_what_lies_before_the_windows_are_full_is_not_judged() -> None:
    """Memory that grows until then and stands still from then on is flat."""
    samples = [(float(s), min(s, 300) * MB) for s in range(1_200)]
    assert flatness(samples, 300) == (300 * MB, 300 * MB)


def test_too_few_samples_are_no_proof() -> None:
    """A stretch without a sample cannot be called flat."""
    with pytest.raises(ValueError, match="soak for longer"):
        flatness([(float(s), MB) for s in range(STRETCHES - 1)], 0)
    with pytest.raises(ValueError, match="no sample"):
        flatness([(1.0, MB)], 5)
