"""Who gets into the console: every route asks the one seam; each cell of role and route is as declared."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from api.app import create_app
from api.console import site
from api.console.actions import SIGNED_IN
from api.console.pages import PAGES
from api.console.routes import ROUTERS
from infra.identity.secured import DECLARED, PUBLIC, Unsecured
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from schemas.roles import ROLES, scopes_of
from tests.console.askers import person, sign_in
from tests.console.serving import serving
from tests.signed_in import Everybody, key_of, signed_in

SCORING = ("rules", "rule-editor", "rule-sets", "rule-lists", "decisions", "decision", "models")
PARTS = {"users": "identity", "keys": "identity", "audit": "audit", **dict.fromkeys(SCORING, "scoring")}
"""By part of a path the domain of the scope that its routes need; all others need `ops`."""
ONES_OWN = ("/console/account", "/console/account/password", "/console/{rest:path}")
TRYING = ("/console/dead-letters/{id}/test", "/console/audit/verify", "/console/rule-editor/check")
"""What is sent and changes nothing."""

VALUES = {
    "topic": "nothing",
    "partition": "0",
    "offset": "0",
    "id": "999999",
    "prefix": "aaaaaaaaaaaa",
    "version": "1",
    "number": "999999",
    "rest": "nothing/here",
}
"""What stands for the parameters of a path: nothing that there is."""
IDS = {"rules": "no-such-rule", "webhooks": "ep_0"}
GRANTS = {role.name: f"{role.name}:*" if role.by_domain else role.name for role in ROLES.values()}
ALL = tuple(GRANTS.values())


def _routes() -> list[APIRoute]:
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _scope(route: APIRoute) -> str | None:
    scopes = [getattr(d.dependency, DECLARED) for d in route.dependencies if hasattr(d.dependency, DECLARED)]
    assert len(scopes) <= 1, f"{route.path} has the scopes {scopes}"
    return scopes[0] if scopes else None


@pytest.mark.parametrize("route", _routes(), ids=lambda r: f"{min(r.methods)} {r.path}")
def test_every_route_asks_who_acts(route: APIRoute) -> None:
    """Each route has the scope of its part: to read for GET, and to write for what changes something."""
    domain = next((PARTS[part] for part in route.path.split("/") if part in PARTS), "ops")
    changes = "POST" in route.methods and route.path not in TRYING
    wanted = None if route.path in PUBLIC else f"{domain}:{'write' if changes else 'read'}"
    if route.path in ONES_OWN:
        wanted = SIGNED_IN
    assert _scope(route) == wanted


def test_every_page_of_the_navigation_is_there() -> None:
    """A page that is shown has a route, and is shown to those for whom that route is."""
    scopes = {route.path: _scope(route) for route in _routes() if "GET" in route.methods}
    assert {page.path: page.scope for page in PAGES}.items() <= scopes.items()


def test_a_route_without_a_scope_does_not_come_to_be() -> None:
    """Nor does one whose body would be read before it is known who asks."""
    router = site.router()
    with pytest.raises(Unsecured, match="declares no scope"):
        router.get("/forgotten")(lambda: None)


@pytest.fixture(scope="module")
def settings(database: Settings) -> Settings:
    signed_in(database)
    return database


@pytest.fixture(scope="module")
def http(settings: Settings) -> Iterator[httpx.Client]:
    """The API, asked by nobody yet."""
    with pytest.MonkeyPatch.context() as patch, serving(settings, PIPELINES, patch) as client:
        yield client


@pytest.fixture(scope="module")
def askers(settings: Settings) -> dict[str, tuple[dict[str, str], frozenset[str]]]:
    """By name the proof that an asker sends, and the scopes by which the console answers them."""
    found = {
        name: (key_of(settings, f"console-{name}", "default", [grant]), scopes_of([grant]))
        for name, grant in GRANTS.items()
    }
    # Another tenant's, and one who is held to single objects: none of the console is theirs.
    elsewhere = key_of(settings, "console-elsewhere", "acme", ALL)
    held = key_of(settings, "console-held", "default", ALL, {"merchant": ["m-1"]})
    return {
        **found,
        "all": (key_of(settings, "console-all", "default", ALL), scopes_of(ALL)),
        "elsewhere": (elsewhere, frozenset()),
        "held": (held, frozenset()),
    }


def _ask(http: httpx.Client, method: str, route: APIRoute, headers: dict[str, str]) -> tuple[int, str]:
    """Status and address that a redirect leads to; of a stream its beginning alone is read."""
    path = re.sub(r"{(\w+)(?::path)?}", lambda name: _value(route.path, name[1]), route.path)
    with http.stream(method, path, headers=headers) as answer:
        return answer.status_code, answer.headers.get("location", "")


def _value(path: str, name: str) -> str:
    if name == "id":
        return next((v for part, v in IDS.items() if part in path.split("/")), VALUES[name])
    if name == "name":
        return {"jobs": "dlq-none", "pipelines": "orders"}.get(path.split("/")[-2], "nobody-there")
    return VALUES[name]


@pytest.mark.parametrize("route", _routes(), ids=lambda r: f"{min(r.methods)} {r.path}")
def test_each_cell_is_as_declared(
    http: httpx.Client, askers: dict[str, tuple[dict[str, str], frozenset[str]]], route: APIRoute
) -> None:
    """Whoever has the scope is answered, everybody else refused, and nobody known is sent to sign in."""
    scope, [method] = _scope(route), route.methods
    if scope is None:
        return
    status, address = _ask(http, method, route, {})
    if "/live/" in route.path:
        assert status == 401
    else:
        assert status == 303 and address.startswith("/console/sign-in")
    assert _ask(http, method, route, {"x-api-key": f"mk_{'a' * 12}_{'b' * 43}"})[0] == 401
    for name, (headers, scopes) in askers.items():
        status, address = _ask(http, method, route, headers)
        assert not address.startswith("/console/sign-in")
        assert (status == 403) is (scope not in scopes), f"{name} gets {status} of {route.path}"
        # 503: the topics of the pipelines are not there, which is told only to whom it is told.
        assert status not in (401, 500), f"{name} gets {status} of {route.path}"


def test_the_navigation_shows_what_one_may(settings: Settings, http: httpx.Client) -> None:
    """An admin sees users and keys, and no data; an auditor the audit log alone; an operator no users."""
    for role, shown in (
        ("admin", {"Users", "Keys"}),
        ("auditor", {"Audit"}),
        ("operator", {page.title for page in PAGES if page.scope in scopes_of(["operator"])}),
        ("analyst", {"Rules", "Decisions", "Models"}),
    ):
        with httpx.Client(base_url=http.base_url, trust_env=False) as browser:
            answer = sign_in(browser, person(settings, f"nav-{role}", [role]))
            page = browser.get(answer.headers["location"])
            assert page.status_code == 200
            nav = re.findall(r"<nav.*?</nav>", page.text, re.S)[0]
            assert set(re.findall(r">([\w ]+)</a>", nav)) == shown
            assert ("Kafka" in page.text) is (role == "operator")
            refused = browser.get("/console/keys" if role != "admin" else "/console")
            assert refused.status_code == 403 and "has not been" not in refused.text
            assert "which you have not been granted" in refused.text


@pytest.mark.parametrize(
    ("grants", "tenant", "objects"),
    [([], "default", {}), (["admin"], "default", {}), (["operator"], "acme", {}),
     (["viewer:fraud"], "default", {"merchant": ["m-1"]})],
)  # fmt: skip
def test_whoever_is_signed_in_has_an_account(
    settings: Settings,
    http: httpx.Client,
    askers: dict[str, tuple[dict[str, str], frozenset[str]]],
    grants: list[str],
    tenant: str,
    objects: dict[str, list[str]],
) -> None:
    """Whatever they may: they see who they are, and what is not there is told on a page. No program does."""
    with httpx.Client(base_url=http.base_url, trust_env=False) as browser:
        sign_in(browser, person(settings, "own-account", grants, tenant, objects))
        assert "own-account" in browser.get("/console/account").text
        nowhere = browser.get("/console/no/such/page")
        assert nowhere.status_code == 404 and nowhere.headers["content-type"].startswith("text/html")
        assert "There is no page /console/no/such/page" in nowhere.text and "own-account" in nowhere.text
        assert browser.get("/console/").headers["location"] == "/console"
        assert browser.get("/console/rules").status_code == 403
    unknown = http.get("/console/no/such/page")
    assert unknown.status_code == 303 and "sign-in" in unknown.headers["location"]
    assert http.get("/console/account", headers=askers["all"][0]).status_code == 403


@pytest.fixture
def alone() -> Settings:
    """Of an instance that does not run: who is refused is refused before anything is asked."""
    return Settings({"MILLRACE_PORT_BASE": "1", "MILLRACE_HOME": "/nonexistent/millrace"})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:19000", "localhost.evil.example", "10.0.0.7", ""]
)
def test_it_answers_by_its_own_names_alone(alone: Settings, host: str) -> None:
    """A name that was rebound to this machine gets nothing, not even the form to sign in."""
    http = TestClient(create_app(alone))
    for path in ("/console/schemas", "/console/live/pipelines", "/console/sign-in"):
        answer = http.get(path, headers={"host": host})
        assert answer.status_code == 421, path
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
@pytest.mark.parametrize(
    "path", ["/console/dead-letters/1/discard", "/console/keys", "/console/sign-in", "/console/sign-out"]
)
def test_another_sites_form_changes_nothing(alone: Settings, headers: dict[str, str], path: str) -> None:
    """A form that somebody's browser sends for another site is refused before anything is looked at."""
    http = TestClient(create_app(alone), base_url="http://127.0.0.1:19000")
    answer = http.post(path, data={"reason": "x"}, headers=headers)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text


def test_a_page_needs_nothing_but_itself(alone: Settings) -> None:
    """Schemas are shown with every part away; files of style and script may be kept for ever."""
    app = create_app(alone)
    with TestClient(app, base_url="http://localhost", headers={"x-api-key": "any"}) as http:
        app.state.authenticator = Everybody()
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


def test_one_place_decides_on_headers(alone: Settings) -> None:
    """Each header stands once; a page may load its own files alone, and sends its forms with its origin."""
    http = TestClient(create_app(alone), base_url="http://localhost")
    page = http.get("/console/sign-in")
    assert page.status_code == 200
    for name in ("content-security-policy", "cache-control", "referrer-policy", "x-content-type-options"):
        assert len(page.headers.get_list(name)) == 1, name
    assert page.headers["referrer-policy"] == "same-origin" and page.headers["cache-control"] == "no-store"
    assert "script-src 'self'; style-src 'self'; img-src 'self';" in page.headers["content-security-policy"]
