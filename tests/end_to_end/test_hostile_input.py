"""Whatever is sent, with all parts up: no error of the server, and nothing of its inside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

import api.console
from api.console.routes import ROUTERS
from api.graphql.routes import PATH
from infra.settings import Settings
from schemas.roles import ROLES
from tests.instance import millrace, running
from tests.signed_in import key_of

ROOT = Path(__file__).parents[2]
EXAMPLES = os.environ.get("MILLRACE_EXAMPLES", "10")
"""Of each operation, beside those at the bounds of its parameters."""
SEED = "20261122"
ALL = [f"{role.name}:*" if role.by_domain else role.name for role in ROLES.values()]
SECONDS = 900

OURS = ("tells_nothing_of_its_inside",)
CONFORMING = (
    *OURS,
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)

pytestmark = [pytest.mark.alone, pytest.mark.timeout(SECONDS + 300)]


@pytest.fixture(scope="module")
def platform() -> Iterator[Settings]:
    """A running instance with data in all domains, whose limits nobody meets."""
    with pytest.MonkeyPatch.context() as patch:
        classes = ("login", "anonymous", "read", "write", "operate", "stream")
        patch.setenv("MILLRACE_LIMITS", " ".join(f"{name}=99999/s" for name in classes))
        with running("hostile", offset=900) as settings:
            demo = millrace(settings, "demo", "--seconds", "5", "--json")
            assert demo.returncode == 0, demo.stderr
            yield settings


@pytest.fixture(scope="module")
def key(platform: Settings) -> str:
    """Of somebody who may do everything."""
    return key_of(platform, "hostile", "default", ALL)["X-API-Key"]


@pytest.fixture(scope="module")
def known(platform: Settings) -> dict[str, Any]:
    """By name of a parameter a value of which there is something."""
    queries = {
        ("event_id", "card_id"): "SELECT event_id, card_id FROM card_ledger LIMIT 1",
        ("truck_id",): "SELECT truck_id FROM latest_position LIMIT 1",
        ("order_id", "customer_id"): "SELECT order_id, customer_id FROM orders LIMIT 1",
        ("sku",): "SELECT sku FROM stock LIMIT 1",
        (
            "study_uid",
            "series_uid",
            "sop_uid",
        ): "SELECT study_uid, series_uid, sop_instance_uid FROM instances LIMIT 1",
        (
            "topic",
            "partition",
            "offset",
            "id",
        ): 'SELECT topic, partition, "offset", id FROM dead_letters LIMIT 1',
    }
    found: dict[str, Any] = {"name": "fraud"}
    with psycopg.connect(platform.database_url) as connection:
        for names, query in queries.items():
            row = connection.execute(query.encode()).fetchone()
            assert row is not None, query
            found |= zip(names, row, strict=True)
    return found


def with_known(description: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A description whose paths lead to something, by example."""
    for operations in description["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] in known:
                    parameter["example"] = known[parameter["name"]]
    return description


def of_console() -> dict[str, Any]:
    """What FastAPI knows of the console, no part of the published API, with every field of its forms."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    with pytest.MonkeyPatch.context() as patch:
        for route in routes:
            patch.setattr(route, "include_in_schema", True)
        description = get_openapi(title="console", version="1", routes=routes)
    templates = (Path(api.console.__file__).parent / "templates").glob("*.html")
    names = {name for page in templates for name in re.findall(r'\bname="(\w+)"', page.read_text())}
    assert {"reason", "password"} <= names
    fields = {"type": "object", "properties": {name: {"type": "string"} for name in sorted(names)}}
    form = {"content": {"application/x-www-form-urlencoded": {"schema": fields}}}
    for path, operations in list(description["paths"].items()):
        if "/live/" in path:
            del description["paths"][path]  # answers without an end
        elif "post" in operations:
            operations["post"]["requestBody"] = form
    return description


def hostile(folder: Path, location: Path, url: str, key: str, checks: tuple[str, ...] = CONFORMING) -> int:
    """How many requests schemathesis made of a description, in a folder of its own; it must find nothing."""
    command = [Path(sys.executable).with_name("st"), "run", location, "--url", url, "-H", f"X-API-Key: {key}"]
    bounds = ["--max-examples", EXAMPLES, "--seed", SEED, "--phases", "examples,coverage,fuzzing"]
    told = ["--checks", ",".join(checks), "--continue-on-failure", "--request-timeout", "60", "--no-color"]
    run = subprocess.run(
        [*command, *bounds, *told, "--suppress-health-check", "all", "--warnings", "off"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.end_to_end.hostile",
            "NO_PROXY": "*",
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    sent = re.search(r"(\d+) generated", run.stdout)
    assert sent is not None, run.stdout[-3_000:]
    return int(sent[1])


@pytest.mark.parametrize("server", ["api", "gateway"])
def test_every_route(
    platform: Settings, key: str, known: dict[str, Any], tmp_path: Path, server: str
) -> None:
    """Each operation by its own description: examples, values at and beyond every bound, and at random."""
    url = platform.api_url if server == "api" else platform.gateway_url
    description = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    description["paths"].pop("/v1/events", None)  # an answer without an end
    description["paths"].pop(PATH, None)  # has a test of its own
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(with_known(description, known)))
    assert hostile(tmp_path, file, url, key) > 500


def test_graphql(platform: Settings, key: str, tmp_path: Path) -> None:
    """Queries that the schema allows, with values of all kinds."""
    schema = ROOT / "docs" / "schema.graphql"
    assert hostile(tmp_path, schema, f"{platform.api_url}{PATH}", key, OURS) > 100


def test_the_console(platform: Settings, key: str, known: dict[str, Any], tmp_path: Path) -> None:
    """Every page and every form, by somebody who may do everything."""
    file = tmp_path / "console.json"
    file.write_text(json.dumps(with_known(of_console(), known)))
    assert hostile(tmp_path, file, platform.api_url, key, OURS) > 500


def test_all_parts_have_outlived_it(platform: Settings) -> None:
    """Every process runs as it did before, and the platform goes on."""
    listed = json.loads(millrace(platform, "ps", "--json").stdout)
    assert {process["state"] for process in listed} == {"running"}
    assert {process["restarts"] for process in listed} == {0}
    for url in (platform.api_url, platform.gateway_url):
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
