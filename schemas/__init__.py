"""The typed declaration of every pipeline, the Avro schemas, their rules and their registry."""
