"""A small durable schema registry with Confluent's HTTP interface, for local use.

Start it with `python -m schemas.registry --port 8081 --state-dir DIR`. Why it exists and what it
leaves out: docs/adr/0003-schema-registry.md.
"""
