"""Sinks: one batch to one database transaction."""
