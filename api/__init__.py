"""The query API: reads Postgres, writes nothing."""
