"""An evaluation as people look at it: a page with its plots, lines for a terminal, and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from models.drift import NOTABLE
from models.handbook.drawing import Axis, Curve, plot, shares
from models.handbook.evaluate import (
    OURS,
    PERFECT,
    Evaluation,
    Series,
    cards_by_day,
)
from models.handbook.metrics import CARDS, Metrics
from models.handbook.protocol import DELAY_DAYS, day_name

DRIFTED = 6
"""So many drifted features are named."""
POINTS = 300
"""Of a curve of precision over recall that are drawn."""
HEADINGS = ("AUC ROC", "average precision", f"CP@{CARDS}")


def as_json(found: Evaluation) -> str:
    """All figures of an evaluation."""

    def metrics(m: Metrics | None) -> dict[str, float] | None:
        if m is None:
            return None
        names = ("auc_roc", "average_precision", f"card_precision_{CARDS}")
        return dict(zip(names, (round(v, 4) for v in m.values()), strict=True))

    body: dict[str, Any] = {
        "source": found.source,
        "rows": found.rows_total,
        "frauds": found.frauds_total,
        "table": {
            "tested_from": day_name(found.table_fold.tested_from),
            "models": {
                line.name: {
                    "measured": metrics(line.measured),
                    "published": metrics(line.published),
                    "reproduced": line.reproduced,
                }
                for line in found.table
            },
        },
        "weeks": {
            "tested_from": [day_name(fold.tested_from) for fold in found.folds],
            "models": {
                s.name: {"mean": metrics(s.mean), "by_week": [metrics(m) for m in s.by_fold]}
                for s in found.series
            },
        },
        "calibration": {
            "expected_calibration_error": round(found.calibrated.error, 5),
            "brier": round(found.calibrated.brier, 5),
            "brier_of_the_base_rate": round(found.calibrated.brier_of_rate, 5),
            "expected_frauds": round(found.calibrated.expected_frauds, 1),
            "frauds": found.calibrated.frauds,
            "bins": [
                {"rows": b.rows, "chance": b.chance, "share": b.share, "low": b.low, "high": b.high}
                for b in found.calibrated.bins
            ],
        },
        "drift": {name: round(index, 4) for name, index in found.drift.items()},
    }
    return json.dumps(body, indent=2) + "\n"


def tables(found: Evaluation) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, headings and rows of each table, in words."""
    published = any(line.published for line in found.table)
    fold = found.table_fold
    yield (
        f"Trained on the week from {day_name(fold.trained_from)},"
        f" tested on the one from {day_name(fold.tested_from)}",
        ("model", *HEADINGS, *([f"{h}, published" for h in HEADINGS] if published else ()), "reproduced"),
        [
            (
                line.name,
                *_words(line.measured),
                *(_words(line.published) if published else ()),
                {True: "yes", False: "NO", None: "–"}[line.reproduced],
            )
            for line in found.table
        ],
    )
    weeks = ", ".join(day_name(f.tested_from) for f in found.folds)
    yield (
        f"Mean over the weeks from {weeks}, each trained on what is known {DELAY_DAYS} days before",
        ("model", *HEADINGS),
        [(s.name, *_words(s.mean)) for s in found.series],
    )
    yield (
        f"{OURS}, week by week",
        ("tested from", *HEADINGS),
        [
            (day_name(fold.tested_from), *_words(m))
            for fold, m in zip(found.folds, found.ours().by_fold, strict=True)
        ],
    )


def drift_words(found: Evaluation) -> str:
    """Which features have changed since training, in one sentence."""
    changed = sorted((n for n in found.drift if found.drift[n] >= NOTABLE), key=lambda n: -found.drift[n])
    said = ", ".join(f"{name} {found.drift[name]:.2f}" for name in changed[:DRIFTED])
    more = f" and {len(changed) - DRIFTED} more" if len(changed) > DRIFTED else ""
    return (
        f"In the last week no feature has drifted: each index of population stability is below {NOTABLE}."
        if not changed
        else f"In the last week features have drifted (index of population stability): {said}{more}."
    )


def calibration_words(found: Evaluation) -> str:
    """What its chances are worth, in one sentence."""
    c = found.calibrated
    return (
        f"Its chances expect {c.expected_frauds:.0f} frauds and there are {c.frauds}; chance and share lie"
        f" {c.error:.5f} apart on average, and the Brier score is {c.brier:.5f}"
        f" ({c.brier_of_rate:.5f} by the base rate)."
    )


