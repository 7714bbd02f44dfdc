"""A file of labelled transactions evaluated: the handbook's table, and our model week after week."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.handbook import table
from models.handbook.metrics import (
    Bin,
    Metrics,
    Scored,
    card_precisions,
    expected_calibration_error,
    reliability,
)
from models.handbook.protocol import DAY_MS, Fold, Ints, day_name, prequential
from models.handbook.weekly import Progress, Rows, Weekly

PUBLISHED_TEST_FROM = 17_751
"""2018-08-08, the first day that chapter 3 tests on."""
OURS = "boosted trees, ours"
PERFECT = "perfect order"


@dataclass(frozen=True, slots=True)
class Line:
    """A model's metrics in the table, and what is published of it."""

    name: str
    measured: Metrics
    published: Metrics | None

    @property
    def reproduced(self) -> bool | None:
        """Whether every metric is within `table.TOLERANCE` of the published one."""
        if self.published is None:
            return None
        pairs = zip(self.measured.values(), self.published.values(), strict=True)
        return all(abs(m - p) <= table.TOLERANCE for m, p in pairs)


@dataclass(frozen=True, slots=True)
class Series:
    """A model over the folds: its metrics in each, and its tested rows of all of them."""

    name: str
    by_fold: list[Metrics]
    scored: Scored

    @property
    def mean(self) -> Metrics:
        return Metrics.mean(self.by_fold)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What our model's chances are worth: bins, their mean error, the Brier score (that of the base rate)."""

    bins: list[Bin]
    error: float
    brier: float
    brier_of_rate: float
    expected_frauds: float
    frauds: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that is said of a file."""

    source: str
    rows_total: int
    frauds_total: int
    table_fold: Fold
    table: list[Line]
    folds: list[Fold]
    series: list[Series]
    calibrated: Calibrated
    drift: dict[str, float]
    """Of our features, in the last week against the days that it was trained on (`models.drift`)."""

    def ours(self) -> Series:
        return next(s for s in self.series if s.name == OURS)


def folds_of(first_day: int, last_day: int, weeks: int) -> tuple[list[Fold], Fold]:
    """The weeks to test, and the table's fold: the published one where the days reach it, else the first."""
    folds = prequential(first_day, last_day, weeks)
    published = Fold(PUBLISHED_TEST_FROM)
    history = published.trained_from - table.HISTORY_DAYS
    covered = first_day <= history and published.tested_until <= last_day + 1
    return folds, published if covered else folds[0]


def evaluate(
    source: str,
    rows: Rows,
    totals: tuple[int, int],
    folds: Sequence[Fold],
    table_fold: Fold,
    progress: Progress = lambda _: None,
) -> Evaluation:
    """Train and test what there is to compare; `totals` are the source's rows and frauds.

    `progress` is told what is done next. Raises TooLittleError where a fold has too few
    frauds to say anything.
    """
    ours = Weekly(rows, progress)
    published = table_fold.tested_from == PUBLISHED_TEST_FROM
    compared: dict[tuple[str, Fold], Scored] = {}

    def scored(entry: table.Entry, fold: Fold) -> Scored:
        if (entry.name, fold) not in compared:
            progress(f"{entry.name}, tested from {day_name(fold.tested_from)}")
            taught = fold.training_rows(rows.days)
            asked = fold.test_rows(rows.days, rows.customers, rows.is_fraud)
            scores = table.scores(
                entry,
                rows.handbook[taught].astype(np.float64),
                rows.is_fraud[taught],
                rows.handbook[asked].astype(np.float64),
            )
            compared[entry.name, fold] = rows.scored(asked, scores)
        return compared[entry.name, fold]

    lines = [
        Line(e.name, Metrics.of(scored(e, table_fold)), e.published if published else None)
        for e in table.TABLE
    ]
    found = [_series(e.name, [scored(e, fold) for fold in folds]) for e in table.TABLE if e.over_weeks]
    chances = [ours.chances(fold) for fold in folds]
    found.append(_series(OURS, chances))
    perfect = [rows.scored(r, rows.is_fraud[r].astype(np.float64)) for r in map(ours.asked, folds)]
    found.append(_series(PERFECT, perfect))
    return Evaluation(
        source,
        *totals,
        table_fold,
        lines,
        list(folds),
        found,
        _calibrated(_joined(chances)),
        ours.drift(folds[-1]),
    )


def _series(name: str, scored: list[Scored]) -> Series:
    return Series(name, [Metrics.of(s) for s in scored], _joined(scored))


def _joined(scored: list[Scored]) -> Scored:
    return Scored(*(np.concatenate([getattr(s, f.name) for s in scored]) for f in fields(Scored)))


def _calibrated(scored: Scored) -> Calibrated:
    bins = reliability(scored.scores, scored.is_fraud)
    rate = float(scored.is_fraud.mean())
    return Calibrated(
        bins,
        expected_calibration_error(bins),
        float(np.mean((scored.scores - scored.is_fraud) ** 2)),
        rate * (1.0 - rate),
        float(scored.scores.sum()),
        int(scored.is_fraud.sum()),
    )


def cards_by_day(series: Series, folds: Sequence[Fold]) -> list[tuple[int, float]]:
    """Each tested day with the share of defrauded cards among those picked; every fold begins anew."""
    days = series.scored.days
    found = []
    for fold in folds:
        rows = (days >= fold.tested_from) & (days < fold.tested_until)
        part = Scored(*(getattr(series.scored, f.name)[rows] for f in fields(Scored)))
        found += list(zip(np.unique(part.days).tolist(), card_precisions(part), strict=True))
    return found


def whole_days(at_ms: Ints) -> tuple[int, int]:
    """The first and last day of transactions in the order of time. Both count as whole."""
    return int(at_ms[0] // DAY_MS), int(at_ms[-1] // DAY_MS)
