"""Every metric in one typed list. `docs/metrics.md` is rendered from it; nothing is measured elsewhere.

Take a child once (`RECORDS_CONSUMED.labels("fraud-scoring", "card-transactions")`) and keep it: looking
labels up costs more than counting. Count per batch, not per record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RECORDS: Final = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384)

CONSUMER: Final = ("consumer", "topic")
PARTITION: Final = ("consumer", "topic", "partition")
LABELS: Final = {
    "consumer": "processor or sink that reads, as `fraud-sink`",
    "producer": "connector or processor that writes, as `gateway`",
    "topic": "topic",
    "partition": "partition number",
    "kind": "`webhook` or `email`",
    "outcome": "what became of it; the meaning lists the values",
    "service": "`gateway`, `api` or `registry`",
    "method": "HTTP method",
    "route": "route template, as `/v1/pipelines/{name}/positions`; `unmatched` where there is none",
    "status": "HTTP status",
    "process": "name of the supervised process",
    "class": "class of routes, as `read`; `any` where none is known yet",
    "condition": "named condition of readiness, as `card-transactions/3`",
}


@dataclass(frozen=True)
class Metric:
    """One metric: its full name, type, labels, unit and meaning."""

    name: str
    kind: str
    labels: tuple[str, ...]
    unit: str
    meaning: str


METRICS: list[Metric] = []

_M = TypeVar("_M", Counter, Gauge, Histogram)


def _declare(kind: type[_M], name: str, labels: tuple[str, ...], unit: str, meaning: str) -> None:
    unknown = set(labels) - LABELS.keys()
    if unknown:
        raise ValueError(f"metric {name}: label {min(unknown)!r} is not described; add it to LABELS")
    METRICS.append(Metric(f"millrace_{name}", kind.__name__.lower(), labels, unit, meaning))


def _counter(name: str, labels: tuple[str, ...], unit: str, meaning: str) -> Counter:
    _declare(Counter, name, labels, unit, meaning)
    return Counter(f"millrace_{name}", meaning, labels)


def _gauge(name: str, labels: tuple[str, ...], unit: str, meaning: str) -> Gauge:
    _declare(Gauge, name, labels, unit, meaning)
    return Gauge(f"millrace_{name}", meaning, labels)


def _histogram(
    name: str, labels: tuple[str, ...], unit: str, meaning: str, buckets: tuple[float, ...] = SECONDS
) -> Histogram:
    _declare(Histogram, name, labels, unit, meaning)
    return Histogram(f"millrace_{name}", meaning, labels, buckets=buckets)


# What became of records

RECORDS_CONSUMED = _counter(
    "records_consumed_total", CONSUMER, "records", "Records handed to a processor or sink."
)
RECORDS_PRODUCED = _counter(
    "records_produced_total", ("producer", "topic"), "records", "Records that the broker has acknowledged."
)
DUPLICATES = _counter(
    "duplicates_total", CONSUMER, "records", "Records dropped because their event id was applied before."
)
DEAD_LETTERS = _counter(
    "dead_letters_total", CONSUMER, "records", "Records refused as dead letters, with their reason stored."
)
PRODUCE_FAILURES = _counter(
    "produce_failures_total",
    ("producer", "topic", "outcome"),
    "records",
    "Records not acknowledged: `unknown` (may have been written), `refused` (were not written).",
)
ROWS_WRITTEN = _counter(
    "rows_written_total", CONSUMER, "rows", "Rows that a sink inserted or updated in the database."
)
ONE_BY_ONE = _counter(
    "records_one_by_one_total",
    CONSUMER,
    "records",
    "Records whose rows a sink made one by one, as when the database refused a block that held one of them.",
)

# How long it takes, and how large

BATCH_SECONDS = _histogram(
    "batch_seconds", CONSUMER, "seconds", "From handing over a batch until all its effects are acknowledged."
)
BATCH_RECORDS = _histogram("batch_records", CONSUMER, "records", "Records in a batch.", RECORDS)
CHECKPOINT_SECONDS = _histogram(
    "checkpoint_seconds", CONSUMER, "seconds", "Storing state, or rows, together with the position."
)
PRODUCE_SECONDS = _histogram(
    "produce_seconds", ("producer",), "seconds", "From producing a record until its delivery report."
)

# Where each partition stands

POSITION = _gauge("position", PARTITION, "offset", "Next offset to read, as stored in the database.")
END_OFFSET = _gauge("end_offset", PARTITION, "offset", "Offset of the next record the broker will append.")
LAG_RECORDS = _gauge("lag_records", PARTITION, "records", "End offset less position.")
LAG_MS = _gauge("lag_ms", PARTITION, "ms", "Age of the oldest record not yet handled, by its append time.")
WATERMARK_MS = _gauge("watermark_ms", PARTITION, "ms since 1970", "Event time reached by the partition.")
ASSIGNED_PARTITIONS = _gauge("assigned_partitions", CONSUMER, "partitions", "Partitions this process owns.")
DECLARED_PARTITIONS = _gauge(
    "declared_partitions", CONSUMER, "partitions", "Partitions that the consumer's processes own together."
)
REBALANCES = _counter(
    "rebalances_total",
    ("consumer", "outcome"),
    "rebalances",
    "Changes of the assignment: `assigned`, `revoked`, `lost`.",
)
TRANSIENT_ERRORS = _counter(
    "transient_errors_total", CONSUMER, "errors", "Failures that were waited out, as a database that is away."
)

# Doors

HTTP_REQUESTS = _counter(
    "http_requests_total", ("service", "method", "route", "status"), "requests", "HTTP requests answered."
)
HTTP_SECONDS = _histogram(
    "http_request_seconds", ("service", "method", "route"), "seconds", "Time to answer an HTTP request."
)
TRANSACTIONS_ANSWERED = _counter(
    "transactions_answered_total",
    ("outcome",),
    "transactions",
    "Transactions that the gateway answered: `decided`, `refused`, `pending` (undecided by then).",
)
STREAM_LISTENERS = _gauge(
    "stream_listeners", (), "connections", "Connections that are told of events as they are appended."
)
STREAM_RECORDS = _counter(
    "stream_records_total", ("topic",), "records", "Records decoded for such connections, once for all."
)
STREAM_DROPPED = _counter(
    "stream_dropped_total",
    ("outcome",),
    "connections",
    "Such connections ended from here: `slow`, `unreadable`, `beyond` (a position that does not exist),"
    " `denied` (not allowed any more), `ending` (this process).",
)
MQTT_MESSAGES = _counter(
    "mqtt_messages_total",
    ("topic", "outcome"),
    "messages",
    "MQTT messages: `acknowledged` (the broker has the record), `invalid`, `unacknowledged` (comes again).",
)
MQTT_CONNECTED = _gauge("mqtt_connected", (), "0 or 1", "Whether the bridge is connected to the MQTT broker.")

# The audit log, and limits

AUDIT_ENTRIES = _counter(
    "audit_entries_total",
    ("outcome",),
    "entries",
    "Entries of the audit log: `written`, `dropped` (the database was away for too long).",
)
AUDIT_WAITING = _gauge("audit_waiting", (), "entries", "Entries of the audit log that wait to be written.")
LIMITED = _counter(
    "limited_total",
    ("class", "outcome"),
    "requests",
    "Requests charged to an asker's tokens: `taken`, `refused` (429), `shed` (503, before any work).",
)
LIMITS_LOCAL = _gauge(
    "limits_local", (), "0 or 1", "Whether tokens are counted by this process alone, as Redis is away."
)

# What leaves the platform

OUTBOX_ROWS = _counter(
    "outbox_rows_total",
    CONSUMER,
    "rows",
    "Rows written to the outbox: decisions that somebody subscribed to.",
)
DELIVERIES = _counter(
    "outward_deliveries_total",
    ("kind", "outcome"),
    "attempts",
    "Attempts to deliver: `delivered`, `refused` (an answer that is not 2xx), `unreachable` (no answer, or a"
    " forbidden address), `gone` (410), `lost` (another process had the lease by then).",
)
DELIVERY_SECONDS = _histogram(
    "outward_delivery_seconds", ("kind",), "seconds", "From the first byte sent until the answer was read."
)
DELIVERIES_PENDING = _gauge("outward_pending", (), "deliveries", "Deliveries that wait, of active endpoints.")
DELIVERY_AGE_SECONDS = _gauge(
    "outward_oldest_seconds", (), "seconds", "Age of the oldest delivery that waits, of active endpoints."
)
ENDPOINTS_DISABLED = _gauge("outward_disabled", (), "endpoints", "Endpoints that are disabled.")

LEDGER_HEADS = _counter("ledger_heads_total", (), "heads", "Heads of the ledger's chains that were signed.")
LEDGER_SIGNINGS = _counter(
    "ledger_signings_total",
    (),
    "times",
    "How often the ledger's heads were looked at, and signed if they moved.",
)

# Processes

PROCESS_RESTARTS = _counter(
    "process_restarts_total", ("process",), "restarts", "Processes that the supervisor started again."
)
READY = _gauge("ready", (), "0 or 1", "Whether /health/ready answers 200.")
CONDITION = _gauge("condition", ("condition",), "0 or 1", "A named condition of readiness: 1 where it holds.")


def render_docs() -> str:
    """The text of `docs/metrics.md`."""
    return "\n".join(_docs_lines()) + "\n"


def _docs_lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "Rendered from `infra/telemetry/metrics.py` by `millrace docs`; do not edit. Every process serves"
    yield "them at `/metrics`; `millrace ps` shows the ports."
    yield ""
    yield "| metric | type | labels | unit | meaning |"
    yield "|---|---|---|---|---|"
    for m in METRICS:
        labels = ", ".join(m.labels) or "–"
        yield f"| `{m.name}` | {m.kind} | {labels} | {m.unit} | {m.meaning} |"
    yield ""
    yield "## Labels"
    yield ""
    yield "| label | value |"
    yield "|---|---|"
    used = {label for m in METRICS for label in m.labels}
    for label, value in LABELS.items():
        if label in used:
            yield f"| {label} | {value} |"
