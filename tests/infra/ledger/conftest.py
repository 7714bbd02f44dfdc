"""A ledger written by the real sink into the real database, from records of a broker in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.audit.entry import GENESIS
from infra.audit.heads import Head, Heads
from infra.broker import PartitionBatch
from infra.checkpoints import TopicPartition
from infra.codec import Codec
from infra.generations import sink_url
from infra.identity.keyring import KeyRing
from infra.ledger.chain import chain_name
from infra.ledger.heads import LOG, now
from infra.ledger.verify import Account, verify
from infra.postgres import Connection, connect
from infra.prepare import prepare_database
from infra.progress import Progress
from infra.settings import Settings
from infra.telemetry.health import Health
from schemas.fraud import CARD_DECISIONS, CARD_LEDGER, PIPELINE
from sinks.fraud import ROWS, TOLD
from sinks.outbox import Outbox
from sinks.writer import Writer
from tests.simulation.broker import Broker, SimulatedProducer

PARTITIONS = 3
EXAMPLES: list[dict[str, Any]] = json.loads(
    (CARD_DECISIONS.schema_path.parent / "examples" / "card-decisions.json").read_text()
)


def decision(n: int, **changes: Any) -> dict[str, Any]:
    """The n-th decision: reasons or none, customers or none, cards that come again."""
    return {
        **EXAMPLES[0],
        "event_id": f"e{n:04}",
        "card_id": f"card-{n % 7}",
        "customer_id": None if n % 5 == 0 else f"customer-{n % 7}",
        "reasons": [[], ["Zu häufig"], ["one", "two"]][n % 3],
        "fired_rules": [[], ["rule-1"]][n % 2],
        **changes,
    }


@dataclass
class Ledger:
    """The ledger's table, the records it comes from, and the file of heads."""

    settings: Settings
    codec: Codec
    connection: Connection
    broker: Broker
    heads: Heads

    def send(self, events: Sequence[dict[str, Any]], partition: int | None = None) -> None:
        for n, event in enumerate(events):
            value = self.codec.encode(CARD_DECISIONS, event)
            at = n % PARTITIONS if partition is None else partition
            self.broker.append(CARD_DECISIONS.name, value, event["card_id"].encode(), at)

    def store(self, size: int = 1000, *, from_start: bool = False) -> None:
        """What the topic holds, in batches of so many records a partition, by a sink that begins anew."""
        writer = Writer(
            PIPELINE,
            ROWS,
            self.codec,
            SimulatedProducer(self.broker).as_producer,
            sink_url(self.settings.database_sink_url),
            Progress(PIPELINE.sink_name, [t.name for t in PIPELINE.sink_topics], Health()),
            outbox=Outbox(TOLD, CARD_DECISIONS.name, "tests"),
        )
        with closing(writer):
            places = [at for topic in writer.topics for at in self.broker.places(topic)]
            claims = writer.claim({at: self.broker.bounds(at) for at in places})
            reading = {at: 0 if from_start else claim.next_offset for at, claim in claims.items()}
            while any(reading[at] < self.broker.bounds(at).end for at in places):
                batches = []
                for at in places:
                    messages, end = self.broker.read(at, reading[at], size)
                    batches.append(PartitionBatch(at, claims[at].epoch, messages, end))
                    reading[at] = end
                writer.write(batches)

    def sign(self) -> None:
        """The heads as they stand in the database."""
        told, _ = self.heads.read()
        for table, partition, begins, sequence, digest in self.ask("SELECT * FROM ledger_chains ORDER BY 2"):
            chain = chain_name(table, partition, begins)
            n = told[chain][-1].n if chain in told else 0
            if not n:
                self.heads.append(Head(chain, 0, GENESIS.hex(), n := 1, now()))
            self.heads.append(Head(chain, sequence, bytes(digest).hex(), n + 1, now()))

    def verify(self) -> Account:
        return verify(self.connection, self.heads, CARD_LEDGER)

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), values or None).fetchall()

    def at(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(topic, partition)

    def empty(self) -> None:
        with self.connection.transaction():
            for table in ("card_ledger", "ledger_erasures"):
                self.connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
                self.connection.execute(f"GRANT ALL ON {table} TO CURRENT_USER".encode())
            for table in (
                "card_ledger", "ledger_erasures", "ledger_chains", "checkpoints", "range_records",
                "dead_letters", "outbox", "outward_endpoints",
            ):  # fmt: skip
                self.connection.execute(f"DELETE FROM {table}".encode())
            self.connection.execute("REVOKE UPDATE, DELETE, TRUNCATE ON card_ledger FROM CURRENT_USER")
            self.connection.execute(
                "GRANT UPDATE (card_id, customer_id, seal_key) ON card_ledger TO CURRENT_USER"
            )
            self.connection.execute("ALTER TABLE card_ledger ENABLE TRIGGER USER")
            self.connection.execute("ALTER TABLE ledger_erasures ENABLE ALWAYS TRIGGER append_only")
        self.settings.ledger_heads.unlink(missing_ok=True)  # of a ledger that is no more


@pytest.fixture
def ledger(database: Settings, codec: Codec, tmp_path: Path) -> Iterator[Ledger]:
    """Empty, with a topic of three partitions. The sink writes it by its own role."""
    prepare_database(database)
    topics = [*PIPELINE.sink_topics, *(t.dlq for t in PIPELINE.topics)]
    for topic in (CARD_DECISIONS, *(t.dlq for t in PIPELINE.topics)):
        codec.register(topic)
    keys = KeyRing(tmp_path / "keys")
    keys.add()
    broker = Broker({t.name: PARTITIONS if t.name == CARD_DECISIONS.name else 1 for t in topics})
    with connect(database.database_url) as connection:
        made = Ledger(database, codec, connection, broker, Heads(tmp_path / "heads.jsonl", keys, LOG))
        made.empty()
        yield made
        made.empty()
