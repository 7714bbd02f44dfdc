"""Tracing on a real pipeline: from a row back to record, schema, versions and input, and the other way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from infra import versions
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from infra.trace import TraceError, Tracer, condition
from schemas.declare import Pipelines, Table
from schemas.fleet import POSITIONS_TABLE
from schemas.fraud import CARD_LEDGER
from schemas.orders import STOCK_LEDGER_TABLE
from tests.accounts import Accounts
from tests.accounts.running import drained, running_processor, running_sink, send


def deposit(n: int, amount_minor: int = 5) -> dict[str, Any]:
    return {
        "event_id": f"e{n}",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000 + n,
        "account": f"a{n % 5}",
        "amount_minor": amount_minor,
    }


@pytest.fixture
def tracer(database: Settings, codec: Codec, accounts: Accounts) -> Iterator[Tracer]:
    """40 deposits under version 1 of the limits, one of them twice, one refused."""
    with closing(connect(database.database_url)) as connection:
        versions.publish(connection, accounts.pipeline.name, "limits", {"limit_minor": 50}, "somebody")
        events: list[dict[str, Any] | bytes] = [deposit(n) for n in range(40)]
        send(database, codec, accounts.deposits, [*events, deposit(7), deposit(99, amount_minor=-1), b"junk"])
        with running_processor(database, accounts) as errors, running_sink(database, accounts) as more:
            drained(database, accounts, errors, more)
        yield Tracer(connection, codec, database.kafka, Pipelines.of(accounts.pipeline))


def test_a_row_leads_back_to_everything_that_decided_it(tracer: Tracer, accounts: Accounts) -> None:
    """Topic, partition, offset, schema version, code and rule versions, commit, and the input's record."""
    [found] = tracer.row(f"{accounts.ledger.name}:e7")
    assert found.row["event_id"] == "e7" and found.record is not None
    assert found.place == found.record.place
    assert (found.place.topic, found.record.event_id) == (accounts.balances.name, "e7")
    assert (found.record.subject, found.record.schema_version) == (accounts.balances.subject, 1)
    assert found.processor == accounts.processor.name
    assert found.versions == {"limits": 1} and found.published["limits"].endswith("by somebody")
    assert found.committed is not None
    assert found.committed["from_offset"] <= found.place.offset < found.committed["to_offset"]
    [given] = found.inputs
    assert (given.place.topic, given.event_id) == (accounts.deposits.name, "e7")
    assert given.event is not None and given.event["amount_minor"] == 5


def test_a_record_leads_on_to_its_rows_or_its_dead_letters(tracer: Tracer, accounts: Accounts) -> None:
    """An input: the rows with its id. A result: the rows it wrote. A refused one: the reason."""
    [found] = tracer.row(f"{accounts.ledger.name}:e8")
    on = tracer.record(f"{found.place.topic}/{found.place.partition}/{found.place.offset}")
    assert accounts.ledger.name in [table for table, _ in on.rows]
    given = found.inputs[0].place
    on = tracer.record(f"{given.topic}/{given.partition}/{given.offset}")
    assert [(table, row["event_id"]) for table, row in on.rows] == [(accounts.ledger.name, "e8")]
    letters = []
    for partition in range(3):
        for offset in range(50):
            try:
                letters += tracer.record(f"{given.topic}/{partition}/{offset}").dead_letters
            except TraceError:
                break
    assert sorted(letter["error_class"] for letter in letters) == ["invalid", "undecodable"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing:e1", "there is no table 'nothing'; name one of: "),
        ("{ledger}:e1000", "has no row with event_id=e1000; its key is event_id, occurred_at"),
        ("{ledger}:", "is no key of"),
        ("{ledger}:occurred_at=yesterday noon", "invalid input syntax for type timestamp"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    tracer: Tracer, accounts: Accounts, name: str, sentence: str
) -> None:
    """No such table, row, key or value: the message says which, and what there is."""
    with pytest.raises(TraceError) as error:
        tracer.row(name.format(ledger=accounts.ledger.name))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        (CARD_LEDGER, "e1", {"event_id": "e1"}),
        (CARD_LEDGER, "a,b=c", {"event_id": "a,b=c"}),
        (CARD_LEDGER, "event_id=e,1,tenant=t", {"event_id": "e,1", "tenant": "t"}),
        (STOCK_LEDGER_TABLE, "sku-1,3", {"sku": "sku-1", "version": "3"}),
        (POSITIONS_TABLE, "event_id=m=1", {"event_id": "m=1"}),
    ],
)
def test_a_key_is_given_by_value_or_by_name(table: Table, key: str, expected: dict[str, str]) -> None:
    """Without names the key's own columns in order; with names any column, values holding what they like."""
    assert condition(table, key) == expected
