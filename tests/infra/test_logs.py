"""Structured logs: whatever is logged, stderr has one JSON object a line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SCRIPT = """
import logging, threading, warnings
from infra.telemetry import logs
logs.configure("processor", "fraud", "debug")
log = logging.getLogger("millrace.test")
log.info("plain %s", "text")
log.warning("placed", extra={"topic": "card-transactions", "partition": 3, "offset": 2**70, "key": b"\\xff"})
log.debug("two\\nlines")
log.info("lone surrogate \\ud800")
log.error("names", extra={"level": "mine", "pid": -1})
try:
    {}["missing"]
except KeyError:
    log.exception("failed", extra={"topic": "orders"})
warnings.warn("look out")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise RuntimeError("the end")
"""


def lines() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_line_is_json_with_the_common_fields() -> None:
    """Messages, exceptions, warnings and what nobody caught are each one JSON line with who and when."""
    found = lines()
    assert len(found) == 9
    for line in found:
        assert line["role"] == "processor"
        assert line["pipeline"] == "fraud"
        assert isinstance(line["pid"], int)
        assert line["time"].endswith("+00:00")
        assert {"level", "logger", "message"} <= line.keys()
    plain, placed, _, surrogate, names, failed, warned, thread, end = found
    assert plain["message"] == "plain text"
    assert (placed["topic"], placed["level"]) == ("card-transactions", "WARNING")
    assert placed["offset"] == 2**70
    assert surrogate["message"] == "lone surrogate \ud800"
    assert names["level"] == "ERROR"
    assert failed["topic"] == "orders"
    assert failed["exception"].startswith("Traceback")
    assert "KeyError: 'missing'" in failed["exception"]
    assert "look out" in warned["message"]
    assert "ZeroDivisionError" in thread["exception"]
    assert thread["thread_name"] == "worker"
    assert (end["level"], end["message"]) == ("CRITICAL", "uncaught exception")
    assert "RuntimeError: the end" in end["exception"]
