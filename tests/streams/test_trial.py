"""Trying one event on its processors, with nothing produced and nothing stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from infra import versions
from infra.broker import TopicSpec, ensure_topics
from infra.cli import build
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from schemas.fleet import TRUCK_TELEMETRY
from schemas.released import Declared
from streams.trial import tried
from tests.accounts import Accounts


@pytest.mark.parametrize(
    ("amount_minor", "limit_minor", "refused"),
    [(5, None, False), (-5, None, True), (60, 50, True), (50, 50, False)],
)
def test_a_processor_says_what_it_would_say(
    database: Settings,
    codec: Codec,
    accounts: Accounts,
    amount_minor: int,
    limit_minor: int | None,
    refused: bool,
) -> None:
    """By the newest versions: the reason and the field, or how many answers to which topic."""
    event = {
        "event_id": "e1",
        "tenant": "default",
        "occurred_at": 1_700_000_000_000,
        "account": "a",
        "amount_minor": amount_minor,
    }
    value = codec.encode(accounts.deposits, event)
    logics: dict[str, Any] = {accounts.processor.name: accounts.logic}
    with connect(database.database_url) as connection:
        if limit_minor is not None:
            versions.publish(connection, accounts.pipeline.name, "limits", {"limit_minor": limit_minor})
        [trial] = tried(
            connection, codec, accounts.pipeline, logics, accounts.deposits, value, 1_700_000_000_000
        )
        assert connection.execute("SELECT count(*) FROM version_activations").fetchone() == (0,)
    assert trial.processor == accounts.processor.name
    if refused:
        assert trial.field == "amount_minor" and "correct it" in (trial.refused or "")
        assert trial.answers == {}
    else:
        assert trial.refused is None and trial.answers == {accounts.balances.name: 1}


def test_the_command_tries_a_letter_and_an_event_in_its_place(database: Settings, codec: Codec) -> None:
    """`millrace dlq test`: refused as it stands, accepted as corrected, and exit codes that say so."""
    ensure_topics(database.kafka, [TopicSpec.of(TRUCK_TELEMETRY)])
    codec.register(TRUCK_TELEMETRY)
    event = {**Declared((TRUCK_TELEMETRY,)).examples[0], "latitude": 95.0}
    with connect(database.database_url) as connection:
        row = connection.execute(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, error_class, field,'
            " error, key, value, append_time) VALUES ('fleet-geofencing', %s, 0, 7, 'fleet', 'invalid',"
            " 'latitude', 'beyond a pole', 'k', %s, now()) RETURNING id",
            (TRUCK_TELEMETRY.name, codec.encode(TRUCK_TELEMETRY, event)),
        ).fetchone()
        assert row is not None
    run = CliRunner()
    as_is = run.invoke(build(), ["dlq", "test", str(row[0]), "--json"])
    told = json.loads(as_is.output)
    assert as_is.exit_code == 1 and told["problem"] is None
    assert [(t["processor"], t["field"]) for t in told["trials"]] == [("fleet-geofencing", "latitude")]
    corrected = json.dumps({**event, "latitude": 52.0})
    good = run.invoke(build(), ["dlq", "test", str(row[0]), "--event", "-"], input=corrected)
    assert good.exit_code == 0, good.output
    assert "fleet-geofencing would accept it and answer 1 to truck-positions" in good.output
    wrong = run.invoke(build(), ["dlq", "test", str(row[0]), "--event", '{"latitude": 1}'])
    assert wrong.exit_code == 1 and "held back" in wrong.output and "event_id" in wrong.output
