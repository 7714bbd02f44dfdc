"""Figures that are not rates of slices: seconds, ratios, counts, each of so many runs and with its checks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Check, command_line, save


@dataclass
class Figure:
    """One line of a benchmark's table: what each run gave (None: it failed), and what its checker says.

    `more` are other figures of the same line, by heading: the median or the worst, as the benchmark says.
    `failed` is why a run has no figure.
    """

    name: str
    unit: str
    runs: list[float | None] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    more: dict[str, float | str | None] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        """The median of the runs that gave a figure."""
        some = [run for run in self.runs if run is not None]
        return statistics.median(some) if some else None

    @property
    def checked(self) -> bool:
        """Whether every run was checked and passed."""
        return bool(self.checks) and not self.failed and all(check.passed for check in self.checks)

    def document(self) -> dict[str, Any]:
        """As it stands in the benchmark's file."""
        slices = [*(asdict(check) for check in self.checks), *({"failed": reason} for reason in self.failed)]
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "runs": self.runs,
            "checked": self.checked,
            "check": {"command": command_line(), "slices": slices},
            **self.more,
        }


def report(benchmark: str, about: str, figures: Sequence[Figure], **more: Any) -> int:
    """Print the table, write the file of the same; returns the exit code, 1 where a check failed."""
    headings = list(dict.fromkeys(heading for figure in figures for heading in figure.more))
    table = Table(title=f"{benchmark}: {about}")
    table.add_column("subject")
    for heading in ("median", "unit", "least to most", *headings):
        table.add_column(heading.replace("_", " "), justify="right")
    table.add_column("checked")
    for figure in figures:
        some = [run for run in figure.runs if run is not None]
        table.add_row(
            figure.name,
            shown(figure.value),
            figure.unit,
            f"{shown(min(some))} to {shown(max(some))}" if some else "–",
            *(shown(figure.more.get(heading)) for heading in headings),
            "yes" if figure.checked else "NO",
        )
    Console(width=160).print(table)
    for figure in figures:
        for reason in figure.failed:
            print(f"{figure.name}: {reason}")
        for check in figure.checks:
            if not check.passed:
                print(f"{figure.name}: {check}")
    return save(benchmark, [figure.document() for figure in figures], **more)


def shown(value: float | str | None) -> str:
    """A figure for people: three digits where it is small."""
    if value is None or isinstance(value, str):
        return value or "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summed(checks: Sequence[Check]) -> Mapping[str, int]:
    """The counts of several checks, added up."""
    total: dict[str, int] = {}
    for check in checks:
        for name, count in check.counts.items():
            total[name] = total.get(name, 0) + count
    return total
