"""Rules as pages: written with help, tried, approved by somebody else, taken into force and back."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from infra.postgres import connect
from infra.settings import Settings
from models.rules import store
from schemas.pipelines import PIPELINES
from tests.console.askers import audited, person, sign_in
from tests.console.serving import serving
from tests.sinks.test_fraud import DECISION
from tests.sinks.test_fraud import store as decide

TEXT = "WHEN amount > 50 AND country = 'IE' THEN review SCORE +0.3 REASON 'dear'"
DAY_MS = 86_400_000
FIRST = datetime.fromtimestamp(DECISION["occurred_at"] // DAY_MS * DAY_MS / 1000, UTC)
SINCE, UNTIL = (f"{FIRST + timedelta(days=n):%Y-%m-%d}" for n in (0, 4))


@pytest.fixture(scope="module")
def served(database: Settings) -> Iterator[str]:
    """The API, over a ledger of 30 decisions of three days."""
    with connect(database.database_url) as connection:
        for n in range(30):
            amount = 1_000 * (n + 1)
            decide(
                connection,
                event_id=f"r{n}",
                occurred_at=DECISION["occurred_at"] // DAY_MS * DAY_MS + n * DAY_MS // 10,
                card_id=f"card-{n % 4}",
                amount_minor=amount,
                currency="EUR",
                rule_windows=[],
                country="IE",
                **dict.fromkeys([f"sum_{w}_minor" for w in ("10m", "1h", "24h", "7d")], amount * 3),
                **dict.fromkeys(("max_24h_minor", "max_7d_minor"), amount * 2),
                decision="APPROVE",
                fired_rules=["velocity-1h@1"] if n < 7 else [],
                shadow_rules=["burst-1h@1"] if n < 3 else [],
            )
    with pytest.MonkeyPatch.context() as patch, serving(database, PIPELINES, patch) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def ann(served: str, database: Settings) -> Iterator[httpx.Client]:
    yield from _browser(served, person(database, "ann", ["analyst"]))


@pytest.fixture
def bob(served: str, database: Settings) -> Iterator[httpx.Client]:
    yield from _browser(served, person(database, "bob", ["analyst"]))


@pytest.fixture
def olga(served: str, database: Settings) -> Iterator[httpx.Client]:
    """An operator: sees rules, and writes none."""
    yield from _browser(served, person(database, "olga", ["operator"]))


def _browser(served: str, name: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, trust_env=False, timeout=30, headers={"origin": served}) as client:
        assert sign_in(client, name).status_code == 303
        yield client


def words(answer: httpx.Response, status: int = 200) -> str:
    assert answer.status_code == status, answer.text[-2000:]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def draft(browser: httpx.Client, name: str, text: str = TEXT) -> str:
    """Store a text as a draft; returns the address of its version."""
    answer = browser.post("/console/rules", data={"id": name, "text": text})
    assert answer.status_code == 303, words(answer, answer.status_code)
    return f"/console/rules/{name}/{answer.headers['location'].split('version=')[1].split('&')[0]}"


def tried(browser: httpx.Client, version: str) -> None:
    """Backtest it, and wait for the end of the command."""
    assert browser.post(f"{version}/backtest", data={"since": SINCE, "until": UNTIL}).status_code == 303
    page = f"{version.rpartition('/')[0]}?version={version.rpartition('/')[2]}"
    end = time.monotonic() + 60
    while "transactions 30" not in (told := words(browser.get(page))):
        assert time.monotonic() < end, told
        time.sleep(0.3)


def test_a_mistake_is_marked_and_corrected(ann: httpx.Client, database: Settings) -> None:
    """While one types and by the button; what was meant is offered, and taken; nothing wrong is stored."""
    wrong = TEXT.replace("country", "contry")
    assert "It can be used" in words(ann.get("/console/rule-editor"))
    typed = ann.get("/console/live/rule-editor", params={"text": wrong})
    assert "did you mean country?" in words(typed) and "<mark>contry<sup>1</sup></mark>" in typed.text
    assert "<html" not in typed.text
    refused = ann.post("/console/rules", data={"id": "dear", "text": wrong})
    assert "1 thing is wrong with it" in words(refused, 422)
    instead = html.unescape(re.findall(r'name="instead" value="([^"]+)"', refused.text)[0])
    corrected = ann.post("/console/rule-editor/check", data={"id": "dear", "text": wrong, "instead": instead})
    assert "It can be used" in words(corrected) and TEXT in words(corrected)
    assert "cannot be a rule's id" in words(
        ann.post("/console/rules", data={"id": "Dear", "text": TEXT}), 422
    )
    assert "check the text again" in words(
        ann.post("/console/rule-editor/check", data={"text": TEXT, "instead": "900-901-x"}), 409
    )
    evil = ann.get("/console/live/rule-editor", params={"text": "WHEN <script>alert(1)</script>"})
    assert "<script>" not in evil.text
    with connect(database.database_url) as connection:
        assert "dear" not in {rule.id for rule in store.stored(connection)}


def test_a_window_that_nobody_keeps_yet_is_told(ann: httpx.Client) -> None:
    """Before the text is stored, and afterwards as warming, beyond which it does not come."""
    text = "WHEN count(card, 3h) > 4 THEN review REASON 'often'"
    assert "count(card, 3h) would be kept from now on" in words(
        ann.get("/console/live/rule-editor", params={"text": text})
    )
    version = draft(ann, "often", text)
    assert "Warming: decisions do not hold count(card, 3h) yet" in words(ann.get("/console/rules/often"))
    assert "warming" in words(ann.get("/console/rules"))
    assert words(ann.post(f"{version}/retire"), 303) == ""


def test_the_way_into_force_and_back(ann: httpx.Client, bob: httpx.Client, database: Settings) -> None:
    """Each step by who may take it, told as theirs; the report is drawn; a rollback puts back what was."""
    version = draft(ann, "dear")
    page = "/console/rules/dear"
    assert "is draft and cannot become shadow" in words(ann.post(f"{version}/shadow"), 409)
    tried(ann, version)
    report = ann.get(page)
    assert "matches 25" in words(report) and "APPROVE to REVIEW: 25" in words(report)
    assert report.text.count("<rect") == 3 and "Nobody has sent labels" in words(report)
    assert "approved by somebody else than ann" in words(report)
    assert "let somebody else approve it" in words(ann.post(f"{version}/approve"), 409)
    assert bob.post(f"{version}/approve", data={"note": "looks right"}).status_code == 303
    assert ann.post(f"{version}/shadow").status_code == 303
    assert "shadow" in words(ann.get(page))
    assert "Share is 'half'; give a share" in words(
        ann.post(f"{version}/canary", data={"share": "half"}), 409
    )
    assert ann.post(f"{version}/canary", data={"share": "0.25", "cap": "0.02"}).status_code == 303
    assert "canary, 0.25 of the cards, declines at most 0.02" in words(ann.get(page))
    assert ann.post(f"{version}/activate", data={"no_cap": "1"}).status_code == 303
    following = draft(ann, "dear", TEXT.replace("50", "80"))
    tried(ann, following)
    assert bob.post(f"{following}/approve").status_code == 303
    for step in ("shadow", "canary", "activate"):
        assert ann.post(f"{following}/{step}").status_code == 303
    assert "dear@1 retired" in words(ann.get(page)) and "replaced by dear@2" in words(ann.get(page))
    back = ann.post(f"{page}/rollback")
    assert back.headers["location"] == f"{page}?version=1&said=back"
    assert "Rolled back" in words(ann.get(back.headers["location"]))
    with connect(database.database_url) as connection:
        one, two = (store.find(connection, f"dear@{n}") for n in (1, 2))
        assert (one.stage, one.cap, two.stage) == ("active", None, "retired")
        actors = [(e.stage, e.actor) for e in store.events(connection, "dear") if e.version == 1]
    assert actors[:3] == [("draft", "ann"), ("backtested", "ann"), ("approved", "bob")]
    until(lambda: any(e[0] == "rules.rollback" and not e[3].get("begins") for e in audited(database, "ann")))
    told = {e[0] for e in audited(database, "ann") if e[2] == "done"}
    assert {"rules.add", "rules.backtest", "rules.shadow", "rules.canary", "rules.activate"} <= told


def test_the_whole_set_goes_back_to_a_version(
    ann: httpx.Client, bob: httpx.Client, database: Settings
) -> None:
    """What each version changed is told; putting one back publishes another one like it."""
    version = draft(ann, "set-wide")
    tried(ann, version)
    assert bob.post(f"{version}/approve").status_code == 303
    assert ann.post(f"{version}/shadow").status_code == 303
    listed = ann.get("/console/rule-sets")
    assert "set-wide@1: not in force → shadow" in words(listed)
    before = re.findall(r"/console/rule-sets/(\d+)/restore", listed.text)[0]
    assert ann.post(f"/console/rule-sets/{before}/restore").status_code == 303
    assert "set-wide@1: shadow → not in force" in words(ann.get("/console/rule-sets"))
    with connect(database.database_url) as connection:
        assert store.find(connection, "set-wide").stage == "retired"
    assert "There is no version 4711" in words(ann.post("/console/rule-sets/4711/restore"), 409)


def test_the_list_tells_what_each_did_lately(ann: httpx.Client) -> None:
    """Of the newest decisions: how often it fired, and where it held without effect."""
    page = ann.get("/console/rules")
    rows = {words_of[0]: words_of for row in re.findall(r"<tr>.*?</tr>", page.text, re.S)
            if (words_of := re.sub(r"<[^>]+>", " ", row).split())}  # fmt: skip
    assert rows["velocity-1h@1"][-5:-2] == ["7", "0", "0"] and rows["burst-1h@1"][-5:-2] == ["0", "0", "3"]
    assert "the newest 30 decisions" in words(page)
    one = ann.get("/console/rules/velocity-1h")
    assert "it fired on 7" in words(one) and "/console/decisions?rule=velocity-1h%401" in one.text
    assert "did you mean velocity-1h?" in words(ann.get("/console/rules/velocity-2h"), 409)


def test_who_may_not_write_is_offered_nothing(olga: httpx.Client) -> None:
    """An operator reads rules, texts and reports; no page offers what would be refused."""
    for path in ("/console/rules", "/console/rules/velocity-1h", "/console/rule-sets", "/console/rule-lists"):
        page = olga.get(path)
        assert page.status_code == 200 and page.text.count('method="post"') == 1, path
        assert "<button class=" not in page.text
    assert "Store as a draft" not in olga.get("/console/rule-editor").text
    for path in ("rules", "rules/velocity-1h/1/retire", "rules/velocity-1h/rollback", "rule-lists"):
        assert olga.post(f"/console/{path}", data={"id": "x", "text": TEXT}).status_code == 403


def test_lists_are_filled_and_emptied(ann: httpx.Client, database: Settings) -> None:
    """With an end or without; the audit log is told the list, and never its values."""
    card = "card-4711-secret"
    form = {"name": "stolen", "values": f"{card}\n other \n\nother", "until": "2027-05-01"}
    assert ann.post("/console/rule-lists", data=form).status_code == 303
    page = words(ann.get("/console/rule-lists"))
    assert "stolen 2 entries" in page and f"{card} until 2027-05-01" in page
    assert "write one a line" in words(
        ann.post("/console/rule-lists", data={"name": "stolen", "values": " "}), 409
    )
    assert "is no time" in words(ann.post("/console/rule-lists", data={**form, "until": "soon"}), 409)
    assert "cannot be a list's name" in words(
        ann.post("/console/rule-lists", data={**form, "name": "A b"}), 409
    )
    taken = ann.post("/console/rule-lists/stolen/remove", data={"value": ["other"]})
    assert taken.status_code == 303 and "stolen 1 entry" in words(ann.get("/console/rule-lists"))
    assert "Choose values" in words(ann.post("/console/rule-lists/stolen/remove"), 409)
    until(lambda: any(e[0] == "lists.remove" and not e[3].get("begins") for e in audited(database, "ann")))
    told = [e for e in audited(database, "ann") if e[0].startswith("lists.")]
    assert "stolen" in str(told) and card not in str(told)


def until(met: object, seconds: float = 10) -> None:
    """Wait until the audit log's writer has come so far."""
    assert callable(met)
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)
