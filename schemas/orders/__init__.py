"""The orders pipeline: order events and stock receipts in, order status and stock balances out.

An order is reserved by a saga: `orders-saga` owns orders, `orders-stock` owns SKUs, and they talk
through topics only, so that each SKU's log alone decides who gets its last unit.
"""

from __future__ import annotations

from schemas.declare import DAY_MS, Evidence, Invariant, Merge, Pipeline, Processor, Table, Topic

ORDER_EVENTS = Topic(
    domain="orders",
    name="order-events",
    key="order_id",
    owner="orders",
    about="Orders placed, cancelled and returned, as the connectors sent them",
    retention_ms=90 * DAY_MS,
)
STOCK_RECEIPTS = Topic(
    domain="orders",
    name="stock-receipts",
    key="sku",
    owner="orders",
    about="Stock that arrived from outside: opening stock and deliveries",
    retention_ms=90 * DAY_MS,
)
ORDER_LOG = Topic(
    domain="orders",
    name="order-log",
    key="order_id",
    owner="orders",
    about="Checked order events and stock results in the one order that the saga sees",
)
STOCK_COMMANDS = Topic(
    domain="orders",
    name="stock-commands",
    key="sku",
    owner="orders",
    about="Receive, reserve, release and restock, in the order that is the truth for a SKU",
)
STOCK_RESULTS = Topic(
    domain="orders",
    name="stock-results",
    key="order_id",
    owner="orders",
    about="What became of each stock command, with the SKU's balance after it",
)
ORDER_STATUS = Topic(
    domain="orders",
    name="order-status",
    key="order_id",
    owner="orders",
    about="The answer to every order event, and every change of an order's status",
    retention_ms=365 * DAY_MS,
)

COMMAND_HORIZON_MS = ORDER_LOG.retention_ms
"""How long a SKU remembers a command after the append time of its cause; an older one is refused.

Nothing is older and still to be decided: its cause would have left the order log.
"""
RECEIPT_HORIZON_MS = 400 * DAY_MS
"""How far behind a SKU's newest receipt, in event time, a receipt may lie; an older one is refused."""

INTAKE = Processor(
    name="orders-intake", sources=(ORDER_EVENTS, STOCK_RESULTS), outputs=(ORDER_LOG,), stateful=False
)
RECEIPTS = Processor(
    name="orders-receipts", sources=(STOCK_RECEIPTS,), outputs=(STOCK_COMMANDS,), stateful=False
)
SAGA = Processor(
    name="orders-saga", sources=(ORDER_LOG,), outputs=(STOCK_COMMANDS, ORDER_STATUS), stateful=True
)
STOCK = Processor(name="orders-stock", sources=(STOCK_COMMANDS,), outputs=(STOCK_RESULTS,), stateful=True)

ORDERS_TABLE = Table(
    name="orders",
    topic=ORDER_STATUS,
    key=("tenant", "order_id"),
    columns=(
        "tenant",
        "order_id",
        "status",
        "reason",
        "customer_id",
        "currency",
        "total_minor",
        "placed_at",
        "updated_at",
        "input_id",
        "version",
        "code_version",
    ),
    merge=Merge.HIGHEST_VERSION,
    order_by="version",
)
ORDER_LINES_TABLE = Table(
    name="order_lines",
    topic=ORDER_STATUS,
    key=("tenant", "order_id", "sku"),
    columns=("tenant", "order_id", "customer_id", "sku", "quantity", "amount_minor", "state", "version"),
    merge=Merge.HIGHEST_VERSION,
    order_by="version",
)
ORDER_STATUS_LOG_TABLE = Table(
    name="order_status_log",
    topic=ORDER_STATUS,
    key=("tenant", "order_id", "version"),
    columns=(
        "tenant",
        "order_id",
        "version",
        "customer_id",
        "event_id",
        "occurred_at",
        "input_id",
        "input_kind",
        "outcome",
        "status",
        "reason",
        "code_version",
    ),
)
STOCK_TABLE = Table(
    name="stock",
    topic=STOCK_RESULTS,
    key=("tenant", "sku"),
    columns=("tenant", "sku", "on_hand", "reserved", "version", "updated_at", "event_id"),
    merge=Merge.HIGHEST_VERSION,
    order_by="version",
)
STOCK_LEDGER_TABLE = Table(
    name="stock_ledger",
    topic=STOCK_RESULTS,
    key=("tenant", "sku", "version"),
    columns=(
        "tenant",
        "sku",
        "version",
        "event_id",
        "occurred_at",
        "kind",
        "outcome",
        "reason",
        "order_id",
        "quantity",
        "on_hand",
        "reserved",
        "input_id",
        "code_version",
    ),
)

PIPELINE = Pipeline(
    name="orders",
    about="Orders reserve stock line by line: confirmed when every line is held, rejected otherwise",
    inputs=(ORDER_EVENTS, STOCK_RECEIPTS),
    processors=(INTAKE, RECEIPTS, SAGA, STOCK),
    tables=(ORDERS_TABLE, ORDER_LINES_TABLE, ORDER_STATUS_LOG_TABLE, STOCK_TABLE, STOCK_LEDGER_TABLE),
    evidence=(
        Evidence(topic=ORDER_EVENTS, table="order_status_log", column="input_id", once=False),
        Evidence(
            topic=STOCK_RECEIPTS,
            table="stock_ledger",
            column="input_id",
            only=("kind", "receive"),
            sums=(("quantity", "quantity"),),
        ),
        Evidence(topic=STOCK_COMMANDS, table="stock_ledger", column="event_id"),
    ),
    invariants=(
        Invariant(
            view="stock_ledger_mismatches",
            about="each SKU's stock is what its ledger adds up to, without a version missing",
        ),
        Invariant(
            view="order_stock_mismatches",
            about="units reserved are those of confirmed orders",
            settled=True,
        ),
    ),
)