def page(found: Evaluation) -> str:
    """The whole report as one HTML page that loads nothing."""
    counted = f"{found.rows_total:,} transactions, {found.frauds_total:,} of them frauds"
    parts = [f"<p>{escape(found.source)}: {counted}.</p>"]
    for title, headings, rows in tables(found):
        parts.append(f"<h2>{escape(title)}</h2>{_table(headings, rows)}")
    parts += [
        "<h2>What it looks like</h2>",
        '<div class="plots">',
        _precision_recall([s for s in found.series if s.name != PERFECT]),
        _reliability(found),
        _cards(found),
        "</div>",
        f"<p>{escape(calibration_words(found))}</p><p>{escape(drift_words(found))}</p>",
    ]
    title = f"Fraud models on {found.source}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><main><h1>{escape(title)}</h1>{''.join(parts)}</main></html>\n"
    )


def _precision_recall(series: Sequence[Series]) -> str:
    from sklearn.metrics import precision_recall_curve

    curves = []
    for s in series:
        precision, recall, _ = precision_recall_curve(s.scored.is_fraud, s.scored.scores)
        # Its last point is (0, 1) by definition, and no threshold reaches it.
        picked = np.unique(np.linspace(0, len(recall) - 2, POINTS).astype(np.int64))
        by_recall = np.searchsorted(-recall[:-1], -np.linspace(0, 1, POINTS), side="left")
        at = np.union1d(picked, np.minimum(by_recall, len(recall) - 2))
        curves.append(Curve(s.name, list(zip(recall[at].tolist(), precision[at].tolist(), strict=True))))
    axes = (Axis("recall", 0.0, 1.0, shares()), Axis("precision", 0.0, 1.0, shares()))
    return plot("Precision over recall, all weeks together", *axes, curves)


def _reliability(found: Evaluation) -> str:
    bins = found.calibrated.bins
    low = 10.0 ** np.floor(np.log10(max(1e-5, min(min(b.chance, b.share or 1.0) for b in bins))))
    ticks = [(10.0**n, f"{10.0**n:g}") for n in range(round(np.log10(low)), 1)]
    points = [(b.chance, max(b.share, low)) for b in bins]
    spans = [(b.chance, max(b.low, low), b.high) for b in bins]
    curves = [
        Curve("measured, with its 95 % interval", points, dots=True, line=False, spans=spans),
        Curve("chance = share", [(low, low), (1.0, 1.0)]),
    ]
    axes = (Axis("chance", low, 1.0, ticks, log=True), Axis("share of frauds", low, 1.0, ticks, log=True))
    return plot(f"Reliability of {OURS}", *axes, curves)


def _cards(found: Evaluation) -> str:
    by_day = {s.name: cards_by_day(s, found.folds) for s in found.series}
    days = [day for day, _ in by_day[OURS]]
    top = max(share for points in by_day.values() for _, share in points)
    ceiling = min(1.0, np.ceil(top * 10 + 0.5) / 10)
    ticks = [(float(day), day_name(day)[5:]) for day in days[::7]]
    axes = (
        Axis("day", float(days[0]), float(max(days[-1], days[0] + 1)), ticks),
        Axis(
            f"share of {CARDS} cards", 0.0, float(ceiling), [(t, w) for t, w in shares(0.1) if t <= ceiling]
        ),
    )
    curves = [Curve(name, [(float(d), v) for d, v in points]) for name, points in by_day.items()]
    return plot(f"Defrauded cards among the {CARDS} picked, by day", *axes, curves)


def _words(metrics: Metrics | None) -> tuple[str, ...]:
    return ("–",) * 3 if metrics is None else tuple(f"{value:.3f}" for value in metrics.values())


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #d8dde3; --paper: #fff;
  --c0: #b2582a; --c1: #2f7d4f; --c2: #2456a6; --c3: #8a8f98; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --faint: #3a4048; --paper: #14171a;
  --c0: #e59a6c; --c1: #6cc48f; --c2: #7fa9ee; --c3: #8a8f98; } }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--ink); } .grid { stroke: var(--faint); }
.line { fill: none; stroke-width: 2; }
.legend { margin: 0; font-size: .85rem; } .legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.2em; height: .25em; margin-right: .4em; vertical-align: middle; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
svg .line { stroke: var(--c); } circle { fill: var(--c); } .legend i { background: var(--c); }
.c3 .line { stroke-dasharray: 4 3; }
"""
