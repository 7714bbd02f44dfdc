"""A processor or a sink of the example pipeline, or the gateway, as a process that may die at a named place.

`python -m tests.faults.worker processor|sink PREFIX`, or `gateway`. DIE_AT=place:n kills it (SIGKILL) the
n-th time that it comes by the place, DIE_AT=place:n:STOP makes it stand still there (SIGSTOP) until somebody
sends SIGCONT. CLOCK_SHIFT_S=n sets its clock (not its time-outs) wrong by so many seconds.
The places are wrapped around the product's own methods; nothing in it knows of them.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import time_machine

from connectors.__main__ import main as connectors
from infra import process
from infra.settings import Settings
from infra.telemetry.health import Health
from sinks.runtime import Sink
from streams.runtime import Worker
from tests.accounts import Accounts

PLACES: dict[str, tuple[str, str, bool]] = {
    # sink
    "before-transaction": ("sinks.writer:Writer", "_commit", False),
    "after-rows": ("sinks.writer:Writer", "_store", True),
    "after-commit": ("infra.broker:Source", "hint", False),
    "in-rebalance": ("sinks.writer:Writer", "claim", True),
    "dead-letter-sent": ("sinks.writer:Writer", "_mirror", True),
    # processor
    "applied": ("streams.runner:Runner", "apply", True),
    "outputs-acknowledged": ("infra.checkpoints:Checkpoints", "lock", False),
    "state-written": ("streams.runner:Runner", "_write_state", True),
    "claimed": ("streams.runner:Runner", "claim", True),
    # gateway
    "event-acknowledged": ("connectors.publish:Accepted", "of", False),
}
"""Place -> class, method, and whether it dies after the call rather than before."""


def die_at(place: str, nth: int, number: signal.Signals) -> None:
    """Wrap the place's method so that its n-th call is the last thing this process does."""
    path, name, after = PLACES[place]
    module, _, of = path.partition(":")
    owner = getattr(importlib.import_module(module), of)
    method: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def end() -> None:
        # To this thread: sent to the process, another one might take it while this one goes on to commit.
        signal.pthread_kill(threading.get_ident(), number)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        this = calls  # the method may call itself
        if this == nth and not after:
            end()
        result = method(*args, **kwargs)
        if this == nth and after:
            end()
        return result

    setattr(owner, name, wrapped)


def main(settings: Settings, health: Health) -> None:
    accounts = Accounts(sys.argv[2])
    instance = settings.text("instance")
    if sys.argv[1] == "sink":
        sink = Sink(settings, accounts.pipeline, accounts.rows, health, instance)
        process.on_termination(sink.ending.set)
        sink.run()
        return

    async def run() -> None:
        ending = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        logics = {accounts.processor.name: accounts.logic}
        compaction = lambda _: [sys.executable, "-m", "tests.accounts.compaction", sys.argv[2]]  # noqa: E731
        await Worker(settings, accounts.pipeline, logics, health, instance, compaction).run(ending)

    asyncio.run(run())


if __name__ == "__main__":
    if said := os.environ.get("DIE_AT"):
        place, nth, name = (*said.split(":"), "KILL")[:3]
        die_at(place, int(nth), signal.Signals[f"SIG{name}"])
    if shift_s := float(os.environ.get("CLOCK_SHIFT_S", "0")):
        time_machine.travel(datetime.now(UTC) + timedelta(seconds=shift_s)).start()
        print(json.dumps({"time": datetime.now(UTC).isoformat()}), flush=True)
    if sys.argv[1:] == ["gateway"]:
        sys.exit(connectors(sys.argv[1:]))
    process.run(sys.argv[1], sys.argv[2], main)
