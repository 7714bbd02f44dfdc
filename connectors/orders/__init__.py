"""How orders and stock receipts come in: over HTTP, from files, and simulated."""
