"""How long a processor takes to get its state back: `PYTHONPATH=. python -m benchmarks.state_recovery`.

Starts services of its own (MILLRACE_HOME, MILLRACE_PORT_BASE as given), stores the state of one partition
with so many keys in the way the runtime does, as a snapshot, and claims the partition anew.
Prints seconds and what they are made of; the ratios say more than the figures of one machine:

- fetch: reading the same bytes from Postgres without decoding them
- decode: loading the same chunks from memory
- fold: making the same state by deciding all records anew, as a processor without stored state would
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from infra.checkpoints import Checkpoints, LogBounds, TopicPartition
from infra.postgres import Connection, connect, migrate
from infra.services import choose
from infra.settings import Settings
from streams.decide import KeyedState, State
from streams.fraud.histories import Histories
from streams.restore import restore

AT = TopicPartition("benchmark", 0)
FOLDED = 1_000
ANSWER = bytes(range(200))
"""As large as a decision."""


class Account(msgspec.Struct, array_like=True, gc=False):
    """A value of the size that processors keep per key: three numbers and a short text."""

    balance_minor: int
    version: int
    newest_ms: int
    last_id: str


def accounts(keys: int) -> tuple[Callable[[], State], Callable[[], State]]:
    """`KeyedState` of small structs: how to make it empty, and how to fold it."""

    def fold() -> State:
        state = KeyedState(Account)
        for n in range(keys):
            state.put(f"default/account-{n:09}", Account(n * 7, n, 1_700_000_000_000 + n, f"event-{n:012}"))
        return state

    return lambda: KeyedState(Account), fold


def cards(keys: int) -> tuple[Callable[[], State], Callable[[], State]]:
    """The fraud processor's own state: one transaction of each of so many cards."""

    def fold() -> State:
        state = Histories()
        for start in range(0, keys, FOLDED):
            numbers = range(start, min(start + FOLDED, keys))
            at_ms = np.array([1_700_000_000_000 + n for n in numbers], dtype=np.int64)
            amounts = np.array([100 + n % 9_000 for n in numbers], dtype=np.int64)
            names, ids = [f"card-{n:09}" for n in numbers], [f"event-{n:012}" for n in numbers]
            state.insert(at_ms, amounts, at_ms, names, ids, ["merchant"] * len(names))
            state.keep([ANSWER] * len(names))
        return state

    return Histories, fold


CASES = {"accounts": accounts, "cards": cards}


def store(connection: Connection, checkpoints: Checkpoints, chunks: list[bytes]) -> float:
    """Write the chunks as one snapshot; returns seconds."""
    began = time.monotonic()
    with connection.transaction(), connection.cursor() as cursor:
        checkpoints.write_snapshot(cursor, AT, 1, chunks)
    return time.monotonic() - began


def timed(what: Callable[[], object]) -> float:
    gc.collect()
    began = time.monotonic()
    what()
    return time.monotonic() - began


def load(state: State, chunks: Iterable[bytes]) -> State:
    restore(state, chunks)
    return state


def measure(connection: Connection, name: str, keys: int) -> bool:
    """Measure one kind of state; returns whether what came back is what was stored."""
    empty, fold = CASES[name](keys)
    checkpoints = Checkpoints(f"benchmark-{name}")
    checkpoints.claim(connection, {AT: LogBounds("benchmark", 0, 1)})
    made: list[State] = []
    fold_s = timed(lambda: made.append(fold()))
    made[0].delta()
    chunks = list(made[0].snapshot())
    store_s = store(connection, checkpoints, chunks)
    size = sum(map(len, chunks))
    fetch_s = timed(lambda: sum(len(c) for c in checkpoints.read_state(connection, AT)))
    decode_s = timed(lambda: load(empty(), iter(chunks)))
    made.clear()
    found: list[State] = []
    busy_before = time.process_time()
    recover_s = timed(lambda: found.append(load(empty(), checkpoints.read_state(connection, AT))))
    busy_s = time.process_time() - busy_before
    same = list(found[0].snapshot()) == chunks
    print(
        f"{name:<9} {keys:>9,} keys {size / 1e6:>7.1f} MB in {len(chunks)} chunks:"
        f" recover {recover_s:.2f} s, {busy_s:.2f} s of them busy ({keys / recover_s:,.0f} keys/s);"
        f" fetch {fetch_s / recover_s:.0%}, decode {decode_s / recover_s:.0%} of it;"
        f" deciding anew takes {fold_s / recover_s:.1f} times as long, storing {store_s / recover_s:.1f};"
        f" {'the same state came back' if same else 'ANOTHER STATE CAME BACK'}"
    )
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description="State recovery, measured.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--only", choices=sorted(CASES))
    arguments = parser.parse_args()
    settings = Settings.load()
    services = choose(settings)
    services.up(progress=print)
    try:
        migrate(settings.database_url)
        with connect(settings.database_url, "millrace-benchmark") as connection:
            same = [
                measure(connection, name, arguments.keys) for name in CASES if arguments.only in (None, name)
            ]
    finally:
        services.down(purge=True, progress=print)
    if not all(same):
        raise SystemExit("what was recovered is not what was stored")


if __name__ == "__main__":
    main()
