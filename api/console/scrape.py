"""What one of our processes says of itself at /metrics: the few samples that the console shows."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from http.client import HTTPException

SECONDS = 1.5
WANTED = frozenset(
    {
        "millrace_records_produced_total",
        "millrace_duplicates_total",
        "millrace_batch_seconds_bucket",
        "millrace_checkpoint_seconds_bucket",
        "millrace_watermark_ms",
        "millrace_lag_ms",
        "millrace_ready",
        "millrace_condition",
    }
)
Labels = tuple[str, ...]
Samples = Mapping[str, Mapping[Labels, float]]
"""By name of the metric and values of its labels, in the alphabetical order of the labels' names."""

_LINE = re.compile(r"(millrace_[a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')


def parse(lines: Iterable[str]) -> dict[str, dict[Labels, float]]:
    """The wanted samples of an exposition in Prometheus's text format."""
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for line in lines:
        sample = _LINE.match(line)
        if sample is not None and sample[1] in WANTED:
            labels = sorted(_LABEL.findall(sample[2] or ""))
            found[sample[1]][tuple(value for _, value in labels)] = float(sample[3])
    return dict(found)


def ask(port: int) -> Samples | None:
    """The samples of the process that serves this port; None where it does not answer now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SECONDS) as answer:
            return parse(answer.read().decode(errors="replace").splitlines())
    except (OSError, HTTPException, ValueError):
        return None


def quantile(buckets: Mapping[float, float], q: float) -> float | None:
    """A quantile of a histogram, from cumulative counts by upper bound; None where it counted nothing.

    Within a bucket it is interpolated, as Prometheus's histogram_quantile does.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank, below, lower = q * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        below, lower = buckets[bound], bound
    return lower
