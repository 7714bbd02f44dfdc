"""A live pipeline in this process: the example accounts, with processor and sink running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.broker import producer
from infra.cli.replay import opened
from infra.codec import Codec
from infra.postgres import connect
from infra.replay import runs
from infra.replay.places import Bound, resolve
from infra.replay.swap import Swapped, swap
from infra.replay.work import work
from infra.settings import Settings
from streams.decide import LogicFactory
from tests.accounts import Accounts
from tests.accounts.running import running_processor, running_sink


def deposit(n: int, account: str, amount_minor: int = 100) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n * 60_000,
        "account": account,
        "amount_minor": amount_minor,
    }


def send(settings: Settings, codec: Codec, accounts: Accounts, events: list[dict[str, Any]]) -> None:
    p = producer(settings.kafka)
    for event in events:
        p.produce(accounts.deposits.name, codec.encode(accounts.deposits, event), event["account"])
        p.poll(0)
    assert p.flush(20) == 0


def ask(settings: Settings, query: str, *args: Any) -> list[tuple[Any, ...]]:
    with connect(settings.database_url) as connection:
        cursor = connection.execute(query, args or None)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


@contextmanager
def processor(settings: Settings, accounts: Accounts, instance: str = "0") -> Iterator[list[BaseException]]:
    with running_processor(settings, accounts, instance) as errors:
        yield errors
    assert errors == []


@contextmanager
def sink(settings: Settings, accounts: Accounts) -> Iterator[list[BaseException]]:
    with running_sink(settings, accounts) as errors:
        yield errors
    assert errors == []


@contextmanager
def running(settings: Settings, accounts: Accounts) -> Iterator[None]:
    with processor(settings, accounts), sink(settings, accounts):
        yield


def stored(settings: Settings, accounts: Accounts) -> int:
    """How many results the live sink has stored or refused."""
    [(position,)] = ask(
        settings,
        "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s AND topic = %s",
        accounts.pipeline.sink_name,
        accounts.balances.name,
    )
    return int(position)


def wait_stored(settings: Settings, accounts: Accounts, total: int, seconds: float = 60) -> None:
    """Until so many rows are stored, and as many deposits committed: a replay follows what is settled."""
    end = time.monotonic() + seconds
    while (found := min(stored(settings, accounts), committed(settings, accounts))) < total:
        if time.monotonic() > end:
            pytest.fail(f"the pipeline stood at {found} of {total} after {seconds} s")
        time.sleep(0.1)


def committed(settings: Settings, accounts: Accounts) -> int:
    """How many deposits the live processor has committed."""
    [(position,)] = ask(
        settings,
        "SELECT coalesce(sum(next_offset), 0) FROM checkpoints WHERE consumer = %s",
        accounts.processor.name,
    )
    return int(position)


def begun(
    settings: Settings,
    codec: Codec,
    accounts: Accounts,
    since: Bound = None,
    until: Bound = None,
    *,
    in_place: bool = False,
    **options: Any,
) -> runs.Run:
    """A run that was written down, and not yet run."""
    event_time = bool(options.get("event_time"))
    places = resolve(
        settings, codec, accounts.pipeline, since, until, event_time=event_time, in_place=in_place
    )
    with connect(settings.database_url) as connection:
        return runs.create(settings, connection, accounts.pipeline, places, options, in_place=in_place)


def advance(
    settings: Settings,
    codec: Codec,
    accounts: Accounts,
    run: runs.Run,
    logic: LogicFactory | None = None,
    rate: float | None = None,
) -> runs.Run:
    """Work on the run until it is ready."""
    logics = {accounts.processor.name: logic or accounts.logic}
    with connect(settings.database_url) as connection, runs.alone(connection, run.run_id):
        run = runs.find(connection, run.run_id)
        with opened(settings, connection, codec, run, accounts.pipeline, logics, accounts.rows, rate) as (
            engine,
            live,
            look,
        ):
            work(settings, connection, run, accounts.pipeline, engine, live, look)
        runs.became(connection, run.run_id, "ready")
        return runs.find(connection, run.run_id)


def put_in_force(
    settings: Settings,
    codec: Codec,
    accounts: Accounts,
    run: runs.Run,
    logic: LogicFactory | None = None,
    **options: Any,
) -> Swapped:
    """Swap the run."""
    logics = {accounts.processor.name: logic or accounts.logic}
    declared = accounts.pipeline
    with (
        connect(settings.database_url) as connection,
        runs.alone(connection, run.run_id),
        opened(settings, connection, codec, run, declared, logics, accounts.rows, None) as (
            engine,
            live,
            look,
        ),
    ):
        return swap(settings, connection, run, declared, engine, live, look, **options)
