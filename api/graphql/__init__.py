"""GraphQL over the queries of the REST routes: the same handlers, scopes, rows and limits (docs/adr/0065)."""
