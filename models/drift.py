"""Whether what a model is asked about still looks like what it was taught: the population stability index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS = 10
SHARE_MIN = 1e-4
"""What an empty bin counts as: the index of anything new would be infinite."""
NOTABLE, GRAVE = 0.1, 0.25
"""From where on an index is read as a change to look at, and as one to train anew for."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """How values were distributed: `edges` of bins, rising, and the share of values in each, one bin more."""

    edges: Floats
    shares: Floats

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Reference:
        """Of values (rows,), in up to `BINS` bins of like shares; values that are frequent have their own.

        Raises ValueError for no value, or one that is no number.
        """
        if not len(values) or not np.isfinite(values).all():
            raise ValueError("there is no value, or one that is no number; give numbers to compare with")
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS, method="lower"))
        return cls(edges.astype(np.float64), _shares(edges, values))

    def index(self, values: npt.NDArray[Any]) -> float:
        """The population stability index of values (rows,) against it: 0 where nothing has changed.

        The sum over the bins of (share now - share then) * log(share now / share then).
        """
        now = np.maximum(_shares(self.edges, values), SHARE_MIN)
        then = np.maximum(self.shares, SHARE_MIN)
        return float(((now - then) * np.log(now / then)).sum())


def _shares(edges: Floats, values: npt.NDArray[Any]) -> Floats:
    # A value on an edge belongs below it.
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return counts / len(values)
