"""Sessions of browsers: how they begin, are renewed and end, and what is worth nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient

from api.app import create_app
from api.console import actions, session
from infra.identity import subjects
from infra.postgres import connect
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from tests.console.askers import PASSWORD, audited, person, sign_in
from tests.console.serving import serving, streamed
from tests.signed_in import key_of

PAGE = "/console/schemas"


@pytest.fixture(scope="module")
def served(database: Settings) -> Iterator[str]:
    """The address of the API."""
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def browser(served: str) -> Iterator[httpx.Client]:
    """A browser without a session."""
    with httpx.Client(base_url=served, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def anna(database: Settings) -> str:
    return person(database, "anna", ["operator"])


def test_signing_in_leads_to_the_page_that_was_asked_for(
    browser: httpx.Client, database: Settings, anna: str
) -> None:
    """Its cookies are out of reach of scripts, other sites and the API; the audit log tells who it was."""
    asked = browser.get("/console/dead-letters?pipeline=fraud")
    assert asked.status_code == 303
    form = browser.get(asked.headers["location"])
    assert form.status_code == 200 and 'value="/console/dead-letters?pipeline=fraud"' in form.text
    answer = sign_in(browser, anna, next="/console/dead-letters?pipeline=fraud")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/dead-letters?pipeline=fraud")
    cookies = answer.headers.get_list("set-cookie")
    assert [c.partition("=")[0] for c in cookies] == [session.ACCESS, session.REFRESH]
    for cookie in cookies:
        assert {"HttpOnly", "Path=/console", "SameSite=strict"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
    page = browser.get(answer.headers["location"])
    assert page.status_code == 200 and "anna" in page.text
    assert browser.get("/v1/pipelines").status_code == 401
    until(lambda: ("login", "POST /console/sign-in", "done") in [e[:3] for e in audited(database, anna)])


def test_under_tls_cookies_are_secure(database: Settings, anna: str) -> None:
    """They are then never sent in the clear."""
    with TestClient(create_app(database), base_url="https://localhost") as http:
        answer = http.post(
            "/console/sign-in", data={"username": anna, "password": PASSWORD}, follow_redirects=False
        )
        assert answer.status_code == 303
        assert all("; Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))


@pytest.mark.parametrize(
    ("name", "password"), [("anna", "not this one"), ("nobody", PASSWORD), ("till", PASSWORD)]
)
def test_a_wrong_password_tells_nothing(
    browser: httpx.Client, database: Settings, anna: str, name: str, password: str
) -> None:
    """Whether there is such a person or not, the words are the same; the audit log has whom it was for."""
    answer = sign_in(browser, name, password)
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert "The user name or the password is not right." in answer.text
    assert f'value="{name}"' in answer.text and password not in answer.text.replace(name, "")
    until(lambda: any(
        e[0] == "login" and e[2] == "denied" and e[3].get("claimed") == name for e in audited(database, "")
    ))  # fmt: skip


@pytest.mark.parametrize(
    "next",
    [
        "https://evil.example/",
        "//evil.example/console",
        "/\\evil.example",
        "/console/../v1/oauth/token",
        "/console/sign-out",
        "/console//evil.example",
        "/console/live/pipelines",
        "/console\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "/consoles",
        "/console?" + "x" * 2000,
    ],
)
def test_it_leads_nowhere_else(browser: httpx.Client, anna: str, next: str) -> None:
    """No address but a page of the console is gone on to."""
    assert session.safe(next) is None
    answer = sign_in(browser, anna, next=next)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")


def test_forged_cookies_open_nothing(browser: httpx.Client, database: Settings, anna: str) -> None:
    """A token without or with another signature, an API key, and rubbish: sign in; the audit log tells."""
    now = int(time.time())
    claims = {
        "iss": database.api_url, "aud": "millrace", "sub": anna, "jti": "1", "ver": 1,
        "iat": now, "nbf": now, "exp": now + 900,
    }  # fmt: skip
    header = {"typ": "at+jwt", "kid": "1"}
    key = key_of(database, f"forger-{now}", "default", ["operator"])["X-API-Key"]
    for forged in (
        jwt.encode(claims, None, "none", headers=header),
        jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", headers=header),
        key,
        "rubbish",
    ):
        for name in (session.ACCESS, session.REFRESH):
            answer = browser.get(PAGE, headers={"cookie": f"{name}={forged}"})
            assert answer.status_code == 303 and answer.headers["location"].startswith("/console/sign-in")
            assert any(c.startswith(f'{name}=""') for c in answer.headers.get_list("set-cookie"))
    until(lambda: [e for e in audited(database, "") if e[0] == "denied" and "session" in str(e[3])] != [])


def test_two_tabs_renew_at_once(browser: httpx.Client, served: str, anna: str) -> None:
    """Whose access token has expired is asked for nothing: of several tabs one gets the next refresh token,
    all are answered, and the session goes on."""
    sign_in(browser, anna)
    held = browser.cookies[session.REFRESH]

    def tab(_: int) -> httpx.Response:
        return httpx.get(served + PAGE, headers={"cookie": f"{session.REFRESH}={held}"}, trust_env=False)

    with ThreadPoolExecutor(6) as tabs:
        answers = list(tabs.map(tab, range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    heirs = [a.cookies[session.REFRESH] for a in answers if session.REFRESH in a.cookies]
    assert len(heirs) == 1 and all(a.cookies[session.ACCESS] for a in answers)
    after = httpx.get(served + PAGE, headers={"cookie": f"{session.REFRESH}={heirs[0]}"}, trust_env=False)
    assert after.status_code == 200


def test_a_stolen_refresh_token_ends_the_session(
    browser: httpx.Client, served: str, anna: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes again after the grace was stolen: it opens nothing, nor does what followed from it."""
    sign_in(browser, anna)
    stolen = browser.cookies[session.REFRESH]
    renewed = httpx.get(served + PAGE, headers={"cookie": f"{session.REFRESH}={stolen}"}, trust_env=False)
    assert renewed.status_code == 200
    monkeypatch.setattr(session, "GRACE_S", 0.0)
    for token in (stolen, renewed.cookies[session.REFRESH]):
        again = httpx.get(served + PAGE, headers={"cookie": f"{session.REFRESH}={token}"}, trust_env=False)
        assert again.status_code == 303


