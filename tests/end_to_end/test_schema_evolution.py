"""A schema changes while records flow: producers and consumers of two versions side by side."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.broker import producer
from infra.codec import Codec
from infra.reconcile import reconcile
from infra.settings import Settings
from schemas.declare import Topic
from tests.accounts import HERE, Accounts
from tests.accounts.at_work import running

EACH = 200


def send(settings: Settings, codecs: list[tuple[Codec, Accounts]], first: int) -> None:
    """Deposits of 1, in turns from each producer with its own version of the schema."""
    p = producer(settings.kafka)
    for n in range(first, first + EACH):
        codec, accounts = codecs[n % len(codecs)]
        event: dict[str, Any] = {
            "event_id": f"e{n}",
            "tenant": "default",
            "occurred_at": 1_700_000_000_000 + n,
            "account": f"a{n % 5}",
            "amount_minor": 1,
        }
        if "channel" in accounts.deposits.fields:
            event["channel"] = "counter"
        p.produce(accounts.deposits.name, codec.encode(accounts.deposits, event), event["account"])
    assert p.flush(20) == 0


def test_two_versions_of_producers_and_consumers_run_side_by_side(
    database: Settings, accounts: Accounts
) -> None:
    """Old and new producers write at once; first the old, then the new consumers read all of it."""
    prefix = accounts.deposits.name.removesuffix("-deposits")
    newer = Accounts(prefix, deposits_schema="deposits-next")
    with (
        closing(Codec(database.schema_registry_url)) as old_codec,
        closing(Codec(database.schema_registry_url)) as new_codec,
    ):
        assert old_codec.register(accounts.deposits) != new_codec.register(newer.deposits)
        producers = [(old_codec, accounts), (new_codec, newer)]
        for n, consumers in enumerate((accounts, newer)):
            logics = {consumers.processor.name: consumers.logic}
            with running(database, consumers.pipeline, logics, consumers.rows) as pipeline:
                send(database, producers, n * EACH)
                rows = f"SELECT count(*) FROM {accounts.ledger.name}"
                wanted = [((n + 1) * EACH,)]
                pipeline.settle(lambda: pipeline.ask(rows) == wanted)  # noqa: B023 - called before the next turn
    balances = pipeline.ask(f"SELECT account, balance_minor FROM {accounts.latest.name} ORDER BY account")
    assert balances == [(f"a{k}", 2 * EACH // 5) for k in range(5)]
    account = reconcile(database, newer.pipeline)
    assert account.balanced and account.dead_letters == 0


def test_a_breaking_version_is_refused_with_the_difference(
    database: Settings, codec: Codec, accounts: Accounts
) -> None:
    """A version that old consumers cannot read is not registered, and the refusal names field and remedy."""
    broken = Topic(
        domain=str(HERE),
        name=accounts.deposits.name,
        schema_name="balances",  # another record with other fields
        key="account",
        owner="tests",
        about="broken",
    )
    with pytest.raises(SchemaRegistryError) as refused, closing(Codec(database.schema_registry_url)) as other:
        other.register(broken)
    assert refused.value.http_status_code == 409
    assert "renamed record" in refused.value.error_message
