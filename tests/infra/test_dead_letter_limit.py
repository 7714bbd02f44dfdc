"""The limit of dead letters, and a real sink and processor that pass it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from infra import exit_codes
from infra.codec import Codec
from infra.dead_letter_limit import WINDOW_RECORDS, DeadLetterLimit, OverLimit
from infra.postgres import connect
from infra.settings import Settings
from infra.supervisor import RESTING
from tests.accounts import Accounts
from tests.accounts.running import drained, running_processor, running_sink, send


def passes(percent: int, *batches: tuple[int, int]) -> bool:
    """Whether the last of these batches (records, dead letters) passes the limit; the others must not."""
    limit = DeadLetterLimit("c", percent)
    for records, dead in batches[:-1]:
        limit.check(records, dead)
        limit.count(records, dead)
    try:
        limit.check(*batches[-1])
    except OverLimit:
        return True
    return False


@pytest.mark.parametrize(
    ("percent", "batches", "expected"),
    [
        (50, [(10, 10)], False),  # few records say nothing yet
        (50, [(500, 500)], False),
        (50, [(501, 501)], True),
        (50, [(250, 250), (250, 250), (1, 1)], True),  # however the log was cut
        (50, [(4000, 2000)], False),
        (50, [(4000, 2001)], True),
        (50, [(100_000, 0), (600, 501)], False),  # 501 of the 100,600 that the window cannot tell apart
        (50, [(100_000, 0), (1000, 400), (600, 500)], True),  # the good ones lie behind the window
        (50, [(1000, 500), (1000, 500), (1000, 500)], False),
        (50, [(1000, 400), (1000, 0), (1000, 499)], False),
        (1, [(1000, 11)], True),
        (100, [(1000, 1000), (1000, 1000)], False),
    ],
)
def test_more_than_the_share_of_the_last_thousand(
    percent: int, batches: list[tuple[int, int]], expected: bool
) -> None:
    """The share is of the last 1,000 records, never of fewer; a larger batch counts as a whole."""
    assert passes(percent, *batches) is expected


def test_the_supervisor_leaves_it_to_an_operator() -> None:
    """Started again it would refuse the same records; so it is not."""
    assert exit_codes.OVER_LIMIT in RESTING and exit_codes.STUCK not in RESTING


def deposits(amount_minor: int, count: int, first: int = 0) -> list[dict[str, Any] | bytes]:
    return [
        {
            "event_id": f"e{n}",
            "tenant": "default",
            "occurred_at": 1_700_000_000_000 + n,
            "account": f"a{n % 5}",
            "amount_minor": amount_minor,
        }
        for n in range(first, first + count)
    ]


def ended(errors: list[BaseException], seconds: float = 30) -> BaseException:
    until = time.monotonic() + seconds
    while not errors:
        assert time.monotonic() < until, "it has not ended"
        time.sleep(0.05)
    return errors[0]


def ask(settings: Settings, query: str, *values: Any) -> int:
    with connect(settings.database_url) as connection:
        row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(str(row[0] or 0))


def test_a_processor_that_refuses_most_stops_and_goes_on_once_mended(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """It ends with the sentence and its exit code, short of emptying the topic; then nothing is lost."""
    send(database, codec, accounts.deposits, deposits(-1, 3 * WINDOW_RECORDS))
    with running_processor(database, accounts) as errors:
        error = ended(errors)
    assert isinstance(error, OverLimit) and error.exit_code == exit_codes.OVER_LIMIT
    assert "would be dead letters, more than 50 per cent" in str(error)
    lenient = Settings({**database.environ, "MILLRACE_DEAD_LETTER_LIMIT_PCT": "100"})
    with running_processor(lenient, accounts) as errors, running_sink(lenient, accounts) as more:
        drained(lenient, accounts, errors, more)
    assert ask(database, "SELECT count(*) FROM dead_letters WHERE topic = %s", accounts.deposits.name) == 3000


def test_a_sink_that_refuses_most_stops_and_commits_none_of_it(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """Rows that the database refuses in a row stop the sink before they are dead letters anywhere."""
    topic = accounts.balances
    bad: list[dict[str, Any] | bytes] = [b"junk"] * (WINDOW_RECORDS + 1)
    send(database, codec, topic, bad)
    with running_sink(database, accounts) as errors:
        error = ended(errors)
    assert isinstance(error, OverLimit)
    assert (
        ask(database, "SELECT count(*) FROM dead_letters WHERE topic = %s", topic.name) <= WINDOW_RECORDS // 2
    )
    assert ask(
        database,
        "SELECT sum(next_offset) FROM checkpoints WHERE consumer = %s AND topic = %s",
        accounts.pipeline.sink_name,
        topic.name,
    ) == ask(database, "SELECT count(*) FROM dead_letters WHERE topic = %s", topic.name)
