"""What each alert fires on, and what it keeps silent about, by Prometheus's own evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra import promtool
from tests.infra.promtool import STEP_S, STEPS, fires, run

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(promtool.RULES.read_text())["groups"]
    for rule in group["rules"]
}

Labels = dict[str, str]

SINK = {"consumer": "fraud-sink", "topic": "card-decisions", "role": "sink", "pipeline": "fraud"}
SECOND_SINK = SINK | {"instance": "another"}
SCORING = {
    "consumer": "fraud-scoring",
    "topic": "card-transactions",
    "role": "processor",
    "pipeline": "fraud",
}
GATEWAY = {"role": "connector", "pipeline": "gateway", "job": "millrace"}
PRODUCER = GATEWAY | {"producer": "gateway"}
REQUESTS = GATEWAY | {"service": "gateway", "method": "POST", "route": "/v1/transactions"}
BRIDGE = {"role": "connector", "pipeline": "mqtt", "job": "millrace"}
WEBHOOKS = {"role": "connector", "pipeline": "webhooks", "job": "millrace"}
SUPERVISOR = {"role": "supervisor", "pipeline": "all", "job": "millrace"}


def of(name: str, labels: Labels, **more: str) -> str:
    """A series as promtool writes it, of one of our metrics or `up`."""
    listed = ",".join(f'{label}="{value}"' for label, value in (labels | more).items())
    return f"{name if name == 'up' else 'millrace_' + name}{{{listed}}}"


def always(value: float) -> str:
    return f"{value}x{STEPS}"


def rising(step: float) -> str:
    return f"0+{step}x{STEPS}"


def peak(usual: float, high: float, minutes: float) -> str:
    """A value that is `high` for so long, after a quarter of an hour, and `usual` before and after."""
    steps = round(minutes * 60 / STEP_S)
    return f"{usual}x60 {high}x{steps - 1} {usual}x{STEPS - 61 - steps}"


def seconds(
    name: str, labels: Labels, at_most: float, *, otherwise: float | None = None, minutes: float = 0
) -> dict[str, str]:
    """A histogram that gets 100 observations each step, all in the bucket that ends at `at_most`.

    With `otherwise`, they lie in that bucket for so many minutes, after a quarter of an hour.
    """
    steps = round(minutes * 60 / STEP_S)
    found = {}
    for text in ("0.1", "1", "2.5", "5", "+Inf"):
        usual = 100 if float(text) >= at_most else 0
        then = usual if otherwise is None else 100 if float(text) >= otherwise else 0
        parts = (
            (0, usual, 60),
            (60 * usual, then, steps),
            (60 * usual + steps * then, usual, STEPS - 60 - steps),
        )
        values = " ".join(f"{start}+{step}x{n - 1}" for start, step, n in parts if n)
        found[of(f"{name}_bucket", labels, le=text)] = values
    return found


HEALTHY: dict[str, str] = {
    of("lag_ms", SINK): always(120),
    of("lag_records", SINK, partition="0"): always(300),
    of("position", SINK, partition="0"): rising(15_000),
    # Nothing comes and nothing waits: standing still is no fault.
    of("lag_records", SINK, partition="1"): always(0),
    of("position", SINK, partition="1"): always(7),
    of("declared_partitions", SUPERVISOR, consumer="fraud-sink", topic="card-decisions"): always(12),
    of("assigned_partitions", SINK): always(7),
    of("assigned_partitions", SECOND_SINK): always(5),
    of("transient_errors_total", SINK): f"0x40 5x{STEPS - 41}",
    **seconds("batch_seconds", SINK, 0.1),
    **seconds("checkpoint_seconds", SCORING, 0.1),
    **seconds("produce_seconds", PRODUCER, 0.1),
    **seconds("http_request_seconds", REQUESTS, 0.1),
    of("rebalances_total", SINK, outcome="assigned"): always(1),
    of("rebalances_total", SINK, outcome="revoked"): f"0x80 1x{STEPS - 81}",
    of("records_consumed_total", SCORING): rising(15_000),
    of("dead_letters_total", SCORING): rising(1),
    # One record that was too large; its client was told.
    of("produce_failures_total", PRODUCER, topic="card-transactions", outcome="refused"): (
        f"0x60 1x{STEPS - 61}"
    ),
    of("http_requests_total", REQUESTS, status="202"): rising(1_500),
    of("http_requests_total", REQUESTS, status="503"): rising(3),
    of("http_requests_total", REQUESTS | {"route": "/health/ready"}, status="503"): rising(900),
    of("mqtt_connected", BRIDGE): always(1),
    of("mqtt_connected", GATEWAY): always(0),
    of("condition", SUPERVISOR, condition="sink-fraud"): always(1),
    of("process_restarts_total", SUPERVISOR, process="sink-fraud"): always(1),
    of("outward_oldest_seconds", WEBHOOKS): always(2),
    of("outward_oldest_seconds", GATEWAY): always(0),
    of("outward_disabled", WEBHOOKS): always(0),
    of("ledger_signings_total", SINK): rising(1),
    of("ledger_signings_total", GATEWAY): always(0),
    of("ready", GATEWAY): always(1),
    of("up", GATEWAY): always(1),
    of("up", SUPERVISOR): always(1),
}


Series = dict[str, str | None]
"""What differs from the healthy series; None: the series is not there."""


@dataclass(frozen=True)
class Case:
    """Series on which the alert must fire, and trouble of its kind that passes by itself or is not enough."""

    alert: str
    fires: Series = field(default_factory=dict)
    passes: Series = field(default_factory=dict)


def case(alert: str, series: str, fires: str | None, passes: str | None = None) -> Case:
    """A case of one series."""
    return Case(alert, {series: fires}, {series: passes} if passes else {})


def quantile(alert: str, name: str, labels: Labels, *, fires: float, passes: float) -> Case:
    """A case of a histogram: the bucket over the threshold, and the one up to it; besides, the first for
    three minutes only."""
    return Case(
        alert,
        {**seconds(name, labels, fires)},
        {**seconds(name, labels, passes, otherwise=fires, minutes=3)},
    )


CASES = [
    case("LagOld", of("lag_ms", SINK), always(61e3), peak(120, 90e3, 4)),
    Case("LagOld", passes={of("lag_ms", SINK): always(59e3)}),
    # What there is much of, but less and less, needs nobody.
    case(
        "LagGrows",
        of("lag_records", SINK, partition="0"),
        rising(500),
        passes=f"90000-500x{STEPS}",
    ),
    Case(
        "LagGrows", passes={of("lag_records", SINK, partition="0"): "300x60 300+2000x19 38300-2000x19 300x60"}
    ),
    Case("LagGrows", passes={of("lag_records", SINK, partition="0"): rising(60)}),
    case("LagNearsRetention", of("lag_ms", SINK), always(44e6), always(40e6)),
    case(
        "PositionStandsStill",
        of("position", SINK, partition="0"),
        always(5),
        passes=f"0+15000x60 900000x11 900000+15000x{STEPS - 73}",
    ),
    case("PartitionWithoutOwner", of("assigned_partitions", SINK), always(6), peak(7, 0, 1)),
    Case(
        "PartitionWithoutOwner",
        {of("assigned_partitions", SINK): None, of("assigned_partitions", SECOND_SINK): None},
    ),
    case(
        "TransientErrorsLast",
        of("transient_errors_total", SINK),
        rising(3),
        passes=f"0x60 0+3x4 12x{STEPS - 66}",
    ),
    quantile("CommitSlow", "batch_seconds", SINK, fires=5, passes=2.5),
    quantile("CommitSlow", "checkpoint_seconds", SCORING, fires=5, passes=2.5),
    case(
        "RebalancesRepeat",
        of("rebalances_total", SINK, outcome="lost"),
        rising(1),
        passes=f"0+1x5 5x{STEPS - 6}",
    ),
    case("DeadLettersRise", of("dead_letters_total", SCORING), rising(200), passes=rising(100)),
    # Half of it, but a handful in all.
    Case(
        "DeadLettersRise",
        {of("dead_letters_total", SCORING): rising(200)},
        {
            of("records_consumed_total", SCORING): rising(0.2),
            of("dead_letters_total", SCORING): rising(0.1),
        },
    ),
    case("DeadLetterLimitNear", of("dead_letters_total", SCORING), rising(4_500), passes=rising(3_000)),
    case(
        "ProduceFails",
        of("produce_failures_total", PRODUCER, topic="card-transactions", outcome="unknown"),
        rising(2),
        passes=f"0x60 0+5x8 40x{STEPS - 70}",
    ),
    quantile("ProduceSlow", "produce_seconds", PRODUCER, fires=2.5, passes=1),
    case("HttpErrors", of("http_requests_total", REQUESTS, status="500"), rising(30), passes=rising(10)),
    Case("HttpErrors", passes={of("http_requests_total", REQUESTS, status="500"): "0x60 0+90x6 540x92"}),
    quantile("HttpSlow", "http_request_seconds", REQUESTS, fires=5, passes=2.5),
    case("MqttDisconnected", of("mqtt_connected", BRIDGE), always(0), peak(1, 0, 0.75)),
    case("DeliveriesWait", of("outward_oldest_seconds", WEBHOOKS), always(1_200), peak(2, 1_200, 3)),
    Case("DeliveriesWait", passes={of("outward_oldest_seconds", WEBHOOKS): always(800)}),
    case("EndpointDisabled", of("outward_disabled", WEBHOOKS), always(1), peak(0, 1, 3)),
    case(
        "LedgerHeadsOld",
        of("ledger_signings_total", SINK),
        always(9),
        passes=f"0+1x60 60x8 60+1x{STEPS - 70}",
    ),
    case("ProcessDown", of("condition", SUPERVISOR, condition="sink-fraud"), always(0), peak(1, 0, 0.75)),
    case(
        "ProcessRestarts",
        of("process_restarts_total", SUPERVISOR, process="sink-fraud"),
        rising(0.5),
        passes=rising(0.025),
    ),
    case("ProcessNotReady", of("ready", GATEWAY), always(0), peak(1, 0, 2)),
    case("ProcessNotReady", of("up", GATEWAY), always(0)),
    case("SupervisorDown", of("up", SUPERVISOR), always(0), peak(1, 0, 0.75)),
    case("SupervisorDown", of("up", SUPERVISOR), None),
]


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    """The healthy series, with their small troubles, are nothing to any alert."""
    assert not run([fires("healthy", HEALTHY, ".*", expected=False)], list(RULES.values()), tmp_path)


@pytest.mark.parametrize("name", RULES)
def test_an_alert_tells_trouble_from_health(name: str, tmp_path: Path) -> None:
    """It fires on series that deserve it, and not on trouble that passes by itself or is not enough."""
    tests = []
    for c in (c for c in CASES if c.alert == name):
        if c.fires:
            tests.append(fires(f"{name} fires", changed(c.fires), name, expected=True))
        if c.passes:
            tests.append(fires(f"{name} passes", changed(c.passes), name, expected=False))
    assert any(c.alert == name and c.fires for c in CASES), "nothing makes it fire"
    failed = run(tests, [RULES[name]], tmp_path)
    assert not failed, failed


def changed(series: Series) -> dict[str, str]:
    """The healthy series with these in their places."""
    return {name: values for name, values in (HEALTHY | series).items() if values is not None}
