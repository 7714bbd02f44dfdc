"""Debezium's JDBC sink on Kafka Connect, standalone: its jars, its input, its command.

In the fastest form that the documentation has: a reduction buffer (one statement per key and batch), a
`batch.size` of the poll's size, both at 5,000, the driver's `reWriteBatchedInserts` (many rows a statement),
and one task, as all subjects are one process.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from benchmarks.harness import STATE
from benchmarks.transactions import Transactions, send
from infra.broker import TopicSpec, ensure_topics
from infra.settings import PORT_API, Settings
from schemas.declare import Topic

HERE = Path(__file__).parent
TYPES = {"string": "string", "long": "int64", "double": "double"}


def jars() -> Path:
    """The folder of the connector's jars, resolved with Maven where its pom has changed."""
    folder, wanted = STATE / "env" / "debezium", hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()
    stamp = folder / "pom.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("resolving debezium's jars")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run(
            [
                *("mvn", "-q", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"),
                *("-DincludeScope=runtime", f"-DoutputDirectory={folder}"),
            ],
            check=True,
        )
        stamp.write_text(wanted)
    return folder


def fill(settings: Settings, target: Topic, data: Transactions, records: int) -> None:
    """Append the first so many scores as JSON, each with its schema, as Connect's converter reads them."""
    ensure_topics(settings.kafka, [TopicSpec.of(target)])
    fields = []
    for name, kind in target.fields.items():
        if isinstance(kind, dict):  # the event time
            typed = {"type": "int64", "name": "org.apache.kafka.connect.data.Timestamp", "version": 1}
        else:
            typed = {"type": TYPES[kind]}
        fields.append({**typed, "field": name, "optional": False})
    schema = orjson.dumps({"type": "struct", "optional": False, "fields": fields})
    head = b'{"schema":' + schema + b',"payload":'
    scored = islice(data.scored(), records)
    send(settings, target, ((e["card_id"], head + orjson.dumps(e) + b"}") for e in scored))


def command(folder: Path, told: dict[str, Any], settings: Settings) -> list[str]:
    """Starts Connect with the one connector."""
    state = Path(told["state"])
    at = urlsplit(told["database"])
    worker = {
        "bootstrap.servers": told["bootstrap"],
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "offset.storage.file.filename": str(state / "offsets"),
        "listeners": f"http://127.0.0.1:{settings.port(PORT_API)}",
        "plugin.discovery": "service_load",
        "plugin.path": str(folder),
    }
    connector = {
        "name": told["tag"],
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": "1",
        "topics": told["source"],
        "connection.url": f"jdbc:postgresql://{at.hostname}:{at.port}{at.path}?reWriteBatchedInserts=true",
        "connection.username": at.username,
        "connection.password": at.password,
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": "event_id",
        "schema.evolution": "none",
        "collection.name.format": told["table"],
        "use.reduction.buffer": "true",
        "batch.size": "5000",
        "consumer.override.max.poll.records": "5000",
        "consumer.override.auto.offset.reset": "earliest",
    }
    for name, values in (("worker", worker), ("connector", connector)):
        lines = "".join(f"{key}={value}\n" for key, value in values.items())
        (state / f"{name}.properties").write_text(lines)
    return [
        "java",
        "-Xmx1g",
        "-cp",
        f"{folder}/*",
        "org.apache.kafka.connect.cli.ConnectStandalone",
        str(state / "worker.properties"),
        str(state / "connector.properties"),
    ]
