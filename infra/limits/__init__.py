"""How much one asker may take, and how much a service takes on (see docs/adr/0051)."""
