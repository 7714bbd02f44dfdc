"""An analyst's journey in a real Chromium: a rule from a line of text into force and back, while the real
broker, processor and sink take decisions by it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from infra.codec import Codec
from infra.postgres import connect
from infra.settings import SETTINGS, Settings
from models.rules.ruleset import in_share
from models.rules.store import KIND, PIPELINE
from schemas.declare import Pipelines
from schemas.fraud import PIPELINE as FRAUD
from tests.console.askers import PASSWORD, person
from tests.console.browser import chromium, findings, opened, picture
from tests.console.serving import serving
from tests.replay.test_declared import cli
from tests.replay.test_rules import CARDS, Traffic, pipeline

__all__ = ["pipeline"]

TEXT = "WHEN amount > 40 AND merchant_id = 'm-bad' THEN review SCORE +0.3 REASON 'a bad merchant'"
KEY = "bad-merchant@1"
BAD = {f"c{n}" for n in range(0, CARDS, 2)}
"""The cards of which each transaction meets the condition."""


@pytest.fixture
def console(pipeline: Settings) -> Iterator[Settings]:
    """The console of the instance in which the fraud pipeline runs, with two analysts."""
    for name in ("ann", "bob"):
        person(pipeline, name, ["analyst", "operator"])
    with pytest.MonkeyPatch.context() as patch, serving(pipeline, Pipelines.of(FRAUD), patch) as client:
        url = str(client.base_url).rstrip("/")
        yield Settings({**pipeline.environ, SETTINGS["api_url"].variable: url})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def published(settings: Settings) -> int:
    """The newest version of the set."""
    with connect(settings.database_url) as connection:
        row = connection.execute(
            "SELECT max(version) FROM versions WHERE pipeline = %s AND kind = %s", (PIPELINE, KIND)
        ).fetchone()
    assert row is not None
    return int(str(row[0]))


def is_seen(page: Page, card: str, *sentences: str) -> None:
    """What the newest decision on a card says on its page; found by its card."""
    page.goto(f"/console/decisions?card_id={card}")
    page.locator("table tbody a").first.click()
    expect(page.get_by_role("heading", name="Why")).to_be_visible()
    for sentence in sentences:
        expect(page.locator("main")).to_contain_text(sentence)


@pytest.mark.timeout(400)
def test_a_rule_goes_from_text_to_active_and_back(console: Settings, codec: Codec, browser: Browser) -> None:
    """Each step is taken on the page by who may take it, and is seen in the decisions that follow it: shadow
    changes nothing, a canary decides on its cards, active on all, rolled back on none. A replay gives all
    of them again."""
    traffic = Traffic(console, codec)
    traffic.wave()
    with (
        opened(browser, console, who="ann", password=PASSWORD) as ann,
        opened(browser, console, who="bob", password=PASSWORD) as bob,
    ):
        # Written, with a mistake that is seen and corrected while it is typed.
        ann.get_by_role("link", name="Rules", exact=True).click()
        ann.get_by_role("link", name="Write a rule").click()
        ann.get_by_label("Name").fill("bad-merchant")
        text = ann.get_by_role("textbox", name="Text")
        text.fill("")
        text.press_sequentially(TEXT.replace("merchant_id", "mechant_id"), delay=5)
        expect(ann.get_by_text("did you mean merchant_id?")).to_be_visible()
        expect(ann.locator("#checked mark")).to_contain_text("mechant_id")
        expect(text).to_have_attribute("aria-invalid", "true")
        assert findings(ann, console) == []
        picture(ann, "rule-editor")
        ann.get_by_role("button", name="Use merchant_id").click()
        expect(ann.get_by_text("It can be used.")).to_be_visible()
        expect(text).to_have_value(TEXT)
        ann.get_by_role("button", name="Store as a draft").click()
        expect(ann.get_by_role("heading", name=KEY)).to_be_visible()

        # Tried on what was decided.
        ann.get_by_role("button", name="Backtest").click()
        drawn = ann.get_by_role("img", name=re.compile(r"^Matches by day, 30 in all"))
        expect(drawn).to_be_visible(timeout=60_000)
        expect(ann.get_by_text("APPROVE to REVIEW: 30")).to_be_visible()
        drawn.scroll_into_view_if_needed()
        picture(ann, "backtest")
        assert findings(ann, console) == []
        expect(ann.get_by_text("approved by somebody else than ann")).to_be_visible()

        # Approved by somebody else.
        bob.goto("/console/rules/bad-merchant")
        bob.get_by_label("Note").first.fill("seen it at two tills")
        bob.get_by_role("button", name="Approve").click()
        expect(bob.get_by_text("seen it at two tills")).to_be_visible()

        ann.goto("/console/rules/bad-merchant")
        ann.get_by_role("button", name="Shadow").click()
        expect(ann.get_by_text("from each partition's next batch on")).to_be_visible()
        for card, decision, fired, shadow, would in traffic.under(published(console)):
            assert KEY not in fired and decision == "APPROVE"
            assert (would, shadow) == (("REVIEW", [KEY]) if card in BAD else (None, []))
        is_seen(ann, "c0", "in shadow: held", "REVIEW")
        is_seen(ann, "c1", "in shadow: did not hold")
        ann.goto("/console/rules/bad-merchant")
        trial = ann.get_by_role("region", name="On trial")
        expect(trial.get_by_role("row", name=re.compile("^APPROVE REVIEW"))).to_be_visible()

        ann.get_by_label("Share of the cards").fill("0.4")
        ann.get_by_label("May decline at most").first.fill("1")
        ann.get_by_role("button", name="Canary").click()
        expect(ann.get_by_text("canary, 0.4 of the cards, declines at most 1").first).to_be_visible()
        chosen = {card for card in BAD if in_share("bad-merchant", 0.4, "default", card)}
        assert 0 < len(chosen) < len(BAD)
        for card, decision, fired, shadow, _ in traffic.under(published(console)):
            assert decision == ("REVIEW" if card in chosen else "APPROVE")
            assert ((KEY in fired), shadow) == (card in chosen, [KEY] if card in BAD - chosen else [])
        is_seen(ann, min(chosen), "a bad merchant", "its card is among the 0.4 of the cards: fired")
        picture(ann, "decision")
        is_seen(ann, min(BAD - chosen), "its card is not among the 0.4 of the cards: held without effect")
        assert findings(ann, console) == []

        ann.goto("/console/rules/bad-merchant")
        ann.get_by_role("button", name="Activate").click()
        expect(ann.get_by_text("active, declines at most 1").first).to_be_visible()
        active = traffic.under(published(console))
        assert {card for card, decision, *_ in active if decision == "REVIEW"} == BAD
        assert all((KEY in fired) == (card in BAD) for card, _, fired, *_ in active)
        ann.goto("/console/rules/bad-merchant")
        assert findings(ann, console) == []
        picture(ann, "rule")
        ann.goto("/console/rules")
        expect(ann.get_by_role("row", name=re.compile(f"^{KEY} active"))).to_be_visible()
        picture(ann, "rules")

        ann.goto("/console/rules/bad-merchant")
        ann.get_by_role("button", name="Roll back").click()
        expect(ann.get_by_text("Rolled back.")).to_be_visible()
        for _, decision, fired, shadow, would in traffic.under(published(console)):
            assert (decision, shadow, would) == ("APPROVE", [], None) and KEY not in fired
        is_seen(ann, "c0", "Nothing spoke against it.")
        ann.get_by_role("link", name="Prove it").click()
        signed = ann.get_by_text("It is what was written.")
        end = time.monotonic() + 60
        while not signed.is_visible():  # heads are signed every ten seconds
            assert time.monotonic() < end, ann.locator("section[aria-labelledby=proof]").inner_text()
            ann.get_by_role("link", name="Prove it").click()
            time.sleep(1)
        assert findings(ann, console) == []
        ann.goto("/console/rule-sets")
        expect(
            ann.get_by_role("row", name=re.compile(f"{KEY}: active, cap 1 → not in force"))
        ).to_be_visible()
    run = cli("replay", "run", "fraud", "--versions", "as-decided", "--json")
    assert run["status"] == "ready" and run["records"] == traffic.sent
    assert "nothing differs" in cli("replay", "diff", str(run["run"]), "--exit-code")
