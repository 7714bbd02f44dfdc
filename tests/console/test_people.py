"""Users, keys and the audit log as pages: the same functions as the commands, told as whoever acts."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator

import httpx
import pytest

from infra.identity.authenticator import FRESH_SECONDS
from infra.postgres import connect
from infra.settings import Settings
from schemas.pipelines import PIPELINES
from tests.console.askers import audited, person, sign_in
from tests.console.serving import serving


@pytest.fixture(scope="module")
def served(database: Settings) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def chief(served: str, database: Settings) -> Iterator[httpx.Client]:
    """The browser of an administrator who also reads the audit log."""
    with httpx.Client(base_url=served, trust_env=False, timeout=30) as client:
        assert sign_in(client, person(database, "chief", ["admin", "auditor"])).status_code == 303
        yield client


def text(answer: httpx.Response, status: int = 200) -> str:
    assert answer.status_code == status, answer.text[-2000:]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def secret(answer: httpx.Response) -> str:
    """What a page shows once."""
    return html.unescape(re.findall(r'id="secret">([^<]+)<', answer.text)[0])


def forget(settings: Settings, *names: str) -> None:
    with connect(settings.database_url) as connection:
        connection.execute("DELETE FROM identity.subjects WHERE subject = ANY(%s)", (list(names),))


def token(served: str, name: str, password: str) -> int:
    form = {"grant_type": "password", "username": name, "password": password}
    return httpx.post(f"{served}/v1/oauth/token", data=form, trust_env=False).status_code


def test_a_user_is_added_granted_and_disabled(chief: httpx.Client, served: str, database: Settings) -> None:
    """The password is shown once and is right; grants, objects and a new password hold; disabled is out."""
    forget(database, "berta")
    form = {"name": "berta", "kind": "person", "tenant": "default", "grant": ["viewer:fraud"]}
    added = chief.post("/console/users", data={**form, "objects": "merchant=m-7, m-8"})
    assert "merchant=m-7,m-8" in text(added)
    first = secret(added)
    assert token(served, "berta", first) == 200
    assert first not in chief.get("/console/users/berta").text and "berta" in text(
        chief.get("/console/users")
    )
    assert "There is a subject 'berta' already" in text(chief.post("/console/users", data=form), 409)

    changed = chief.post("/console/users/berta/grants", data={"grant": ["operator", "viewer:orders"]})
    assert changed.status_code == 303
    words = text(chief.get("/console/users/berta"))
    assert "millrace users grant berta operator viewer:orders" in words and "m-7" not in words
    assert "no role" in text(chief.post("/console/users/berta/grants", data={"grant": ["king"]}), 409)
    wrong = chief.post("/console/users/berta/grants", data={"grant": [], "objects": "m-1"})
    assert "is not kind=id,id" in text(wrong, 409)

    second = secret(chief.post("/console/users/berta/password"))
    assert token(served, "berta", first) == 400 and token(served, "berta", second) == 200
    assert chief.post("/console/users/berta/disable").status_code == 303
    assert token(served, "berta", second) == 400 and "disabled since" in text(
        chief.get("/console/users/berta")
    )
    assert chief.post("/console/users/berta/enable").status_code == 303
    assert token(served, "berta", second) == 200
    told = wait_for(database, "chief", "users.enable")
    for action in ("users.add", "users.grant", "users.password", "users.disable", "users.enable"):
        mine = [e for e in told if e[0] == action and e[2] == "done"]
        assert [bool(e[3].get("begins")) for e in mine][:2] == [True, False], action
        assert "berta" in str(mine)
    assert any(e[0] == "users.grant" and e[2] == "failed" for e in told)
    assert first not in str(told) and second not in str(told)


def test_nobody_changes_themselves(chief: httpx.Client) -> None:
    """Neither grants nor access: another administrator does."""
    for path, form in (("grants", {"grant": ["operator"]}), ("disable", {}), ("password", {})):
        assert "That is you" in text(chief.post(f"/console/users/chief/{path}", data=form), 409)
    page = chief.get("/console/users/chief").text
    assert "/grants" not in page and "This is you" in page


def test_a_key_is_shown_once_works_and_is_revoked(
    chief: httpx.Client, served: str, database: Settings
) -> None:
    """It opens what its subject may, at most what it was given, and nothing once it is revoked."""
    person(database, "carla", ["operator"])
    form = {"subject": "carla", "name": "the till", "days": "7", "grant": ["viewer:fraud"]}
    beyond = chief.post("/console/keys", data={**form, "grant": ["admin"]})
    assert "itself may not" in text(beyond, 409)
    assert "a number of days" in text(chief.post("/console/keys", data={**form, "days": "soon"}), 409)
    made = chief.post("/console/keys", data={**form, "grant": []})
    key = secret(made)
    assert "the till" in text(made)
    with httpx.Client(base_url=served, trust_env=False, headers={"x-api-key": key}) as program:
        assert program.get("/v1/pipelines").status_code == 200
        prefix = key.split("_")[1]
        assert key not in chief.get("/console/keys").text and prefix in chief.get("/console/keys").text
        assert chief.post(f"/console/keys/{prefix}/revoke").status_code == 303
        time.sleep(FRESH_SECONDS + 0.2)
        assert program.get("/v1/pipelines").status_code == 401
        assert program.get("/console").status_code == 401
    told = wait_for(database, "chief", "keys.revoke")
    assert any(e[0] == "keys.create" and f"{prefix} of carla" in str(e[3]) for e in told)
    assert key not in str(told)


def test_the_audit_log_is_read_and_verified(chief: httpx.Client, database: Settings) -> None:
    """By who, what and outcome, page by page without a gap; a verification says whether it was altered."""
    for n in range(120):
        assert chief.get(f"/console/users?match=walk-{n}").status_code == 200
    wait_for(database, "chief", "read", 121)
    seen: list[str] = []
    address = "/console/audit?subject=chief&action=read"
    while address:
        page = chief.get(address)
        assert page.status_code == 200
        seen += re.findall(r"<tr><td>([^<]+)</td>", page.text)
        older = re.findall(r'href="(/console/audit\?[^"]+)">Older', page.text)
        address = html.unescape(older[0]) if older else ""
    assert len(seen) >= 121 and seen == sorted(seen, reverse=True)
    assert "There is no such entry" in text(
        chief.get("/console/audit?subject=chief&outcome=failed&match=zzz")
    )
    assert "is no time" in text(chief.get("/console/audit?since=soon"), 409)

    assert chief.post("/console/audit/verify").status_code == 303
    end = time.monotonic() + 60
    while "the log is" not in (words := text(chief.get("/console/audit"))):
        assert time.monotonic() < end, words[:600]
        time.sleep(0.5)
    assert "signed heads of" in words or "signed head of" in words


def wait_for(settings: Settings, subject: str, action: str, times: int = 1) -> list[tuple[str, ...]]:
    """What the log tells of a subject, once it tells so often of this action having ended."""
    end = time.monotonic() + 10
    while True:
        told = audited(settings, subject)
        if sum(e[0] == action and not e[3].get("begins") for e in told) >= times:
            return told  # type: ignore[return-value]
        assert time.monotonic() < end, told
        time.sleep(0.1)
