"""Alerts, dashboard and runbook: what they name exists, and each alert tells trouble from health."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import Settings
from infra.supervisor import specs, write_targets
from infra.telemetry.metrics import METRICS
from schemas.pipelines import PIPELINES
from tests.infra import promql
from tests.infra.promtool import RULES, promtool

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
GRAFANA = DOCKER / "grafana" / "provisioning"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "millrace.json").read_text())
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
QUERIES = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def query(expression: str) -> str:
    """As Prometheus gets it: Grafana puts the interval in."""
    return expression.replace("$__rate_interval", "1m")


# What they name


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_asks_for_what_is_measured(name: str) -> None:
    """Every metric and label of its expression exists, sides can match, and its words name labels it has."""
    rule = ALERTS[name]
    known = promql.labels(rule["expr"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= known


@pytest.mark.parametrize(("title", "expression", "legend"), QUERIES)
def test_a_panel_asks_for_what_is_measured(title: str, expression: str, legend: str) -> None:
    """The same for each query of the dashboard, and its legend."""
    known = promql.labels(query(expression))
    assert set(re.findall(r"{{(\w+)}}", legend)) <= known, title
    assert set(re.findall(r"\$(\w+)", expression)) <= {"pipeline", "__rate_interval"}


@pytest.mark.parametrize(
    "expression",
    [
        "millrace_lag_seconds",
        'millrace_lag_ms{group="fraud-sink"}',
        "sum by (producer) (millrace_lag_ms)",
        "millrace_batch_seconds",
        "histogram_quantile(0.9, sum by (consumer) (rate(millrace_batch_seconds_bucket[1m])))",
        "max by (consumer) (millrace_lag_ms) > max by (topic) (millrace_lag_records)",
        "millrace_lag_ms and on (process) millrace_lag_records",
    ],
)
def test_the_check_itself_finds_what_is_wrong(expression: str) -> None:
    """A wrong metric, label, grouping or matching is found, or the tests above would prove nothing."""
    with pytest.raises(promql.Unsound):
        promql.labels(expression)


def test_roles_and_pipelines_are_those_of_the_targets(tmp_path: Path) -> None:
    """What the supervisor tells Prometheus has the labels that expressions rely on, and their values."""
    settings = Settings({"MILLRACE_HOME": str(tmp_path)})
    wanted = specs(settings, PIPELINES, native=True)
    write_targets(settings, wanted)
    (file,) = settings.prometheus_targets.glob("*.json")
    targets = json.loads(file.read_text())
    assert {name for t in targets for name in t["labels"]} | {"job", "instance"} == promql.TARGET
    known = {(name, value) for t in targets for name, value in t["labels"].items()}
    expressions = [rule["expr"] for rule in ALERTS.values()] + [query(e) for _, e, _ in QUERIES]
    asked = {pair for e in expressions for _, equal in promql.selectors(e) for pair in equal}
    assert {p for p in asked if p[0] in ("role", "pipeline")} <= known
    ports = [t["targets"][0].split(":")[1] for t in targets]
    assert len(set(ports)) == len(ports) == len(wanted)  # the supervisor's own for the registry's


def test_the_dashboard_shows_every_metric_that_no_alert_watches() -> None:
    """No metric is measured for nobody: each is in an expression of the rules or the dashboard."""
    expressions = [rule["expr"] for rule in ALERTS.values()] + [query(e) for _, e, _ in QUERIES]
    asked = {name for e in expressions for name, _ in promql.selectors(e)}
    unseen = {m.name for m in METRICS if not any(name.startswith(m.name) for name in asked)}
    assert unseen == {"millrace_end_offset"}  # the lag's other half


def test_every_metric_is_measured_somewhere() -> None:
    """Each metric's variable is used by the code: an alert over one that nobody sets would never fire."""
    declared = (ROOT / "infra" / "telemetry" / "metrics.py").read_text()
    variables = re.findall(r"^([A-Z_]+) = _(?:counter|gauge|histogram)\(", declared, re.MULTILINE)
    assert len(variables) == len(METRICS)
    folders = ("infra", "connectors", "streams", "sinks", "api")
    code = "".join(p.read_text() for f in folders for p in (ROOT / f).rglob("*.py") if p.name != "metrics.py")
    assert [v for v in variables if not re.search(rf"\b{v}\.", code) and f"{v})" not in code] == []


# The dashboard


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    """Panels have ids of their own, do not overlap, and take their datasource from the variable."""
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not mine & cells, panel["title"]
        cells |= mine
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert [p["title"] for p in panels if p["type"] == "row"] == [
        "Pipelines",
        "Processors",
        "Sinks",
        "Connectors and API",
        "Processes",
        "What leaves the platform",
        "Who asks",
    ]


def test_compose_mounts_rules_and_provisioning() -> None:
    """The files stand where the containers look: Prometheus for its rules, Grafana for its dashboards."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounted = dict(v.split(":")[:2] for name in ("prometheus", "grafana") for v in services[name]["volumes"])
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    assert config["rule_files"] == [mounted["./infra/docker/rules.yml"]]
    assert mounted["./infra/docker/grafana/provisioning"] == "/etc/grafana/provisioning"
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "millrace.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/provisioning/dashboards"


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    """prometheus.yml and the rules are such that Prometheus starts with them."""
    text = (DOCKER / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("/etc/prometheus/rules.yml", str(RULES)))
    done = promtool("check", "config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


# The runbook


def test_alerts_and_runbook_sections_belong_together() -> None:
    """Each alert has its section, to which it links; each section of an alert has its alert."""
    part = RUNBOOK.split("\n## Alerts\n")[1].split("\n## ")[0]
    sections = re.findall(r"^### (\w+)$", part, re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        section = part.split(f"\n### {name}\n")[1].split("\n### ")[0]
        assert "`" in section, f"{name} has no command"
