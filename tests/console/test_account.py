"""A new password of one's own: for whoever knows the present one."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator

import httpx
import pytest

from infra.identity.authenticator import FRESH_SECONDS
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from tests.console.askers import PASSWORD, audited, person, sign_in
from tests.console.serving import serving

NEW = "another four good words"


@pytest.fixture(scope="module")
def served(database: Settings) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch) as client:
        yield str(client.base_url).rstrip("/")


def browser(served: str) -> httpx.Client:
    return httpx.Client(base_url=served, trust_env=False, timeout=30, headers={"origin": served})


def change(client: httpx.Client, present: str = PASSWORD, new: str = NEW, again: str = "") -> httpx.Response:
    form = {"present": present, "new": new, "again": again or new}
    return client.post("/console/account/password", data=form)


def words(answer: httpx.Response, status: int = 200) -> str:
    assert answer.status_code == status, answer.text[-2000:]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_the_password_is_changed_and_other_sessions_end(served: str, database: Settings) -> None:
    """This session goes on with the new one; another one, the old password, and its tokens open nothing."""
    name = person(database, "dora", ["auditor"])
    with browser(served) as here, browser(served) as elsewhere:
        assert sign_in(here, name).status_code == sign_in(elsewhere, name).status_code == 303
        assert elsewhere.get("/console/audit").status_code == 200
        answer = change(here)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/account?said=changed")
        assert "The password is changed" in words(here.get(answer.headers["location"]))
        time.sleep(FRESH_SECONDS + 0.2)
        assert elsewhere.get("/console/audit").status_code == 303
        assert here.get("/console/audit").status_code == 200
        assert (
            sign_in(elsewhere, name).status_code == 401 and sign_in(elsewhere, name, NEW).status_code == 303
        )
    end = time.monotonic() + 10
    while not (told := [e for e in audited(database, name) if e[0] == "users.password"])[1:]:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert PASSWORD not in str(told) and NEW not in str(told)


def test_nothing_is_changed_where_something_is_wrong(served: str, database: Settings) -> None:
    """Another present password, two different new ones, a weak one: told at its field."""
    name = person(database, "emil", [])
    with browser(served) as here:
        assert sign_in(here, name).headers["location"] == "/console/account"
        assert "is not your password" in words(change(here, present="not this one"), 422)
        assert "is not the same" in words(change(here, again="something else"), 422)
        assert "it has 5 characters; give it 12 to 256" in words(change(here, new="short"), 422)
        assert here.get("/console/account").status_code == 200
        assert sign_in(here, name).status_code == 303


def test_guessing_the_present_one_is_locked_out(served: str, database: Settings) -> None:
    """Whoever has found a session open does not learn the password by trying."""
    name = person(database, "fritz", [])
    with browser(served) as here:
        sign_in(here, name)
        for n in range(6):
            assert change(here, present=f"guess number {n}").status_code == 422
        assert "too many wrong ones" in words(change(here), 422)
