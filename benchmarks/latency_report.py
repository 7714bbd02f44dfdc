"""What the rounds of `benchmarks.latency` come to: the table, and the file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.arrivals import Waits
from benchmarks.harness import OURS, Check, command_line, publish
from benchmarks.stretches import Stretch

OTHERS = ("broker", "database", "sender", "topic watcher", "table watcher")
"""Whose processor time is not the subject's own."""


@dataclass
class Measured:
    """What was measured of a subject at one rate, round by round."""

    stretches: list[Stretch] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


Found = dict[tuple[str, int], Measured]
"""By subject and rate."""


def median(waits: Sequence[Waits]) -> Waits:
    """Of each percentile by itself."""
    return Waits(*(statistics.median(w) for w in zip(*(asdict(w).values() for w in waits), strict=True)))


def report(found: Found, more: Mapping[str, Any]) -> int:
    """Print the table and write the file; the exit code, 1 where a check failed."""
    entries = [entry(name, rate, measured) for (name, rate), measured in sorted(found.items())]
    ours = {e["rate"]: e["value"] for e in entries if e["name"] == OURS}
    table = Table(title="latency: ms from the scheduled time, medians of the rounds")
    table.add_column("subject")
    headings = (
        "rate",
        "p50",
        "p95",
        "p99",
        "max",
        "row p50",
        "row p99",
        "millrace p99",
        "cores",
        "sender p99",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for heading in ("held", "checked"):
        table.add_column(heading)
    for e in entries:
        decision, row = e["decision"] or {}, e["row"] or {}
        table.add_row(
            e["name"],
            f"{e['rate']:,}",
            *(_ms(decision.get(name)) for name in ("p50", "p95", "p99", "max")),
            *(_ms(row.get(name)) for name in ("p50", "p99")),
            _ms(ours.get(e["rate"])),
            f"{sum(e['cores'].values()):.2f}",
            _ms(e["sender"].get("p99")) + (" LATE" if e["sender_late"] else ""),
            "yes" if e["held"] else "NO",
            "yes" if e["checked"] else "NO",
        )
    return publish("latency", table, entries, **more)


def entry(name: str, rate: int, measured: Measured) -> dict[str, Any]:
    """A subject at one rate, as the file has it: `cores` of each process, `cpu_seconds` of its own alone."""
    stretches = measured.stretches
    rows = [s.row for s in stretches if s.row is not None]
    own = [sum(v for k, v in s.cores.items() if k not in OTHERS) for s in stretches]
    cpu_seconds = [cores * s.seconds for cores, s in zip(own, stretches, strict=True)]
    processes = stretches[0].cores if stretches else {}
    return {
        "name": name,
        "rate": rate,
        "value": median([s.decision for s in stretches]).p99 if stretches else None,
        "unit": "ms, p99 to the decision",
        "runs": [s.decision.p99 for s in stretches],
        "held": bool(stretches) and all(s.is_held for s in stretches),
        "checked": bool(stretches) and not measured.failures and all(c.passed for c in measured.checks),
        "check": {"command": command_line(), "slices": [asdict(c) for c in measured.checks]},
        "failures": measured.failures,
        "decision": asdict(median([s.decision for s in stretches])) if stretches else None,
        "row": asdict(median(rows)) if rows else None,
        "sender": asdict(median([s.sender for s in stretches])) if stretches else {},
        "sender_late": any(s.is_sender_late for s in stretches),
        "cores": {process: statistics.median(s.cores[process] for s in stretches) for process in processes},
        "cpu_seconds": statistics.median(cpu_seconds) if cpu_seconds else None,
        "records_per_cpu_second": rate / max(statistics.median(own), 0.001) if own else None,
        "rounds": [asdict(s) for s in stretches],
    }


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