def test_signing_out_ends_the_session(
    browser: httpx.Client, served: str, database: Settings, anna: str
) -> None:
    """The browser has no cookies left, and the refresh token that somebody has copied opens nothing."""
    sign_in(browser, anna)
    copied = browser.cookies[session.REFRESH]
    answer = browser.post("/console/sign-out", headers={"origin": served})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/sign-in?said=out")
    assert dict(browser.cookies) == {}
    assert "You are signed out" in browser.get(answer.headers["location"]).text
    late = httpx.get(served + PAGE, headers={"cookie": f"{session.REFRESH}={copied}"}, trust_env=False)
    assert late.status_code == 303
    until(lambda: "logout" in [e[0] for e in audited(database, anna)])


def test_who_is_disabled_is_out_within_seconds(
    browser: httpx.Client, database: Settings, anna: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages send them to sign in, which they cannot; what they watch ends."""
    monkeypatch.setattr(actions, "ASKED_AGAIN_S", 0.2)
    sign_in(browser, anna)
    assert browser.get("/console").status_code == 200
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with httpx.Client(
        base_url=browser.base_url, headers={"cookie": cookies}, trust_env=False, timeout=30
    ) as watcher:
        watched = streamed(watcher, "/console/live/pipelines", 40)
        next(watched)
        with connect(database.database_url) as connection:
            subjects.change(connection, anna, disabled=True)
        began = time.monotonic()
        for _ in watched:
            pass
        assert time.monotonic() - began < 25
    assert browser.get(PAGE).status_code == 303
    assert sign_in(browser, anna).status_code == 401


def test_a_link_from_elsewhere_finds_the_session(browser: httpx.Client, anna: str) -> None:
    """A browser sends no strict cookies with it: the page is asked for once more, from here."""
    first = browser.get(PAGE, headers={"sec-fetch-site": "cross-site"})
    assert first.status_code == 200 and f'content="0; url={PAGE}"' in first.text
    assert browser.get(PAGE, headers={"sec-fetch-site": "same-origin"}).status_code == 303


def test_a_form_of_before_is_not_done(browser: httpx.Client, served: str) -> None:
    """What is sent when the session has ended is said not to be done; nothing is repeated by itself."""
    answer = browser.post("/console/keys", data={"name": "x"}, headers={"origin": served})
    assert answer.headers["location"] == "/console/sign-in?said=ended"
    assert "what was sent was not done" in browser.get(answer.headers["location"]).text


def test_a_program_needs_no_session(browser: httpx.Client, database: Settings) -> None:
    """An API key or a bearer token opens what its subject may, and gets no cookie."""
    key = key_of(database, f"robot-{time.time_ns()}", "default", ["operator"])["X-API-Key"]
    for headers in ({"x-api-key": key}, {"authorization": f"Bearer {key}"}):
        answer = browser.get(PAGE, headers=headers)
        assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert browser.get("/console/users", headers={"x-api-key": key}).status_code == 403


def until(met: object, seconds: float = 10) -> None:
    """Wait until the audit log's writer has come so far."""
    assert callable(met)
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)
