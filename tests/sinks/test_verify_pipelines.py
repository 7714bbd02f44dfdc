"""Verifying the declared pipelines, as the command does."""

from __future__ import annotations

import importlib

import pytest

from infra.broker import TopicSpec, ensure_topics
from infra.codec import Codec
from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Pipeline
from schemas.pipelines import PIPELINES
from sinks.verify import verify


@pytest.mark.parametrize("pipeline", list(PIPELINES), ids=lambda p: p.name)
def test_every_pipeline_can_be_verified(database: Settings, codec: Codec, pipeline: Pipeline) -> None:
    """Every mapping, evidence, sum and invariant that is declared fits the tables; empty, all agree."""
    topics = [x for t in pipeline.topics for x in (t, t.dlq)]
    ensure_topics(database.kafka_bootstrap_servers, [TopicSpec.of(t) for t in topics])
    for topic in topics:
        codec.register(topic)
    report = verify(database, pipeline, importlib.import_module(f"sinks.{pipeline.name}").ROWS)
    assert report.clean, list(report.problems())
    assert {o.topic for o in report.offsets} >= {t.name for t in (*pipeline.inputs, *pipeline.sink_topics)}
    views = {c.name.split(":")[0] for c in report.checks}
    assert views >= {i.view for i in pipeline.invariants} | {t.name for t in pipeline.tables}


def test_stock_that_is_not_what_its_ledger_adds_up_to_is_named(database: Settings, codec: Codec) -> None:
    """The orders' invariant: a SKU's stock, changed by hand, differs from the sum of its ledger."""
    with connect(database.database_url) as connection:
        connection.execute("INSERT INTO stock VALUES ('default', 'sku-1', 7, 2, 2, now(), 'e2', 0, 1)")
        connection.execute(
            "INSERT INTO stock_ledger VALUES"
            " ('default', 'sku-1', 1, 'e1', now(), 'receive', 'received', NULL, NULL, 7, 7, 0, 'r', 1, 0, 0),"
            " ('default', 'sku-1', 2, 'e2', now(), 'reserve', 'reserved', NULL, 'o1', 2, 7, 2, 'o1', 1, 0, 1)"
        )
        query = "SELECT sku, on_hand, ledger_on_hand, versions_missing FROM stock_ledger_mismatches"
        assert connection.execute(query).fetchall() == []
        connection.execute("UPDATE stock SET on_hand = 8")
        assert connection.execute(query).fetchall() == [("sku-1", 8, 7, 0)]
        connection.execute("UPDATE stock SET on_hand = 7")
        connection.execute("DELETE FROM stock_ledger WHERE version = 1")
        assert connection.execute(query).fetchall() == [("sku-1", 7, 0, 1)]
