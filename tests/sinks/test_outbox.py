"""The outbox as the sink writes it: with the row, once, and only what somebody wants."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from infra.broker import PartitionBatch
from infra.postgres import connect
from infra.settings import Settings
from schemas.fraud import CARD_DECISIONS, PIPELINE
from sinks.fraud import ROWS, TOLD
from sinks.outbox import Outbox, batch_of, chosen, wanted
from sinks.replay import SinkStage
from tests.infra.ledger.conftest import Ledger, decision, ledger

__all__ = ["ledger"]


def subscribe(ledger: Ledger, merchant: str | None = None, tenant: str = "default", **more: Any) -> None:
    ledger.connection.execute(
        "INSERT INTO outward_endpoints (endpoint_id, kind, tenant, merchant_id, target, decisions, risk_min,"
        " since_sequence) VALUES (gen_random_uuid()::text, 'webhook', %s, %s, 'https://x', %s, %s, 0)",
        (tenant, merchant, more.get("decisions", ["APPROVE", "REVIEW", "DECLINE"]), more.get("risk_min", 0)),
    )


def told(ledger: Ledger) -> list[str]:
    return [event for (event,) in ledger.ask("SELECT event_id FROM outbox ORDER BY sequence")]


def test_nobody_asked_and_nothing_is_written(ledger: Ledger) -> None:
    """Without subscriptions the outbox stays empty; with one it has what comes from then on, in order."""
    ledger.send([decision(n) for n in range(5)], 0)
    ledger.store()
    assert told(ledger) == []
    subscribe(ledger)
    ledger.send([decision(n) for n in range(5, 12)], 0)
    ledger.store(3)
    assert told(ledger) == [f"e{n:04}" for n in range(5, 12)]


def test_a_decision_that_came_again_is_not_told_again(ledger: Ledger) -> None:
    """Twice in a batch, in a later batch, all read once more: one entry each."""
    subscribe(ledger)
    ledger.send([decision(n) for n in (0, 1, 0, 2)], 0)
    ledger.store()
    ledger.send([decision(n) for n in (1, 3, 1, 4)], 0)
    ledger.store()
    ledger.store(from_start=True)
    assert told(ledger) == ["e0000", "e0001", "e0002", "e0003", "e0004"]


def test_a_decision_from_before_is_not_told_when_it_comes_again(ledger: Ledger) -> None:
    """Stored when nobody asked, it stays untold however often its record comes."""
    ledger.send([decision(0)], 0)
    ledger.store()
    subscribe(ledger)
    ledger.send([decision(n) for n in (0, 1)], 0)
    ledger.store()
    assert told(ledger) == ["e0001"]


def test_what_the_database_refuses_is_not_told(ledger: Ledger) -> None:
    """Rows made one by one are told as others are; a dead letter is not."""
    subscribe(ledger)
    events = [decision(n) for n in range(6)]
    events[2] |= {"currency": "euro"}
    ledger.send(events, 0)
    ledger.store()
    assert told(ledger) == ["e0000", "e0001", "e0003", "e0004", "e0005"]


def test_a_replay_tells_nobody(ledger: Ledger) -> None:
    """What a replay in place puts back into the ledger is in its chain, and outside nobody hears of it."""
    subscribe(ledger)
    ledger.send([decision(n) for n in range(4)], 0)
    stage = SinkStage(
        ledger.settings, PIPELINE, ROWS, ledger.codec, ledger.settings.database_url, in_place=True
    )
    with closing(stage):
        at = ledger.at(CARD_DECISIONS.name, 0)
        claim = stage.claim({at: ledger.broker.bounds(at)})[at]
        messages, end = ledger.broker.read(at, 0, 10)
        stage.process([PartitionBatch(at, claim.epoch, messages, end)])
    assert ledger.ask("SELECT count(*), max(chain_sequence) FROM card_ledger") == [(4, 4)]
    assert told(ledger) == []


def test_sequences_become_visible_in_their_order(ledger: Ledger, database: Settings) -> None:
    """Two sinks at once: whoever reads the outbox never finds a smaller number later than a larger one."""
    subscribe(ledger)
    seen: list[int] = []

    def write(first: int) -> None:
        outbox = Outbox(TOLD, "card-decisions", "tests")
        with connect(database.database_url) as connection:
            for n in range(first, first + 40):
                with connection.transaction(), connection.cursor() as cursor:
                    part = (batch_of(decision(n)), 0, np.array([n], dtype=np.int64))
                    outbox.write(connection, cursor, [part], all_new=True)

    with ThreadPoolExecutor(3) as threads:
        writing = list(map(threads.submit, repeat(write), (0, 1000, 2000)))
        while not all(w.done() for w in writing):
            after = max(seen, default=0)
            found = [n for (n,) in ledger.ask("SELECT sequence FROM outbox ORDER BY sequence")]
            assert [n for n in found if n <= after] == seen
            seen = found
        for w in writing:
            w.result()
    assert len(told(ledger)) == 120


TENANTS, MERCHANTS, KINDS = ("a", "b"), ("m1", "m2", None), ("APPROVE", "REVIEW", "DECLINE")


@given(
    subscriptions=st.lists(
        st.tuples(
            st.sampled_from(TENANTS),
            st.sampled_from(MERCHANTS),
            st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
            st.sampled_from((0.0, 0.5)),
        ),
        max_size=4,
    ),
    events=st.lists(
        st.tuples(
            st.sampled_from(TENANTS),
            st.sampled_from(MERCHANTS),
            st.sampled_from(KINDS),
            st.sampled_from((0.0, 0.49, 0.5, 1.0)),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_by_column_as_one_by_one(
    subscriptions: list[tuple[str, str | None, list[str], float]],
    events: list[tuple[str, str | None, str, float]],
) -> None:
    """What is chosen by column is what any one of the subscriptions wants."""
    names = {"tenant": 0, "merchant_id": 1, "decision": 2, "risk": 3}
    batch = pa.Table.from_batches(
        [batch_of({**decision(0), **{name: e[n] for name, n in names.items()}}) for e in events]
    ).combine_chunks()
    expected = [
        any(
            tenant == t and (m is None or merchant == m) and kind in kinds and risk >= least
            for t, m, kinds, least in subscriptions
        )
        for tenant, merchant, kind, risk in events
    ]
    assert chosen(batch.to_batches()[0], wanted(subscriptions)).tolist() == expected
