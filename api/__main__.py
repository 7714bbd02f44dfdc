"""`python -m api` serves the query API at API_URL until it is told to stop."""

from __future__ import annotations

from api.app import create_app
from infra import web
from infra.settings import Settings
from infra.telemetry import logs

DRAIN_SECONDS = 10.0

if __name__ == "__main__":
    settings = Settings.load()
    logs.configure("api", None, settings.text("log_level"))
    web.run(create_app(settings), settings.api_url, DRAIN_SECONDS)
