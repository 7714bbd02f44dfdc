"""How telemetry comes in: MQTT, HTTP, files; and trucks that drive about for demonstrations."""
