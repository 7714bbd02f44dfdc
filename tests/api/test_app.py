"""The API as a whole: ready or degraded by part, compressed, documented, and served by its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

import api.app
from api.app import create_app
from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Pipelines
from tests.accounts import Accounts
from tests.signed_in import signed_in

ROOT = Path(__file__).parents[2]


def test_ready_says_which_part_is_degraded(
    database: Settings, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline whose table is missing degrades that pipeline by name, and no other part."""
    pipeline = accounts.pipeline
    signed_in(database)
    table = pipeline.tables[0].name
    monkeypatch.setattr(api.app, "PIPELINES", Pipelines.of(pipeline))
    with TestClient(create_app(database)) as client, connect(database.database_url) as connection:
        answer = client.get("/health/ready")
        assert answer.status_code == 200, answer.text
        assert answer.json()["conditions"] == {"database": "ok", pipeline.name: "ok"}
        connection.execute(f"ALTER TABLE {table} RENAME TO away_for_a_moment")
        try:
            time.sleep(1.1)
            answer = client.get("/health/ready")
        finally:
            connection.execute(f"ALTER TABLE away_for_a_moment RENAME TO {table}")
    assert answer.status_code == 503
    conditions = answer.json()["conditions"]
    assert table in conditions.pop(pipeline.name)
    assert set(conditions.values()) == {"ok"}


def test_every_operation_is_documented(database: Settings) -> None:
    """/docs is served, and each operation has a summary and the problem document as its error."""
    with TestClient(create_app(database)) as client:
        assert client.get("/docs").status_code == 200
        schema = client.get("/openapi.json").json()
    assert "next_cursor" in schema["info"]["description"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "application/problem+json" in operation["responses"]["5XX"]["content"], (method, path)


def test_large_answers_are_compressed(database: Settings) -> None:
    """A large answer is gzipped for a client that takes it, a small one is not."""
    with TestClient(create_app(database)) as client:
        large = client.get("/openapi.json")
        small = client.get("/health/live")
    assert large.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in small.headers


def test_the_command_serves_the_api(database: Settings) -> None:
    """`python -m api` answers at API_URL until SIGTERM, and its exit is clean."""
    environ = {**os.environ, **database.environ}
    headers = signed_in(database)
    with subprocess.Popen([sys.executable, "-m", "api"], env=environ, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert httpx.get(f"{database.api_url}/health/live", timeout=5).status_code == 200
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert httpx.get(f"{database.api_url}/v1/pipelines").status_code == 401
            answer = httpx.get(f"{database.api_url}/v1/pipelines", headers=headers)
            assert answer.status_code == 200
            assert "millrace_http_requests_total" in httpx.get(f"{database.api_url}/metrics").text
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) in (0, -signal.SIGTERM)
        finally:
            process.kill()
