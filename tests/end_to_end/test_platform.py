"""The whole platform as a newcomer meets it: a demo in which everything is killed once, foreign clients."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import DeserializingConsumer, Producer, TopicPartition
from confluent_kafka.error import ValueDeserializationError
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import StringDeserializer

from infra.settings import Settings
from schemas.pipelines import PIPELINES
from tests.instance import millrace, processes, running

DEMO_SECONDS = 45
KILL_EVERY_S = 3.0
RANDOM_BYTES = 1_000
SEED = 20_261_121


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.2)


pytestmark = pytest.mark.alone  # the whole platform, with a bound on how long it takes to start


@pytest.fixture(scope="module")
def platform() -> Iterator[Settings]:
    with running("platform", offset=500) as settings:
        yield settings


@pytest.fixture(scope="module")
def report(platform: Settings) -> dict[str, Any]:
    """What the demo reports, after kill -9 of every process once, and of the supervisor."""
    command = [sys.executable, "-m", "infra.cli", "demo", "--seconds", str(DEMO_SECONDS), "--json"]
    demo = subprocess.Popen(command, env=platform.environ, text=True, stdout=subprocess.PIPE)
    killed = []
    for victim in processes(platform):
        time.sleep(KILL_EVERY_S)
        assert demo.poll() is None
        name, pid = f"{victim['role']}-{victim['pipeline']}", victim["pid"]
        os.kill(pid, signal.SIGKILL)
        killed.append(name)
    supervisor = json.loads(millrace(platform, "status", "--json").stdout)["supervisor"]
    os.kill(supervisor, signal.SIGKILL)
    printed, _ = demo.communicate(timeout=DEMO_SECONDS + 300)
    found: dict[str, Any] = json.loads(printed)
    assert demo.returncode == 0, found["problems"]
    restarted = {f"{p['role']}-{p['pipeline']}" for p in processes(platform) if p["restarts"]}
    assert restarted == set(killed)
    return found


@pytest.mark.timeout(600)
def test_the_sums_match_whatever_was_killed(platform: Settings, report: Mapping[str, Any]) -> None:
    """Each pipeline: acknowledged = in the sink + dead letters, nothing zero, and Postgres agrees."""
    assert set(report["pipelines"]) == {p.name for p in PIPELINES}
    with psycopg.connect(platform.database_url) as connection:
        for pipeline in PIPELINES:
            counted = report["pipelines"][pipeline.name]
            assert counted["acknowledged"] == counted["in_sink"] + counted["dead_letters"]
            assert all(counted[n] > 0 for n in ("in_sink", "duplicates", "dead_letters", "decided")), counted
            ids = " UNION ".join(
                f"SELECT {e.column} FROM {e.table}" for e in pipeline.evidence if e.topic in pipeline.inputs
            )
            stored = connection.execute(f"SELECT count(*) FROM ({ids}) AS ids").fetchone()  # type: ignore[arg-type]
            assert stored == (counted["in_sink"],), pipeline.name


def test_verify_proves_it_and_finds_a_changed_row(platform: Settings, report: Mapping[str, Any]) -> None:
    """After all the kills topics and tables agree, record by record; a row that is changed is named."""
    done = millrace(platform, "verify", "--settled", "--json")
    assert done.returncode == 0, done.stdout
    verified = {v["pipeline"]: v for v in json.loads(done.stdout)}
    assert set(verified) == {p.name for p in PIPELINES}
    for pipeline in PIPELINES:
        offsets = {o["topic"]: o for o in verified[pipeline.name]["offsets"]}
        counted = report["pipelines"][pipeline.name]
        assert sum(offsets[t.name]["in_sink"] for t in pipeline.inputs) == counted["in_sink"]
        checks = {c["name"].split(":")[0]: c for c in verified[pipeline.name]["checks"]}
        assert checks.keys() >= {t.name for t in pipeline.tables} | {i.view for i in pipeline.invariants}
        assert all(c["compared"] for c in checks.values()), checks
    change = "UPDATE latest_position SET sequence = sequence + %s WHERE truck_id = %s"
    with psycopg.connect(platform.database_url, autocommit=True) as connection:
        truck = connection.execute("SELECT min(truck_id) FROM latest_position").fetchone()
        assert truck is not None
        connection.execute(change, (1, truck[0]))
        found = millrace(platform, "verify", "fleet")
        connection.execute(change, (-1, truck[0]))
    assert found.returncode == 1
    assert "has a row with other values in latest_position" in found.stdout
    assert millrace(platform, "verify", "fleet").returncode == 0


def test_a_decision_is_traced_to_all_that_decided_it(platform: Settings, report: Mapping[str, Any]) -> None:
    """The command: from a row of the ledger to its record, its versions and the transaction itself."""
    with psycopg.connect(platform.database_url) as connection:
        row = connection.execute(
            "SELECT event_id FROM card_ledger WHERE model_version > 0 LIMIT 1"
        ).fetchone()
    assert row is not None
    done = millrace(platform, "trace", "--row", f"card_ledger:{row[0]}", "--json")
    assert done.returncode == 0, done.stderr
    [traced] = json.loads(done.stdout)
    assert traced["record"]["schema_version"] == 1
    assert traced["versions"].keys() == {"code", "rules", "model"} and traced["published"].keys() >= {"model"}
    assert [i["event_id"] for i in traced["inputs"]] == [row[0]]
    place = traced["inputs"][0]["place"]
    on = millrace(platform, "trace", "--record", f"{place['topic']}/{place['partition']}/{place['offset']}")
    assert f"card_ledger: event_id={row[0]}" in on.stdout


def test_stock_clients_read_every_valid_record(platform: Settings, report: Mapping[str, Any]) -> None:
    """confluent-kafka's own consumer and Avro deserializer read all but what the dead letters name."""
    with psycopg.connect(platform.database_url) as connection:
        undecodable = {
            (topic, partition, offset)
            for topic, partition, offset in connection.execute(
                "SELECT topic, partition, \"offset\" FROM dead_letters WHERE error_class = 'undecodable'"
            )
        }
    topics = {x.name: x for p in PIPELINES for t in p.topics for x in (t, t.dlq)}
    registry = SchemaRegistryClient({"url": platform.schema_registry_url})
    consumer = DeserializingConsumer(
        {
            "bootstrap.servers": platform.kafka_bootstrap_servers,
            "group.id": "somebody-else",
            "enable.auto.commit": False,
            "key.deserializer": StringDeserializer("utf_8"),
            "value.deserializer": AvroDeserializer(registry),
        }
    )
    read: Counter[str] = Counter()
    refused = set()
    with registry, closing(consumer):
        places = [TopicPartition(n, i, 0) for n, t in topics.items() for i in range(t.partitions)]
        ends = {(p.topic, p.partition): consumer.get_watermark_offsets(p)[1] for p in places}
        consumer.assign(places)
        left = sum(ends.values())
        while left:
            try:
                message = consumer.poll(20)
            except ValueDeserializationError as error:
                at = error.kafka_message
                refused.add((at.topic(), at.partition(), at.offset()))
            else:
                assert message is not None and message.error() is None, f"{left} records are missing"
                topic = topics[message.topic()]
                value = message.value()
                assert value["event_id"] and message.key() == str(value[topic.key])
                read[topic.name] += 1
            left -= 1
    assert refused == undecodable
    carried = {t.name for p in PIPELINES for t in p.topics} | {p.inputs[0].dlq.name for p in PIPELINES}
    assert carried <= set(read), "a topic carried no valid record"


