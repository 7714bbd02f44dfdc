"""Prometheus's own tool: what it says of rules and configuration is what Prometheus does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

RULES = Path(__file__).parents[2] / "infra" / "docker" / "rules.yml"

STEP_S = 15
STEPS = 160
"""40 minutes: longer than any alert's window and patience together."""


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of it; fails where it is not installed."""
    found = shutil.which("promtool")
    assert found is not None, "promtool is not installed; run `infra/bootstrap.sh test`"
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60)


def fires(name: str, series: dict[str, str], alert: str, expected: bool) -> dict[str, Any]:
    """A unit test of promtool's: that the alert (a regular expression) fires within 25 minutes, or never.

    `series` has promtool's notation of values, one each `STEP_S` seconds.
    """
    firing = f'ALERTS{{alertname=~"{alert}", alertstate="firing"}}'
    return {
        "name": name,
        "interval": f"{STEP_S}s",
        "input_series": [{"series": s, "values": v} for s, v in series.items()],
        "promql_expr_test": [
            {
                "expr": f"group by (alertname) (count_over_time({firing}[40m]))",
                "eval_time": "25m" if expected else "40m",
                "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if expected else [],
            }
        ],
    }


def run(tests: list[dict[str, Any]], rules: list[dict[str, Any]], folder: Path) -> str:
    """Run unit tests over these rules; what promtool says of those that failed, or nothing."""
    alone = {"groups": [{"name": "tested", "rules": rules}]}
    every = f"{STEP_S}s"
    whole = {"rule_files": ["rules.json"], "evaluation_interval": every, "tests": tests}
    for name, content in (("rules", alone), ("tests", whole)):
        (folder / f"{name}.json").write_text(json.dumps(content))  # JSON is YAML
    done = promtool("test", "rules", str(folder / "tests.json"))
    return done.stdout + done.stderr if done.returncode else ""
