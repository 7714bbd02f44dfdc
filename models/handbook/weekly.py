"""Our model week after week: trained and calibrated by what was known before each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from models import entities
from models.boosted import BoostedTrees, Calibration
from models.drift import Reference
from models.entities import EntityModel
from models.handbook import table
from models.handbook.metrics import Scored
from models.handbook.protocol import DAY_MS, DELAY_DAYS, TEST_DAYS, Fold, Ints, day_name

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Progress = Callable[[str], None]

CALIBRATION_WEEKS = 2
"""The latest tested weeks whose labels are known when a fold's training ends."""


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
        """Some of the rows with what a model says of each."""
        return Scored(self.days[rows], self.customers[rows], self.is_fraud[rows], scores)


def kept_from(folds: Sequence[Fold]) -> int:
    """The first day of which rows are needed for these folds, those to calibrate by included."""
    return (
        min(f.tested_from for f in folds)
        - DELAY_DAYS
        - TEST_DAYS * (1 + CALIBRATION_WEEKS)
        - entities.TRAINED_DAYS
    )


@dataclass(slots=True)
class Kept:
    """Rows as they come by the batch, in the order of time; only those from `from_day` on are kept."""

    from_day: int
    parts: list[Rows] = field(default_factory=list)

    def add(
        self, at_ms: Ints, customers: Ints, amount: Ints, is_fraud: Bools, windows: Mapping[str, Ints]
    ) -> None:
        """Make the features of a batch: event time (ms), customer, amount (minor units), label, windows."""
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
        """All that was kept. Raises ValueError where that is nothing."""
        columns = [np.concatenate([getattr(p, f.name) for p in self.parts]) for f in fields(Rows)]
        return Rows(*columns)


class Weekly:
    """Our model, trained for each week once. `progress` is told what is trained next."""

    def __init__(self, rows: Rows, progress: Progress = lambda _: None) -> None:
        self._rows = rows
        self._progress = progress
        self._trees: dict[int, BoostedTrees] = {}

    def asked(self, fold: Fold) -> Ints:
        """The rows that the fold tests."""
        return fold.test_rows(self._rows.days, self._rows.customers, self._rows.is_fraud)

    def model(self, fold: Fold) -> EntityModel:
        """The model as it would have been put to work on the fold's first tested day.

        It is calibrated on the weeks before that are known by then, with the trees of their own time; where
        the rows do not reach back far enough, by nothing. Raises TooLittleError
        for too few frauds to learn from.
        """
        weeks = [Fold(fold.tested_from - TEST_DAYS * (2 + n)) for n in range(CALIBRATION_WEEKS)]
        known = [week for week in weeks if self._is_taught(week)]
        trees = self._trees_of(fold)
        if not known:
            return EntityModel(entities.FEATURES, trees, Calibration.line(1.0, 0.0))
        margins = [self._trees_of(week).margins(self._rows.ours[self.asked(week)]) for week in known]
        labels = [self._rows.is_fraud[self.asked(week)] for week in known]
        calibration = Calibration.of(np.concatenate(margins), np.concatenate(labels))
        return EntityModel(entities.FEATURES, trees, calibration)

    def chances(self, fold: Fold) -> Scored:
        """The fold's tested rows with the chances that the model gives them."""
        asked = self.asked(fold)
        return self._rows.scored(asked, self.model(fold).chances(self._rows.ours[asked]))

    def drift(self, fold: Fold) -> dict[str, float]:
        """Of each feature the population stability index of the tested days against those trained on."""
        days = self._rows.days
        taught = Fold(fold.tested_from, entities.TRAINED_DAYS).training_rows(days)
        now = (days >= fold.tested_from) & (days < fold.tested_until)
        return {
            name: Reference.of(self._rows.ours[taught, n]).index(self._rows.ours[now, n])
            for n, name in enumerate(entities.FEATURES)
        }

    def _is_taught(self, week: Fold) -> bool:
        rows = week.training_rows(self._rows.days)
        return (
            len(rows) > 0
            and int(self._rows.days[0]) <= week.trained_from
            and int(self._rows.is_fraud[rows].sum()) >= entities.FRAUDS_MIN
            and bool(self._rows.is_fraud[self.asked(week)].any())
        )

    def _trees_of(self, week: Fold) -> BoostedTrees:
        if week.tested_from not in self._trees:
            self._progress(f"boosted trees for the week from {day_name(week.tested_from)}")
            taught = Fold(week.tested_from, entities.TRAINED_DAYS).training_rows(self._rows.days)
            model = entities.train(self._rows.ours[taught], self._rows.is_fraud[taught])
            self._trees[week.tested_from] = BoostedTrees.of(model)
        return self._trees[week.tested_from]
