"""Connectors: from a source to the first topic, acknowledged by the broker before the sender."""
