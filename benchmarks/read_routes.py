"""A mix of read routes, each request with the document that its answer must be.

The documents are made from the tables alone, by the owner, and share no code with the API: sums, counts and
pages are folded here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import numpy as np
from psycopg.rows import dict_row

from infra.postgres import Connection
from schemas.fleet import LATEST_POSITION_TABLE
from schemas.fraud import CARD_LEDGER

TENANT = "default"
PAGE = 10
NAMED = 10
SEED = 11

Row = Mapping[str, Any]

CARD_FIELDS = (
    "event_id",
    "occurred_at",
    "card_id",
    "amount_minor",
    "currency",
    "customer_id",
    "merchant_id",
    "terminal_id",
    "country",
    "mcc",
    "channel",
    "decision",
    "risk",
    "reasons",
)


@dataclass(frozen=True)
class Asked:
    """A request, and the document that answers it; of a page its items alone, and whether there is more."""

    path: str
    document: Any
    more: bool | None = None

    def is_answered_by(self, told: Any) -> bool:
        if self.more is None:
            return bool(told == self.document)
        return told["items"] == self.document and (told["next_cursor"] is not None) == self.more


@dataclass(frozen=True)
class Mix:
    """Requests by route, and what share of all each route has."""

    routes: Mapping[str, Sequence[Asked]]
    shares: Mapping[str, float]

    def draw(self, count: int) -> list[tuple[str, Asked]]:
        """So many requests with their routes; the same ones each time."""
        random = np.random.default_rng(SEED)
        names = list(self.routes)
        weights = np.array([self.shares[name] for name in names])
        chosen = random.choice(len(names), count, p=weights / weights.sum())
        which = random.integers(0, 1 << 30, count)
        return [
            (names[k], self.routes[names[k]][w % len(self.routes[names[k]])])
            for k, w in zip(chosen, which, strict=True)
        ]


SHARES = {
    "a decision": 0.30,
    "a card's transactions": 0.15,
    "a card's balance": 0.10,
    "a card's profile": 0.10,
    "an order": 0.15,
    "a customer's orders": 0.05,
    "stock of a SKU": 0.10,
    "a truck": 0.05,
}

_ORDERS: tuple[LiteralString, ...] = (
    """INSERT INTO orders (tenant, order_id, status, customer_id, currency, total_minor, placed_at,
         updated_at, input_id, version, code_version, source_partition, source_offset)
       SELECT 'default', 'order-' || n, 'CONFIRMED', 'customer-' || n % 2000, 'EUR', 1500 * (n % 7 + 1),
         timestamptz '2025-11-01 00:00Z' + n * interval '7 s',
         timestamptz '2025-11-01 00:10Z' + n * interval '7 s', 'in-' || n, 3, 1, n % 12, n
       FROM generate_series(1, 20000) AS n""",
    """INSERT INTO order_lines (tenant, order_id, sku, quantity, amount_minor, state, version,
         source_partition, source_offset, customer_id)
       SELECT tenant, order_id, 'sku-' || (source_offset * 17 + k) % 1000, k, 500 * k, 'held', version,
         source_partition, source_offset, customer_id
       FROM orders, generate_series(1, 3) AS k""",
    """INSERT INTO stock (tenant, sku, on_hand, reserved, version, updated_at, event_id, source_partition,
         source_offset)
       SELECT 'default', 'sku-' || n, 100 + n, n % 90, 5,
         timestamptz '2025-11-03 00:00Z' + n * interval '1 s', 'stock-' || n, n % 12, n
       FROM generate_series(0, 999) AS n""",
    """INSERT INTO latest_position (event_id, tenant, occurred_at, truck_id, sequence, latitude, longitude,
         speed_kmh, fences, code_version, fences_version, source_partition, source_offset, fleet_id)
       SELECT 'fix-' || n, 'default', timestamptz '2025-11-03 00:00Z' + n * interval '1 s', 'truck-' || n, n,
         51 + n / 1000.0, 4 + n / 500.0, n % 90, ARRAY['yard'], 1, 1, n % 12, n, 'fleet-' || n % 10
       FROM generate_series(1, 1000) AS n""",
)


def fill(connection: Connection) -> None:
    """Rows of orders, stock and trucks, beside the ledger that the fraud pipeline has made."""
    for statement in _ORDERS:
        connection.execute(statement)
    connection.execute("ANALYZE")


def mix(connection: Connection, each: int) -> Mix:
    """Up to `each` requests of each route, over the rows that there are."""
    makers: Mapping[str, Callable[[_Tables, int], Iterator[Asked]]] = {
        "a decision": _decisions,
        "a card's transactions": _transactions,
        "a card's balance": _balances,
        "a card's profile": _profiles,
        "an order": _orders,
        "a customer's orders": _of_customers,
        "stock of a SKU": _stock,
        "a truck": _trucks,
    }
    tables = _Tables(connection, each)
    return Mix({name: list(make(tables, each)) for name, make in makers.items()}, SHARES)


class _Tables:
    """What the tables hold."""

    def __init__(self, connection: Connection, cards: int) -> None:
        self._connection = connection
        self.cards: dict[str, list[Row]] = defaultdict(list)
        """Whole cards, newest event time first."""
        for row in self.rows(
            "SELECT * FROM card_ledger WHERE tenant = 'default' AND card_id IN"
            " (SELECT DISTINCT card_id FROM card_ledger ORDER BY card_id LIMIT %s)"
            " ORDER BY occurred_at DESC, event_id DESC",
            cards,
        ):
            self.cards[row["card_id"]].append(row)

    def rows(self, query: LiteralString, *values: Any) -> list[Row]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return list(cursor.execute(query, values))


def _decisions(tables: _Tables, each: int) -> Iterator[Asked]:
    for rows in tables.cards.values():
        yield Asked(f"/v1/decisions/{rows[0]['event_id']}", _told(rows[0], CARD_LEDGER.columns))


def _told(row: Row, columns: Iterable[str]) -> dict[str, Any]:
    return {name: _json(row[name]) for name in columns}


def _transactions(tables: _Tables, each: int) -> Iterator[Asked]:
    for card, rows in tables.cards.items():
        items = [_told(row, CARD_FIELDS) for row in rows[:PAGE]]
        yield Asked(f"/v1/cards/{card}/transactions?limit={PAGE}", items, len(rows) > PAGE)


def _balances(tables: _Tables, each: int) -> Iterator[Asked]:
    names = {"APPROVE": "spent_minor", "REVIEW": "held_minor", "DECLINE": "declined_minor"}
    for card, rows in tables.cards.items():
        sums: dict[str, dict[str, Any]] = {}
        for row in rows:
            start = {"currency": row["currency"], **dict.fromkeys(names.values(), 0), "transactions": 0}
            own = sums.setdefault(row["currency"], start)
            own[names[row["decision"]]] += row["amount_minor"]
            own["transactions"] += 1
        currencies = [sums[name] for name in sorted(sums)]
        yield Asked(f"/v1/cards/{card}/balance", {"card_id": card, "at": None, "currencies": currencies})


def _profiles(tables: _Tables, each: int) -> Iterator[Asked]:
    for card, rows in tables.cards.items():
        amounts = [
            {
                "currency": currency,
                "transactions": len(some),
                "sum_minor": sum(some),
                "max_minor": max(some),
            }
            for currency, some in _by(rows, "currency", "amount_minor").items()
        ]
        told = {
            "card_id": card,
            "transactions": len(rows),
            "reviewed": sum(row["decision"] == "REVIEW" for row in rows),
            "declined": sum(row["decision"] == "DECLINE" for row in rows),
            "first_at": _json(min(row["occurred_at"] for row in rows)),
            "last_at": _json(max(row["occurred_at"] for row in rows)),
            "amounts": sorted(amounts, key=lambda one: (-one["transactions"], one["currency"])),
            "merchants": _most(row["merchant_id"] for row in rows),
            "countries": _most(row["country"] for row in rows),
            "mccs": _most(row["mcc"] for row in rows),
            "channels": _most(row["channel"] for row in rows),
            "hours": dict(Counter(str(row["occurred_at"].astimezone(UTC).hour) for row in rows)),
        }
        yield Asked(f"/v1/cards/{card}/profile", told)


def _most(values: Iterator[Any]) -> dict[str, int]:
    counts = Counter(value for value in values if value is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:NAMED])


def _by(rows: Sequence[Row], key: str, value: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row[key]].append(row[value])
    return found


_SUMMARY = (
    "tenant",
    "order_id",
    "status",
    "reason",
    "customer_id",
    "currency",
    "total_minor",
    "placed_at",
    "updated_at",
    "version",
)


def _orders(tables: _Tables, each: int) -> Iterator[Asked]:
    found = tables.rows("SELECT * FROM orders ORDER BY order_id LIMIT %s", each)
    ids = [row["order_id"] for row in found]
    lines: dict[str, list[Row]] = defaultdict(list)
    for line in tables.rows(
        'SELECT * FROM order_lines WHERE order_id = ANY(%s) ORDER BY sku COLLATE "C"', ids
    ):
        lines[line["order_id"]].append({k: line[k] for k in ("sku", "quantity", "amount_minor", "state")})
    for row in found:
        told = _told(row, _SUMMARY)
        yield Asked(f"/v1/orders/{row['order_id']}", told | {"lines": lines[row["order_id"]]})


def _of_customers(tables: _Tables, each: int) -> Iterator[Asked]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in tables.rows(
        "SELECT * FROM orders WHERE customer_id IN (SELECT DISTINCT customer_id FROM orders"
        " ORDER BY customer_id LIMIT %s) ORDER BY placed_at DESC, order_id DESC",
        each,
    ):
        found[row["customer_id"]].append(row)
    for customer, rows in found.items():
        items = [_told(row, _SUMMARY) for row in rows[:PAGE]]
        yield Asked(f"/v1/customers/{customer}/orders?limit={PAGE}", items, len(rows) > PAGE)


def _stock(tables: _Tables, each: int) -> Iterator[Asked]:
    for row in tables.rows("SELECT * FROM stock ORDER BY sku LIMIT %s", each):
        told = _told(row, ("sku", "on_hand", "reserved", "version", "updated_at"))
        yield Asked(f"/v1/stock/{row['sku']}", told | {"available": row["on_hand"] - row["reserved"]})


def _trucks(tables: _Tables, each: int) -> Iterator[Asked]:
    for row in tables.rows("SELECT * FROM latest_position ORDER BY truck_id LIMIT %s", each):
        told = _told(row, LATEST_POSITION_TABLE.columns) | {"distance_m": None}
        yield Asked(f"/v1/trucks/{row['truck_id']}", told)


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value
