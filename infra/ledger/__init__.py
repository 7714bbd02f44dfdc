"""The ledger's chain: its rows' hashes, their signed heads, erasure, and the proof (docs/adr/0061)."""
