"""What the orders' tables say of one another."""

from __future__ import annotations

from infra.postgres import connect
from infra.settings import Settings


def test_stock_that_is_not_what_its_ledger_adds_up_to_is_named(database: Settings) -> None:
    """The orders' invariant: a SKU's stock, changed by hand, differs from the sum of its ledger."""
    with connect(database.database_url) as connection:
        connection.execute("INSERT INTO stock VALUES ('default', 'sku-1', 7, 2, 2, now(), 'e2', 0, 1)")
        connection.execute(
            "INSERT INTO stock_ledger VALUES"
            " ('default', 'sku-1', 1, 'e1', now(), 'receive', 'received', NULL, NULL, 7, 7, 0, 'r', 1, 0, 0),"
            " ('default', 'sku-1', 2, 'e2', now(), 'reserve', 'reserved', NULL, 'o1', 2, 7, 2, 'o1', 1, 0, 1)"
        )
        query = "SELECT sku, on_hand, ledger_on_hand, versions_missing FROM stock_ledger_mismatches"
        assert connection.execute(query).fetchall() == []
        connection.execute("UPDATE stock SET on_hand = 8")
        assert connection.execute(query).fetchall() == [("sku-1", 8, 7, 0)]
        connection.execute("UPDATE stock SET on_hand = 7")
        connection.execute("DELETE FROM stock_ledger WHERE version = 1")
        assert connection.execute(query).fetchall() == [("sku-1", 7, 0, 1)]
