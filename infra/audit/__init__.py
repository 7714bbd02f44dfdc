"""The audit log: chained entries in Postgres, their signed heads outside it (see docs/adr/0051)."""
