"""Who is asking: subjects, what they are granted, and the proofs that they bring (see docs/adr/0050)."""
