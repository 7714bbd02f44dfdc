"""What row-level security does to the plans of queries: indexes are used as before, but for PostGIS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import api.fleet
import api.fraud
import api.orders
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.signed_in import signed_in

ROWS = 20_000


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """Orders and trucks of a hundred tenants, so many that a plan matters."""
    signed_in(database)
    with connect(database.database_url) as connection:
        connection.execute(
            "INSERT INTO orders SELECT 'tenant-' || n % 100, 'order-' || n, 'CONFIRMED', NULL,"
            " 'customer-' || n % 1000, 'EUR', 1, now() - n * interval '1 s', now(), 'i', 1, 1, 0, n"
            f" FROM generate_series(1, {ROWS}) n"
        )
        connection.execute(
            "INSERT INTO latest_position (event_id, tenant, occurred_at, truck_id, sequence, latitude,"
            " longitude, fences, code_version, fences_version, source_partition, source_offset, fleet_id)"
            " SELECT 'e' || n, 'tenant-' || n % 100, now(), 'truck-' || n, 1, 50 + n % 10, 4 + n % 7, '{}',"
            f" 1, 1, 0, n, 'fleet-' || n % 5 FROM generate_series(1, {ROWS}) n"
        )
        connection.execute("ANALYZE orders, latest_position")
    return database


@pytest.fixture
def connection(filled: Settings) -> Iterator[Connection]:
    """A transaction of the API's role, of one tenant and some objects."""
    with connect(filled.database_api_url) as made, made.transaction():
        objects = json.dumps({"fleet": ["fleet-1"], "customer": ["customer-7", "customer-107"]})
        made.execute("SELECT set_config('millrace.tenant', 'tenant-7', true)")
        made.execute("SELECT set_config('millrace.objects', %s, true)", (objects,))
        yield made


def plan(connection: Connection, query: str, *values: Any) -> str:
    """How Postgres answers an API's query with these values."""
    connection.execute(f"PREPARE asked AS {query}".encode())
    listed = ", ".join(connection.execute("SELECT quote_nullable(%s)", (v,)).fetchone()[0] for v in values)  # type: ignore[index, misc]
    found = "\n".join(
        str(line) for (line,) in connection.execute(f"EXPLAIN EXECUTE asked({listed})".encode())
    )
    connection.execute("DEALLOCATE asked")
    return found


def test_an_order_is_found_by_its_key(connection: Connection) -> None:
    """Tenant and order are conditions of the key's index, tenant also by the policy."""
    found = plan(connection, api.orders._ONE, "tenant-7", ["customer-7"], "order-7")
    assert "orders_pkey" in found and "Seq Scan on orders" not in found, found


def test_a_customers_orders_are_found_by_their_index(connection: Connection) -> None:
    """As without row-level security: comparing texts and times leaks nothing, so the index may do it."""
    found = plan(
        connection, api.orders._OF_CUSTOMER, "tenant-7", ["customer-7"], "customer-7", None, None, None, 10
    )
    assert "orders_by_customer" in found and "Seq Scan" not in found, found


def test_trucks_near_a_place_are_looked_for_among_the_tenants(connection: Connection) -> None:
    """PostGIS is not leakproof: distance is asked only of rows that the policy has let through, which the
    tenant's index finds; the index of places would tell of others' trucks."""
    found = plan(connection, api.fleet._NEAR, "tenant-7", ["fleet-1"], 4.0, 51.0, 1000.0, None, None, 10)
    assert "latest_position_by_place" not in found, found
    assert "latest_position_pkey" in found and "Seq Scan on latest_position" not in found, found


def test_the_policy_is_asked_once_a_query(connection: Connection) -> None:
    """Tenant and objects are read once, not for each row."""
    found = plan(connection, api.orders._ALL_STOCK, "tenant-7", None, None, False, 10)
    assert "InitPlan" in found, found
