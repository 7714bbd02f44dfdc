"""What leaves the platform, and the ledger's chain: each role may do what its process does, and no more."""

from __future__ import annotations

import psycopg
import pytest

from infra.generations import sink_url
from infra.outward import FIELDS
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.authorisation.rows import OWNERS, TENANTS, fill
from tests.signed_in import signed_in

DELIVERING = "status, reason, failures, retry_at, last_success_at"
GRANTED = {
    "outward_endpoints": {
        ("millrace_api", "SELECT", "endpoint_id, tenant, merchant_id, decisions, risk_min, since_sequence"),
        ("millrace_gateway", "SELECT", "endpoint_id, tenant, merchant_id, token_sha256"),
        ("millrace_identity", "SELECT", "endpoint_id, tenant, merchant_id, token_sha256"),
        ("millrace_outward", "SELECT", ""),
        ("millrace_outward", "UPDATE", DELIVERING),
        ("millrace_reader", "SELECT", ""),
        ("millrace_sink", "SELECT", "tenant, merchant_id, decisions, risk_min"),
    },
    "outward_secrets": {("millrace_outward", "SELECT", "secret_id, endpoint_id, kind, sealed, expires_at")},
    "outward_revision": {
        ("millrace_outward", "SELECT", ""),
        ("millrace_outward", "UPDATE", "fanned_out"),
        ("millrace_reader", "SELECT", ""),
        ("millrace_sink", "SELECT", "revision"),
    },
    "outbox": {
        ("millrace_api", "SELECT", ""),
        ("millrace_outward", "SELECT", ""),
        ("millrace_outward", "DELETE", ""),
        ("millrace_reader", "SELECT", ""),
        ("millrace_sink", "SELECT", ""),
        ("millrace_sink", "INSERT", ""),
    },
    "outward_deliveries": {
        *(("millrace_outward", right, "") for right in ("SELECT", "INSERT", "UPDATE", "DELETE")),
        ("millrace_reader", "SELECT", ""),
    },
    "outward_lanes": {
        *(("millrace_outward", right, "") for right in ("SELECT", "INSERT", "UPDATE")),
        ("millrace_reader", "SELECT", ""),
    },
    "ledger_chains": {
        ("millrace_reader", "SELECT", ""),
        ("millrace_sink", "SELECT", ""),
        ("millrace_sink", "INSERT", ""),
        ("millrace_sink", "UPDATE", "sequence, hash"),
    },
    **{
        table: {("millrace_reader", "SELECT", "")}
        for table in (
            "ledger_erasures", "rules", "rule_events", "rule_backtests", "rule_lists", "rule_rates",
            "rule_windows",
        )
    },
}  # fmt: skip
"""By table: role, right, and on which columns; on all of them where none is named."""

