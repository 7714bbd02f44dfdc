"""A file of labelled transactions evaluated: the handbook's table, and our model week after week."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt

from models import entities
from models.boosted import BoostedTrees, Calibration
from models.handbook import table
from models.handbook.metrics import (
    Bin,
    Metrics,
    Scored,
    card_precisions,
    expected_calibration_error,
    reliability,
)
from models.handbook.protocol import DAY_MS, DELAY_DAYS, TEST_DAYS, Fold, Ints, prequential

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Progress = Callable[[str], None]

PUBLISHED_TEST_FROM = 17_751
"""2018-08-08, the first day that chapter 3 tests on."""
CALIBRATION_WEEKS = 2
"""The latest tested weeks whose labels are known when a fold's training ends."""
OURS = "boosted trees, ours"
PERFECT = "perfect order"


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of rows that may be trained or tested on, by row, in the order of time.

    `days` since 1970-01-01, UTC; `handbook` are its features, `ours` those of `models.entities`.
    """

    days: Ints
    customers: Ints
    is_fraud: Bools
    handbook: npt.NDArray[np.float32]
    ours: npt.NDArray[np.float32]

    def scored(self, rows: Ints, scores: Floats) -> Scored:
        return Scored(self.days[rows], self.customers[rows], self.is_fraud[rows], scores)


def kept_from(folds: Sequence[Fold]) -> int:
    """The first day of which rows are needed for these folds, those to calibrate by included."""
    return (
        min(f.tested_from for f in folds)
        - DELAY_DAYS
        - TEST_DAYS * (1 + CALIBRATION_WEEKS)
        - (entities.TRAINED_DAYS)
    )


@dataclass(slots=True)
class Kept:
    """Rows as they come by the batch; only those from `from_day` on are kept."""

    from_day: int
    parts: list[Rows] = field(default_factory=list)

    def add(
        self, at_ms: Ints, customers: Ints, amount: Ints, is_fraud: Bools, windows: Mapping[str, Ints]
    ) -> None:
        days = at_ms // DAY_MS
        start = int(np.searchsorted(days, self.from_day))
        if start == len(days):
            return
        late = {name: values[start:] for name, values in windows.items()}
        self.parts.append(
            Rows(
                days[start:],
                customers[start:],
                is_fraud[start:],
                table.features(at_ms[start:], amount[start:], late).astype(np.float32),
                entities.features(at_ms[start:], amount[start:], late),
            )
        )

    def rows(self) -> Rows:
        columns = [np.concatenate([getattr(p, name) for p in self.parts]) for name in Rows.__slots__]
        return Rows(*columns)


@dataclass(frozen=True, slots=True)
class Line:
    """A model's metrics in the table, and what is published of it."""

    name: str
    measured: Metrics
    published: Metrics | None

    @property
    def reproduced(self) -> bool | None:
        """Whether every metric is within `table.TOLERANCE` of the published one, to three digits."""
        if self.published is None:
            return None
        pairs = zip(self.measured.values(), self.published.values(), strict=True)
        return all(round(abs(m - p), 3) <= table.TOLERANCE for m, p in pairs)


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

    def ours(self) -> Series:
        return next(s for s in self.series if s.name == OURS)


def folds_of(first_day: int, last_day: int, weeks: int) -> tuple[list[Fold], Fold]:
    """The weeks to test, and the table's fold: the published one where the days reach it, else the first."""
    folds = prequential(first_day, last_day, weeks)
    published = Fold(PUBLISHED_TEST_FROM)
    covered = first_day <= published.trained_from and published.tested_until <= last_day + 1
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

    `progress` is told what is done next. Raises ValueError where a fold has too few frauds to say anything.
    """
    ours = _Ours(rows, progress)
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
    return Evaluation(source, *totals, table_fold, lines, list(folds), found, _calibrated(_joined(chances)))


class _Ours:
    """Our model, trained for each week once."""

    def __init__(self, rows: Rows, progress: Progress) -> None:
        self._rows = rows
        self._progress = progress
        self._margins: dict[int, Ints] = {}

    def asked(self, fold: Fold) -> Ints:
        return fold.test_rows(self._rows.days, self._rows.customers, self._rows.is_fraud)

    def chances(self, fold: Fold) -> Scored:
        """The fold's tested rows with calibrated chances, by what is known when its training ends."""
        weeks = [Fold(fold.tested_from - TEST_DAYS * (2 + n)) for n in range(CALIBRATION_WEEKS)]
        known = [week for week in weeks if self._is_taught(week)]
        if known:
            margins = np.concatenate([self._margins_of(week) for week in known])
            labels = np.concatenate([self._rows.is_fraud[self.asked(week)] for week in known])
            calibration = Calibration.of(margins, labels)
        else:  # the transactions do not reach back far enough
            calibration = Calibration.line(1.0, 0.0)
        asked = self.asked(fold)
        return self._rows.scored(asked, calibration.of_margins(self._margins_of(fold)))

    def _is_taught(self, week: Fold) -> bool:
        rows = week.training_rows(self._rows.days)
        return (
            len(rows) > 0
            and self._rows.days[0] <= week.trained_from
            and int(self._rows.is_fraud[rows].sum()) >= entities.FRAUDS_MIN
            and bool(self._rows.is_fraud[self.asked(week)].any())
        )

    def _margins_of(self, week: Fold) -> Ints:
        if week.tested_from not in self._margins:
            self._progress(f"{OURS}, tested from {day_name(week.tested_from)}")
            fold = Fold(week.tested_from, entities.TRAINED_DAYS)
            taught = fold.training_rows(self._rows.days)
            model = entities.train(self._rows.ours[taught], self._rows.is_fraud[taught])
            self._margins[week.tested_from] = BoostedTrees.of(model).margins(
                self._rows.ours[self.asked(week)]
            )
        return self._margins[week.tested_from]


def _series(name: str, scored: list[Scored]) -> Series:
    return Series(name, [Metrics.of(s) for s in scored], _joined(scored))


def _joined(scored: list[Scored]) -> Scored:
    return Scored(*(np.concatenate([getattr(s, name) for s in scored]) for name in Scored.__slots__))


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
        part = Scored(*(getattr(series.scored, name)[rows] for name in Scored.__slots__))
        found += list(zip(np.unique(part.days).tolist(), card_precisions(part), strict=True))
    return found


def whole_days(at_ms: Ints) -> tuple[int, int]:
    """The first and last day of transactions in the order of time. Both count as whole."""
    return int(at_ms[0] // DAY_MS), int(at_ms[-1] // DAY_MS)


def day_number(day: datetime) -> int:
    """A day as a number since 1970-01-01."""
    return day.toordinal() - datetime(1970, 1, 1).toordinal()  # noqa: DTZ001 - days alone


def day_name(day: int) -> str:
    """A day since 1970-01-01 as people write it."""
    return str(np.datetime64(day, "D"))
