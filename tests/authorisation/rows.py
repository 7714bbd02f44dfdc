"""Rows of two tenants with two objects each, every one of which says in its values whose it is."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from infra.identity.receivers import PREFIX, token_hash
from infra.object_store import FolderStore
from infra.postgres import Connection
from infra.settings import Settings
from schemas.declare import Topic
from schemas.fleet import TRUCK_ALERTS, TRUCK_POSITIONS
from schemas.fraud import CARD_DECISIONS
from schemas.imaging import DICOM_INSTANCES
from schemas.orders import ORDER_STATUS, STOCK_RESULTS
from schemas.pipelines import PIPELINES

TENANTS = ("acme", "umbra")
OBJECTS = ("o1", "o2")
NOBODYS = "all"
"""In the place of an object, in rows that are no object's."""

MARKER = re.compile(rf"\b({'|'.join(TENANTS)})\.({'|'.join((*OBJECTS, NOBODYS))})\b")

UID = re.compile(r"(?<![\d.])1\.2\.([12])\.([123])\.[123]\b")


@dataclass(frozen=True)
class Owner:
    """Whose a row is. `str` is the marker that its values bear, and the object's id."""

    tenant: str
    object: str

    def __str__(self) -> str:
        return f"{self.tenant}.{self.object}"

    @property
    def uid(self) -> str:
        """A DICOM UID of its own."""
        every = (*OBJECTS, NOBODYS)
        return f"1.2.{TENANTS.index(self.tenant) + 1}.{every.index(self.object) + 1}"

    @property
    def endpoint(self) -> str:
        """The endpoint that is told of its decisions."""
        return f"{self}-endpoint"

    @property
    def token(self) -> str:
        """That endpoint's token."""
        return f"{PREFIX}{self.tenant}-{self.object}".ljust(len(PREFIX) + 43, "x")


OWNERS = tuple(Owner(tenant, o) for tenant in TENANTS for o in OBJECTS)


def owners_in(text: str) -> set[Owner]:
    """Whose rows a text tells of."""
    by_uid = {(TENANTS[int(t) - 1], (*OBJECTS, NOBODYS)[int(o) - 1]) for t, o in UID.findall(text)}
    return {Owner(*found) for found in {*MARKER.findall(text), *by_uid}}


def example(topic: Topic, n: int = 0) -> dict[str, Any]:
    """The n-th example of a topic, complete."""
    examples = json.loads((topic.schema_path.parent / "examples" / f"{topic.name}.json").read_text())
    defaults = {f["name"]: f["default"] for f in topic.schema["fields"] if "default" in f}
    return defaults | examples[n]


def events(owner: Owner, digest: str) -> Iterator[tuple[Topic, dict[str, Any]]]:
    """What processors would have answered about an object."""
    tenant, name = owner.tenant, str(owner)
    yield (
        CARD_DECISIONS,
        example(CARD_DECISIONS)
        | {"event_id": f"{name}-decision", "tenant": tenant, "card_id": f"{name}-card", "merchant_id": name},
    )
    of_truck = {"tenant": tenant, "truck_id": f"{name}-truck", "fleet_id": name}
    yield TRUCK_POSITIONS, example(TRUCK_POSITIONS) | of_truck | {"event_id": f"{name}/fix"}
    yield TRUCK_ALERTS, example(TRUCK_ALERTS) | of_truck | {"event_id": f"{name}/alert"}
    yield (
        ORDER_STATUS,
        example(ORDER_STATUS)
        | {
            "event_id": f"{name}/1",
            "tenant": tenant,
            "order_id": f"{name}-order",
            "customer_id": name,
            "input_id": f"{name}-input",
        },
    )
    yield (
        DICOM_INSTANCES,
        example(DICOM_INSTANCES)
        | {
            "event_id": f"{name}/upload",
            "tenant": tenant,
            "patient_id": name,
            "study_uid": f"{owner.uid}.1",
            "series_uid": f"{owner.uid}.2",
            "sop_instance_uid": f"{owner.uid}.3",
            "thumbnail_digest": digest,
            "thumbnail_reason": None,
        },
    )


def fill(settings: Settings, connection: Connection) -> None:
    """Store rows of every owner, and of each tenant such as are no object's."""
    store = FolderStore(settings.object_store)
    for n, owner in enumerate(OWNERS):
        digest = store.put(f"picture of {owner}".encode()).digest
        for topic, event in events(owner, digest):
            insert(connection, topic, event, n)
    for owner in OWNERS:
        connection.execute(
            "INSERT INTO outward_endpoints (endpoint_id, kind, tenant, merchant_id, target, decisions,"
            " token_sha256, since_sequence) VALUES (%s, 'webhook', %s, %s, 'https://x.example', %s, %s, 0)",
            (
                owner.endpoint, owner.tenant, str(owner), ["APPROVE", "REVIEW", "DECLINE"],
                token_hash(owner.token),
            ),
        )  # fmt: skip
    connection.execute(
        "INSERT INTO outbox (tenant, merchant_id, event_id, occurred_at, decision, risk)"
        " SELECT tenant, merchant_id, event_id, occurred_at, decision, risk FROM card_ledger"
    )
    for n, tenant in enumerate(TENANTS):
        owner = Owner(tenant, NOBODYS)
        stock = example(STOCK_RESULTS) | {
            "event_id": f"{owner}/stock",
            "tenant": tenant,
            "sku": f"{owner}-sku",
            "input_id": f"{owner}-input",
        }
        insert(connection, STOCK_RESULTS, stock, n)
        connection.execute(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, tenant, error_class,'
            " error, append_time)"
            " VALUES ('sink', 'card-transactions', 0, %s, 'fraud', %s, 'invalid', %s, now())",
            (n, tenant, f"a letter of {owner}"),
        )


def insert(connection: Connection, topic: Topic, event: dict[str, Any], offset: int) -> None:
    """The rows that the sink would make of an event."""
    for pipeline in PIPELINES:
        for mapping in importlib.import_module(f"sinks.{pipeline.name}").ROWS:
            if mapping.table.topic.name != topic.name:
                continue
            columns = (*mapping.table.columns, "source_partition", "source_offset")
            for row in mapping.rows(event):
                if mapping.table.time:
                    at = row[mapping.table.columns.index(mapping.table.time)]
                    connection.execute(
                        "SELECT millrace_ensure_partitions(%s, %s, %s)", (mapping.table.name, at, at)
                    )
                connection.execute(
                    sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                        sql.Identifier(mapping.table.name),
                        sql.SQL(", ").join(map(sql.Identifier, columns)),
                        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
                    ),
                    (*row, 0, offset),
                )
