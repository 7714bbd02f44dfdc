"""Adapters without a domain word: broker, codec, Postgres, settings, telemetry, services, command line."""
