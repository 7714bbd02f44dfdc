"""The watchdog: what it takes for stuck, told the time by the test; and a real process that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import exit_codes
from infra.broker import producer
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.settings import Settings
from infra.watchdog import Standstill
from tests.accounts import Accounts

AT, OTHER = TopicPartition("t", 0), TopicPartition("t", 1)
PERIOD_S = 100.0

Look = tuple[float, int, int]
"""Seconds, position, end offset."""


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        pytest.param([(0, 5, 10), (99, 5, 20)], 0, id="not long enough"),
        pytest.param([(0, 5, 10), (100, 5, 20)], 1, id="still, and the lag grew"),
        pytest.param([(0, 5, 10), (500, 5, 10)], 0, id="still, but the lag does not grow"),
        pytest.param([(0, 5, 10), (60, 6, 20), (120, 6, 30)], 0, id="it moved in between"),
        pytest.param([(0, 5, 10), (60, 6, 20), (160, 6, 30)], 1, id="it moved, and then stood still"),
        pytest.param([(0, 5, 5), (500, 5, 6), (550, 5, 7)], 0, id="idle for long, then one record"),
        pytest.param([(0, 5, 5), (500, 5, 6), (600, 5, 7)], 1, id="idle, and then stuck"),
    ],
)
def test_still_while_the_lag_grows(looks: list[Look], expected: int) -> None:
    """Stuck: the position has not moved for the period, and more records wait than at its beginning."""
    standstill = Standstill(PERIOD_S)
    found: list[str] = []
    for now, position, end in looks:
        assert not found
        found = standstill.look(now, {AT: position}, {AT: end})
    assert len(found) == expected


def test_one_stuck_partition_among_others_is_named() -> None:
    """Partitions that move do not hide one that does not, nor does one that was given up meanwhile."""
    standstill = Standstill(PERIOD_S)
    standstill.look(0, {AT: 5, OTHER: 5}, {AT: 10, OTHER: 10})
    [sentence] = standstill.look(100, {AT: 5, OTHER: 9}, {AT: 12, OTHER: 10})
    assert sentence == "position 5 of t/0 has stood still for 100 s while its lag grew from 5 to 7"
    assert standstill.look(200, {OTHER: 10}, {OTHER: 10}) == []
    assert standstill.look(201, {AT: 5, OTHER: 10}, {AT: 99, OTHER: 10}) == []  # taken anew


def test_whoever_waits_for_a_service_is_not_stuck() -> None:
    """The period begins anew after a known outage."""
    standstill = Standstill(PERIOD_S)
    standstill.look(0, {AT: 5}, {AT: 10})
    assert standstill.look(150, {AT: 5}, {AT: 20}, excused=True) == []
    assert standstill.look(249, {AT: 5}, {AT: 30}) == []
    assert len(standstill.look(250, {AT: 5}, {AT: 40})) == 1


HANGING = """
import sys, threading
from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health
from infra.watchdog import Watchdog
from sinks.runtime import Sink
from tests.accounts import Accounts

def hang_in_a_lock(event):
    threading.Lock().acquire() and threading.Event().wait()

def main(settings: Settings, health: Health) -> None:
    accounts = Accounts(sys.argv[1])
    object.__setattr__(accounts.rows[0], "columns", hang_in_a_lock)
    sink = Sink(settings, accounts.pipeline, accounts.rows, health)
    Watchdog(settings.kafka, [sink.progress], 3.0)
    sink.run()

process.run("sink", "accounts", main)
"""


def test_a_process_that_hangs_is_ended_with_its_stacks(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """A sink stuck in its code while records come in ends with the exit code of a restart, saying where."""
    sender = producer(database.kafka)

    def send(n: int) -> None:
        event = {
            "event_id": f"e{n}",
            "input_id": f"e{n}",
            "tenant": "default",
            "occurred_at": 1_700_000_000_000,
            "account": "a",
            "amount_minor": 1,
            "balance_minor": n,
            "version": n,
            "limits_version": 0,
        }
        sender.produce(accounts.balances.name, codec.encode(accounts.balances, event), "a")
        assert sender.flush(10) == 0

    send(0)
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, accounts.pipeline.name],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    n = 0
    while process.poll() is None:
        assert time.monotonic() < until, "the watchdog has not ended it"
        n += 1
        send(n)
        time.sleep(0.5)
    out, err = process.communicate()
    assert process.returncode == exit_codes.STUCK, err
    assert "has stood still for" in out + err and "hang_in_a_lock" in err
