"""What people see while a pipeline runs: a live table on a terminal, otherwise a line now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.watch import Figures

COLUMNS = (
    "pipeline",
    "acknowledged",
    "decided",
    "in the sink",
    "duplicates",
    "dead letters",
    "records/s",
    "lag s",
)


def render(figures: Mapping[str, Figures], title: str, notes: Sequence[str]) -> RenderableType:
    """The table with a title above and notes (addresses, what is wrong) below."""
    table = Table(title=title, title_justify="left")
    for n, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if n else "left", min_width=8)
    for name, f in figures.items():
        table.add_row(
            name,
            f"{f.acknowledged:,}",
            f"{f.decided:,}",
            f"{f.in_sink:,}",
            f"{f.duplicates:,}",
            f"{f.dead_letters:,}",
            f"{f.records_per_second:,.1f}",
            f"{f.lag_s:,.1f}",
        )
    return Group(table, Text("\n".join(notes)))


def line(name: str, f: Figures) -> str:
    """One pipeline in one line."""
    return (
        f"{name:<8} acknowledged {f.acknowledged:<7} decided {f.decided:<7} in the sink {f.in_sink:<7}"
        f" duplicates {f.duplicates:<5} dead letters {f.dead_letters:<4}"
        f" {f.records_per_second:>7.1f} records/s  lag {f.lag_s:.1f} s"
    )