def test_random_bytes_disturb_nobody(platform: Settings, report: Mapping[str, Any]) -> None:
    """1,000 random bytes on each input are one dead letter each; records before and after them land."""
    rng = random.Random(SEED)
    inputs = [t for p in PIPELINES for t in p.inputs]
    producer = Producer({"bootstrap.servers": platform.kafka_bootstrap_servers})
    places: list[tuple[str, int, int]] = []

    def delivered(error: object, message: Any) -> None:
        assert error is None, error
        places.append((message.topic(), message.partition(), message.offset()))

    for topic in inputs:
        producer.produce(topic.name, rng.randbytes(RANDOM_BYTES), b"noise", on_delivery=delivered)
    assert producer.flush(20) == 0
    before = {p["pid"]: p["restarts"] for p in processes(platform)}
    with psycopg.connect(platform.database_url, autocommit=True) as connection:
        query = (
            'SELECT count(*), min(length(value)) FROM dead_letters WHERE (topic, partition, "offset")'
            " = (%s, %s, %s)"
        )

        def stand_there() -> bool:
            return all(connection.execute(query, p).fetchone()[0] for p in places)  # type: ignore[index]

        until(stand_there, 60)
        assert len(places) == len(inputs)
        for place in places:
            assert connection.execute(query, place).fetchone() == (1, RANDOM_BYTES)  # type: ignore[index]
    again = millrace(platform, "demo", "--seconds", "5", "--json")
    assert again.returncode == 0, again.stderr
    accounted = json.loads(again.stdout)["pipelines"]
    for pipeline in PIPELINES:
        assert accounted[pipeline.name]["in_sink"] > report["pipelines"][pipeline.name]["in_sink"]
    assert {p["pid"]: p["restarts"] for p in processes(platform)} == before


def test_a_second_start_takes_seconds(platform: Settings, report: Mapping[str, Any]) -> None:
    """`down` leaves no process behind; `up` is ready again within 30 s, and what was stored is there."""
    assert millrace(platform, "down").returncode == 0
    home = str(platform.home_path)
    assert [p for p in Path("/proc").glob("[0-9]*") if _names(p, home)] == []
    began = time.monotonic()
    up = millrace(platform, "up")
    assert up.returncode == 0, up.stderr
    assert time.monotonic() - began < 30, up.stderr
    assert {p["state"] for p in processes(platform)} == {"running"}
    with psycopg.connect(platform.database_url) as connection:
        counted = connection.execute("SELECT count(*) FROM card_ledger").fetchone()
    assert counted is not None and counted[0] >= report["pipelines"]["fraud"]["in_sink"]


def _names(process: Path, home: str) -> bool:
    try:
        said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:
        return False
    return home.encode() in said and int(process.name) != os.getpid()
