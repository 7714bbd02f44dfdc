"""Processors: pure decisions and the runtime that feeds them batches."""
