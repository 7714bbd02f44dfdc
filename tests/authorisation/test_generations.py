"""A generation that is swapped in stands behind the wall as the table before it did."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from infra.generations import create_like, point_to, run_schema, sink_url, unfolded
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.signed_in import signed_in

RUN = 71
COLUMNS = "tenant, sku, on_hand, reserved, version, updated_at, event_id, source_partition, source_offset"


@pytest.fixture(scope="module")
def swapped(database: Settings) -> Iterator[Settings]:
    """An instance in which a replay's stock was swapped in, with rows of two tenants."""
    signed_in(database)
    with connect(database.database_url) as connection:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(run_schema(RUN))))
            create_like(connection, "stock", run_schema(RUN))
            point_to(connection, "stock", RUN)
        for tenant in ("acme", "umbra"):
            connection.execute(
                f"INSERT INTO live.stock ({COLUMNS}) VALUES (%s, 's', 10, 9, 1, now(), 'e', 0, 0)".encode(),
                (tenant,),
            )
    yield database


def seen(connection: Connection, table: str) -> list[str]:
    """The tenants whose rows a transaction of acme sees."""
    query = sql.SQL("SELECT tenant FROM {}").format(sql.Identifier(*table.split(".")))
    assert connection.execute(query).fetchall() == []
    with connection.transaction():
        connection.execute("SELECT set_config('millrace.tenant', 'acme', true)")
        connection.execute("SELECT set_config('millrace.objects', '{}', true)")
        return [str(tenant) for (tenant,) in connection.execute(query)]


def test_the_api_sees_one_tenant(swapped: Settings) -> None:
    """By the view that stands for the name, and by the table in its place; also after the next migration."""
    with connect(swapped.database_api_url) as connection:
        assert seen(connection, "stock") == seen(connection, "live.stock") == ["acme"]
        with connect(swapped.database_url) as owner, owner.transaction(), unfolded(owner):
            pass
        assert seen(connection, "stock") == seen(connection, "live.stock") == ["acme"]


def test_no_view_passes_the_wall(swapped: Settings) -> None:
    """Views ask in the name of whoever reads them, those included that were bound anew by a swap."""
    with connect(swapped.database_url) as connection:
        passing = connection.execute(
            "SELECT relname FROM pg_class c WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace"
            " AND NOT coalesce('security_invoker=true' = ANY(reloptions), false)"
            " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
        ).fetchall()
    assert passing == []


def test_who_runs_the_instance_sees_all(swapped: Settings) -> None:
    """The reader's role sees every tenant's rows, by the analysts' views as well."""
    with connect(swapped.database_reader_url) as connection:
        for view in ("stock", "stock_low"):
            found = connection.execute(f"SELECT tenant FROM {view} ORDER BY 1".encode()).fetchall()
            assert found == [("acme",), ("umbra",)]


def test_the_sink_goes_on(swapped: Settings) -> None:
    """The sink's role writes the table that was swapped in, makes its partitions, and may do no more."""
    with connect(sink_url(swapped.database_sink_url)) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("millrace_sink",)
        connection.execute("CREATE TEMP TABLE stage (LIKE stock)")
        with connection.cursor().copy(f"COPY stock ({COLUMNS}) FROM STDIN".encode()) as copy:
            copy.write_row(("acme", "t", 1, 0, 1, "2026-01-01", "e", 0, 1))
        connection.execute("UPDATE stock SET on_hand = 2, version = 2 WHERE sku = 't'")
        made = "SELECT millrace_ensure_partitions('card_ledger', '2031-01-01', '2031-01-20')"
        assert connection.execute(made).fetchone() == (4,)
        for query in (
            "DELETE FROM stock",
            "UPDATE card_ledger SET risk = 0",
            "DELETE FROM checkpoints",
            "UPDATE versions SET body = '{}'",
            "SELECT * FROM identity.subjects",
            "CREATE TABLE public.mine ()",
            "SELECT millrace_protect('public', 'stock')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(query.encode())
        # A table of its own with a declared name is not what the owner makes partitions of.
        connection.execute("CREATE TEMP TABLE card_ledger (at timestamptz) PARTITION BY RANGE (at)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT millrace_make_partitions('pg_temp.card_ledger', now(), now())")
