"""Who gets into the console: every route asks the one seam, and the seam lets nobody else in."""

from __future__ import annotations

import re

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from api.app import create_app
from api.console.actions import DECLARED
from api.console.pages import PAGES
from api.console.routes import ROUTERS
from infra.settings import Settings

HERE = ("127.0.0.1", 50_000)


def _routes() -> list[APIRoute]:
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


@pytest.mark.parametrize("route", _routes(), ids=lambda r: f"{min(r.methods)} {r.path}")
def test_every_route_asks_who_acts(route: APIRoute) -> None:
    """Each route depends on the seam with one scope: to read for GET, and to change for what changes."""
    scopes = {getattr(d.dependency, DECLARED) for d in route.dependencies if hasattr(d.dependency, DECLARED)}
    assert len(scopes) == 1, f"{route.path} has the scopes {scopes}"
    changes = "POST" in route.methods and not route.path.endswith("/test")
    assert scopes == {"ops:write" if changes else "ops:read"}


def test_every_page_of_the_navigation_is_there() -> None:
    """A page that is shown has a route; what is reserved is not shown, and has a scope already."""
    paths = {route.path for route in _routes()}
    for page in PAGES:
        assert (page.path in paths) is page.ready
        assert page.scope


@pytest.fixture
def app_settings() -> Settings:
    """Of an instance that does not run: who is refused is refused before anything is asked."""
    return Settings({"MILLRACE_PORT_BASE": "1", "MILLRACE_HOME": "/nonexistent/millrace"})


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        (("10.0.0.7", 50_000), {"host": "127.0.0.1"}),
        (HERE, {"host": "evil.example"}),
        (HERE, {"host": "127.0.0.1.evil.example:19000"}),
        (HERE, {"host": "127.0.0.1", "x-forwarded-for": "10.0.0.7"}),
        (HERE, {"host": "localhost", "forwarded": "for=10.0.0.7"}),
    ],
)
def test_nobody_from_elsewhere_gets_in(
    app_settings: Settings, client: tuple[str, int], headers: dict[str, str]
) -> None:
    """Another machine, a name that was rebound to this one, and whoever comes through a proxy: 403."""
    http = TestClient(create_app(app_settings), client=client)
    for path in ("/console/schemas", "/console/live/pipelines", "/console/dead-letters/1"):
        answer = http.get(path, headers=headers)
        assert answer.status_code == 403, path
        assert "answers on the machine" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_sites_form_changes_nothing(app_settings: Settings, headers: dict[str, str]) -> None:
    """A form that an operator's browser sends for another site is refused before anything is looked at."""
    http = TestClient(create_app(app_settings), client=HERE, base_url="http://127.0.0.1:19000")
    answer = http.post("/console/dead-letters/1/discard", data={"reason": "x"}, headers=headers)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text


def test_a_page_needs_nothing_but_itself(app_settings: Settings) -> None:
    """Schemas are shown with every part away; files of style and script may be kept for ever."""
    with TestClient(create_app(app_settings), client=HERE, base_url="http://localhost") as http:
        page = http.get("/console/schemas")
        assert page.status_code == 200 and "card-decisions" in page.text
        files = set(re.findall(r'"(/console/static/[^"]+)"', page.text))
        assert len(files) == 3
        for address in files:
            file = http.get(address)
            assert file.status_code == 200 and "immutable" in file.headers["cache-control"]
        assert "style=" not in page.text and "<script>" not in page.text
        one = http.get("/console/schemas/card-decisions")
        assert one.status_code == 200
        assert "Version 2" in one.text and "fraud-sink" in one.text and "fraud-scoring" in one.text
        assert http.get("/console/schemas/nothing").status_code == 404
