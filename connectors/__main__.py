"""`python -m connectors gateway` serves HTTP, `mqtt` bridges the MQTT broker, `ticks` tells the time, and
`webhooks` tells the outside of decisions."""

from __future__ import annotations

import importlib
import sys

from infra import web
from infra.settings import Settings
from infra.telemetry import logs


def main(arguments: list[str]) -> int:
    """Run the connector named by the only argument until it is told to stop; returns the exit code."""
    # Each is imported by name: none waits for what only another needs.
    match arguments:
        case ["gateway"]:
            settings = Settings.load()
            create_app = importlib.import_module("connectors.gateway").create_app
            logs.configure("connector", None, settings.text("log_level"))
            drain_s = (settings.number("publish_timeout_ms") + settings.number("decision_wait_ms")) / 1000 + 1
            web.run(create_app(settings), settings.gateway_url, drain_s)
            return 0
        case ["mqtt"]:
            importlib.import_module("connectors.fleet.mqtt").main()
            return 0
        case ["ticks"]:
            importlib.import_module("connectors.ticks").main()
            return 0
        case ["webhooks"]:
            importlib.import_module("connectors.outward.deliverer").main()
            return 0
    sys.stderr.write("use `python -m connectors gateway`, `mqtt`, `ticks` or `webhooks`\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
