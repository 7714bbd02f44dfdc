"""The list of metrics: complete, documented, and what is really served."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import REGISTRY

from infra.telemetry.metrics import LABELS, METRICS, render_docs

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_docs_are_rendered_from_the_list() -> None:
    """docs/metrics.md is what the list renders now; `millrace docs` writes it."""
    assert DOCS.read_text() == render_docs()


def test_every_metric_is_served_under_its_documented_name() -> None:
    """The registry knows each listed metric by its name and type, and no other of ours."""
    suffix = {"counter": "_total"}
    served = {
        f"{family.name}{suffix.get(family.type, '')}": family.type
        for family in REGISTRY.collect()
        if family.name.startswith("millrace_")
    }
    assert served == {m.name: m.kind for m in METRICS}


def test_every_metric_says_what_it_means_with_known_labels() -> None:
    """Each metric has a meaning and a unit, and each of its labels is described once."""
    for metric in METRICS:
        assert metric.meaning.endswith("."), metric.name
        assert metric.unit, metric.name
        assert set(metric.labels) <= LABELS.keys(), metric.name
    used = {label for m in METRICS for label in m.labels}
    assert used == LABELS.keys()
