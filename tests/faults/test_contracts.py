"""Producers break the contract: schemas that do not fit, records sent again and out of order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from infra.codec import Codec
from infra.settings import Settings
from tests.faults.rig import pipeline


@pytest.mark.faults
def test_a_breaking_schema_is_refused(database: Settings, codec: Codec, tmp_path: Path, seed: int) -> None:
    """Offered during traffic, it is refused with the field's name; records under its id are dead letters."""
    with pipeline(database, codec, "breaking", tmp_path) as rig:
        rig.start("processor")
        rig.start("sink")
        traffic = rig.traffic(seed, events_total=1_000, seconds=6)
        traffic.reach(0.4)
        deposits = rig.accounts.deposits
        broken = json.loads(deposits.schema_path.read_text())
        for field in broken["fields"]:
            if field["name"] == "amount_minor":
                field["type"] = "string"
        schema = Schema(json.dumps(broken), "AVRO")
        with SchemaRegistryClient({"url": database.schema_registry_url}) as registry:
            with pytest.raises(SchemaRegistryError) as refused:
                registry.register_schema(deposits.subject, schema)
            # Somebody who registers it elsewhere gets an id, and writes records that name it.
            schema_id = registry.register_schema("elsewhere-value", schema)
        assert refused.value.http_status_code == 409
        assert "amount_minor" in refused.value.error_message
        sender = Producer({"bootstrap.servers": database.kafka_bootstrap_servers})
        for n in range(20):
            sender.produce(deposits.name, b"\0" + schema_id.to_bytes(4, "big") + bytes(40), f"a{n}")
        assert sender.flush(30) == 0
        traffic.finish()
        rig.drain()
        checked = rig.check([traffic])
        assert checked["dead_letters"] >= 20
    print(f"{refused.value.error_message}; {checked}")


@pytest.mark.faults
def test_resent_and_out_of_order(database: Settings, codec: Codec, tmp_path: Path, seed: int) -> None:
    """With two records in five late and as many sent again, each counts once, in the order of the log."""
    with pipeline(database, codec, "resent", tmp_path) as rig:
        rig.start("processor")
        rig.start("sink")
        traffic = rig.traffic(seed, events_total=3_000, seconds=6, resent=0.4)
        traffic.finish()
        rig.drain()
        checked = rig.check([traffic])
        assert checked["inputs"] > 1.3 * checked["distinct"]
    print(checked)