_GRANTS = """
SELECT a.grantee::regrole::text, a.privilege_type, '' FROM pg_class c, aclexplode(c.relacl) a
WHERE c.oid = to_regclass(%(t)s) AND a.grantee <> c.relowner
UNION ALL
SELECT a.grantee::regrole::text, a.privilege_type, string_agg(n.attname, ', ' ORDER BY n.attnum)
FROM pg_class c JOIN pg_attribute n ON n.attrelid = c.oid, aclexplode(n.attacl) a
WHERE c.oid = to_regclass(%(t)s) AND a.grantee <> c.relowner GROUP BY 1, 2
"""


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """Decisions of two tenants, told to an endpoint each."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
    return database


@pytest.mark.parametrize("table", GRANTED)
def test_a_table_is_granted_as_declared(filled: Settings, table: str) -> None:
    """A right more or less than here is a decision of its own."""
    with connect(filled.database_url) as connection:
        found = {tuple(map(str, row)) for row in connection.execute(_GRANTS, {"t": table})}
    wanted = {(role, right, _in_order(filled, table, columns)) for role, right, columns in GRANTED[table]}
    assert found == wanted


def _in_order(settings: Settings, table: str, columns: str) -> str:
    """Columns in the order of their table."""
    with connect(settings.database_url) as connection:
        every = connection.execute(f"SELECT * FROM {table} LIMIT 0".encode()).description or ()
    return ", ".join(c.name for c in every if c.name in columns.split(", "))


def refused(connection: Connection, *queries: str) -> None:
    for query in queries:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(query.encode())


def test_the_deliverer_reads_what_it_tells(filled: Settings) -> None:
    """Of the ledger the columns of a webhook's body, of all tenants, and nothing of anything else; it can
    neither add to the outbox nor change whom is told what."""
    with connect(filled.database_outward_url) as connection:
        told = connection.execute(f"SELECT {', '.join(FIELDS)} FROM card_ledger".encode()).fetchall()
        assert len(told) == len(OWNERS)
        refused(
            connection,
            "SELECT seal_key FROM card_ledger",
            "SELECT customer_id FROM card_ledger",
            "SELECT public_key FROM outward_secrets",
            "UPDATE outward_endpoints SET target = 'https://elsewhere.example'",
            "UPDATE outward_secrets SET expires_at = NULL",
            "INSERT INTO outbox (tenant, event_id, occurred_at, decision, risk)"
            " VALUES ('acme', 'e', now(), 'APPROVE', 0)",
            "SELECT * FROM identity.subjects",
            "SELECT * FROM rules",
            "SELECT * FROM orders",
        )


def test_the_sink_adds_and_alters_nothing(filled: Settings) -> None:
    """It writes ledger, chain and outbox, and may change no row of them but how far a chain has come."""
    url = sink_url(filled.database_sink_url)
    with connect(url) as connection, connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO outbox (tenant, event_id, occurred_at, decision, risk)"
            " VALUES ('acme', 'new', now(), 'APPROVE', 0) ON CONFLICT DO NOTHING"
        )
        connection.execute("INSERT INTO ledger_chains VALUES ('t', 0, 7, 1, sha256(''))")
        connection.execute("UPDATE ledger_chains SET sequence = 2, hash = sha256('x')")
        connection.execute("SELECT * FROM ledger_chains FOR UPDATE")
    with connect(url) as connection:
        refused(
            connection,
            "UPDATE outbox SET risk = 1",
            "DELETE FROM outbox",
            "UPDATE card_ledger SET card_id = 'x'",
            "DELETE FROM card_ledger",
            "UPDATE ledger_chains SET begins = 9",
            "DELETE FROM ledger_chains",
            "INSERT INTO ledger_erasures SELECT * FROM ledger_erasures",
            "SELECT target FROM outward_endpoints",
            "SELECT sealed FROM outward_secrets",
        )


@pytest.mark.parametrize("tenant", TENANTS)
def test_the_api_knows_endpoints_of_one_tenant(filled: Settings, tenant: str) -> None:
    """And of its merchants; without a word of whose it is none; and neither their secrets nor deliveries."""
    ids = "SELECT endpoint_id FROM outward_endpoints ORDER BY 1"
    mine = [owner for owner in OWNERS if owner.tenant == tenant]
    with connect(filled.database_api_url) as connection:
        assert connection.execute(ids).fetchall() == []
        for objects, seen in (("{}", mine), (f'{{"merchant": ["{mine[0]}"]}}', mine[:1])):
            with connection.transaction():
                connection.execute("SELECT set_config('millrace.tenant', %s, true)", (tenant,))
                connection.execute("SELECT set_config('millrace.objects', %s, true)", (objects,))
                assert connection.execute(ids).fetchall() == [(owner.endpoint,) for owner in seen]
        refused(
            connection,
            "SELECT token_sha256 FROM outward_endpoints",
            "SELECT target FROM outward_endpoints",
            "SELECT * FROM outward_deliveries",
            "SELECT * FROM outward_secrets",
            "SELECT * FROM rules",
            "SELECT * FROM rule_backtests",
        )
