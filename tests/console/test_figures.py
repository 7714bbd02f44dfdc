"""What processes say and what plots show, without a process."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from api.console import charts, scrape, words


def test_the_scrape_reads_what_our_processes_write() -> None:
    """What prometheus_client writes is read back: labels in alphabetical order, and no other metric."""
    registry = CollectorRegistry()
    labels = ("consumer", "topic", "partition")
    Gauge("millrace_watermark_ms", "w", labels, registry=registry).labels("c", "t", "3").set(7)
    Gauge("millrace_ready", "r", registry=registry).set(1)
    Gauge("millrace_assigned_partitions", "a", registry=registry).set(9)
    batches = Histogram(
        "millrace_batch_seconds", "b", ("consumer", "topic"), buckets=(0.1, 1.0), registry=registry
    )
    for seconds in (0.05, 0.5, 0.5, 3.0):
        batches.labels("c", "t").observe(seconds)
    found = scrape.parse(generate_latest(registry).decode().splitlines())
    assert found == {
        "millrace_watermark_ms": {("c", "3", "t"): 7.0},
        "millrace_ready": {(): 1.0},
        "millrace_batch_seconds_bucket": {
            ("c", "0.1", "t"): 1.0,
            ("c", "1.0", "t"): 3.0,
            ("c", "+Inf", "t"): 4.0,
        },
    }


@pytest.mark.parametrize(
    ("q", "expected"), [(0.25, 0.1), (0.5, 0.1 + 0.9 * 0.5), (0.75, 1.0), (0.99, 1.0), (0.0, 0.0)]
)
def test_a_quantile_lies_where_prometheus_puts_it(q: float, expected: float) -> None:
    """Interpolated within its bucket; beyond the last bound, that bound."""
    assert scrape.quantile({0.1: 1.0, 1.0: 3.0, float("inf"): 4.0}, q) == pytest.approx(expected)


def test_no_batch_has_no_quantile() -> None:
    """Nothing counted: nothing is known."""
    assert scrape.quantile({0.1: 0.0, float("inf"): 0.0}, 0.5) is None


def test_a_plot_breaks_where_nothing_was_seen() -> None:
    """A gap in the looks, and a look without a value, part the line; the scale is a round number."""
    points = [(0.0, 1.0), (10.0, 2.0), (20.0, None), (30.0, 3.0), (200.0, 4.0)]
    plot = charts.plot([points], 200.0, words.rate)
    assert plot.lines[0].path.count("M") == 3 and plot.lines[0].path.count("L") == 1
    assert (plot.top, plot.lines[0].now) == ("5.0", "4.0")


def test_a_peak_is_never_thinned_away() -> None:
    """Of many looks within a step the highest is drawn."""
    points = [(float(t), 50.0 if t == 13 else 1.0) for t in range(900)]
    plot = charts.plot([points], 900.0, words.rate)
    assert plot.top == "50" and plot.lines[0].path.count("L") <= 101
    assert f" {charts.HEIGHT - 1 - (charts.HEIGHT - 2):.1f}" in plot.lines[0].path


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (35, "35 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (400_000, "4.6 d"),
    ],
)
def test_a_span_is_told_in_the_unit_that_fits(seconds: float | None, told: str) -> None:
    """Seconds, minutes, hours, days."""
    assert words.span(seconds) == told


def test_an_event_time_beyond_any_calendar_is_told_as_it_is() -> None:
    """A watermark of the year 300,000 must not take the page with it."""
    assert words.of_ms(1_700_000_000_000) == "2023-11-14 22:13:20"
    assert words.of_ms(9e15) == "9000000000000000 ms"
