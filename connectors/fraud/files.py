"""Card transactions from files: the Fraud Detection Handbook's, and any with our own field names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from connectors.files import Event, FileSource
from infra.columns import arrow_schema
from schemas.declare import Topic
from schemas.fraud import CARD_TRANSACTIONS

HANDBOOK_CURRENCY = "EUR"
"""The handbook's amounts carry none; it is one currency with two decimals."""

LABEL = "is_fraud"
"""The column that tells which transactions were frauds. Models learn from it; no transaction has it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def _handbook(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    # The labels (`LABEL`, fraud_scenario) are not part of a transaction: nobody knows them when it happens.
    ids = batch["transaction_id"].to_pylist()
    times = batch["occurred_at"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist()
    customers = batch["customer_id"].to_pylist()
    terminals = batch["terminal_id"].to_pylist()
    amounts = pc.round(pc.multiply(batch["amount"], 100.0)).cast(pa.int64()).to_pylist()
    for number, at_ms, customer, terminal, amount in zip(
        ids, times, customers, terminals, amounts, strict=True
    ):
        yield (
            CARD_TRANSACTIONS,
            {
                "event_id": f"handbook-{number}",
                "tenant": "default",
                "occurred_at": at_ms,
                "card_id": f"handbook-card-{customer}",
                "amount_minor": amount,
                "currency": HANDBOOK_CURRENCY,
                "customer_id": str(customer),
                "merchant_id": None,
                "terminal_id": str(terminal),
                "country": None,
                "home_country": None,
                "mcc": None,
                "channel": "UNKNOWN",
            },
        )


def _handbook_columns(batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch | None:
    names = ("transaction_id", "customer_id", "terminal_id")
    if any(batch[name].null_count for name in (*names, "occurred_at", "amount")):
        return None
    if not all(pa.types.is_integer(batch[name].type) for name in names):
        return None  # as text a number of another type is another one
    number, customer, terminal = (batch[name].cast(pa.string()) for name in names)
    rows = batch.num_rows
    columns = {
        "event_id": pc.binary_join_element_wise("handbook-", number, ""),
        "tenant": pa.repeat("default", rows),
        "occurred_at": batch["occurred_at"].cast(pa.timestamp("ms")).cast(pa.int64()),
        "card_id": pc.binary_join_element_wise("handbook-card-", customer, ""),
        "amount_minor": pc.round(pc.multiply(batch["amount"], 100.0)).cast(pa.int64()),
        "currency": pa.repeat(HANDBOOK_CURRENCY, rows),
        "customer_id": customer,
        "terminal_id": terminal,
        "channel": pa.repeat("UNKNOWN", rows),
    }
    schema = arrow_schema(CARD_TRANSACTIONS)
    arrays = [columns[f.name] if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


_REQUIRED = frozenset({"event_id", "occurred_at", "card_id", "amount_minor", "currency"})


def _own(batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[Topic, Event]]:
    defaults = {f["name"]: f.get("default") for f in CARD_TRANSACTIONS.schema["fields"]}
    given = [name for name in defaults if name in batch.schema.names]
    for row in batch.select(given).to_pylist():
        event = defaults | {name: value for name, value in row.items() if value not in (None, "")}
        event["occurred_at"] = _milliseconds(event["occurred_at"])
        # A CSV reader takes ids and codes made of digits for numbers.
        for name in event.keys() - {"occurred_at", "amount_minor"}:
            event[name] = _text(name, event[name])
        yield CARD_TRANSACTIONS, event


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    return f"{value:04d}" if name == "mcc" and isinstance(value, int) else str(value)


def _milliseconds(value: Any) -> Any:
    """Milliseconds since 1970 of an integer, a datetime (UTC where it has no zone) or ISO 8601 text."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return ((value if value.tzinfo else value.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
    return value


FILES: tuple[FileSource, ...] = (
    FileSource(
        name="fraud-detection-handbook",
        topic=CARD_TRANSACTIONS,
        columns=frozenset({"transaction_id", "occurred_at", "customer_id", "terminal_id", "amount"}),
        events=_handbook,
        event_columns=_handbook_columns,
    ),
    FileSource(name="card-transactions", topic=CARD_TRANSACTIONS, columns=_REQUIRED, events=_own),
)
