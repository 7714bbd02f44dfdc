"""Operators' journeys in a real Chromium, over an instance of the whole platform with all its processes."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from infra.codec import Codec
from infra.identity import subjects
from infra.postgres import connect
from infra.settings import Settings
from schemas.fleet import TRUCK_TELEMETRY
from schemas.fraud import CARD_TRANSACTIONS
from tests.accounts.running import send
from tests.console.askers import PASSWORD
from tests.console.browser import chromium, findings, opened, picture, sign_in
from tests.instance import millrace, running

EXAMPLES = Path(__file__).parents[2] / "schemas"
NEW = "four other words for her"
PAGES = (
    "/console",
    "/console/pipelines/orders",
    "/console/events?topic=card-transactions",
    "/console/trace",
    "/console/dead-letters",
    "/console/replays",
    "/console/replays/plan?pipeline=fleet",
    "/console/schemas",
    "/console/schemas/card-decisions",
    "/console/users",
    "/console/users/reader",
    "/console/users/admin",
    "/console/keys",
    "/console/audit",
    "/console/account",
    "/console/rules",
    "/console/rules/velocity-1h",
    "/console/rule-editor",
    "/console/rule-editor?id=velocity-1h",
    "/console/rule-sets",
    "/console/rule-lists",
    "/console/decisions",
    "/console/decision?tenant=default&event_id=card-1&prove=true",
    "/console/models",
    "/console/webhooks",
    "/console/no/such/page",
)
PICTURED = {"/console/models": "models", "/console/decisions": "decisions"}
"""Pages whose picture is taken where they stand for nothing but themselves."""


@pytest.fixture(scope="module")
def instance() -> Iterator[Settings]:
    """The platform with its processes, some traffic behind it."""
    with running("console", offset=700) as settings:
        # A public address that is never called: it is disabled before there is anything to tell.
        added = json.loads(millrace(settings, "webhooks", "add", "https://8.8.8.8/hook", "--json").stdout)
        assert millrace(settings, "webhooks", "disable", added["endpoint_id"]).returncode == 0
        with closing(Codec(settings.schema_registry_url)) as codec:
            send(settings, codec, CARD_TRANSACTIONS, [card(n) for n in range(200)])
            send(settings, codec, TRUCK_TELEMETRY, [fix(n) for n in range(200)])
        until(settings, "SELECT count(*) FROM card_ledger", 200)
        until(settings, "SELECT count(*) FROM truck_positions", 200)
        with connect(settings.database_url) as connection:
            subjects.create(
                connection, "reader", "person", "default", PASSWORD, ["auditor"], {"fleet": ["f-1"]}
            )
        yield settings


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def example(domain: str, topic: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads((EXAMPLES / domain / "examples" / f"{topic}.json").read_text())
    return found[0]


def card(n: int, **values: Any) -> dict[str, Any]:
    base = example("fraud", "card-transactions")
    return {
        **base,
        "event_id": f"card-{n}",
        "card_id": f"c{n % 20}",
        "occurred_at": 1_762_167_600_000 + n * 1000,
    } | values


def fix(n: int) -> dict[str, Any]:
    base = example("fleet", "truck-telemetry")
    return {
        **base,
        "event_id": f"fix-{n}",
        "truck_id": f"t{n % 10}",
        "sequence": n,
        "occurred_at": 1_767_258_000_000 + n * 1000,
        "odometer_m": 1_000.0 * n,
    }


def ask(settings: Settings, query: str) -> Any:
    with connect(settings.database_url) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None


def until(settings: Settings, query: str, wanted: object, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while (found := ask(settings, query)) != wanted:
        assert time.monotonic() < end, f"{query} is {found}, not {wanted}"
        time.sleep(0.2)


@contextmanager
def traffic(settings: Settings, first: int) -> Iterator[None]:
    """Cards and trucks, some tens a second, until the end of the block."""
    over = threading.Event()

    def keep_sending() -> None:
        n = first
        with closing(Codec(settings.schema_registry_url)) as codec:
            while not over.wait(0.4):
                send(settings, codec, CARD_TRANSACTIONS, [card(n + k) for k in range(10)])
                send(settings, codec, TRUCK_TELEMETRY, [fix(n + k) for k in range(5)])
                n += 10

    thread = threading.Thread(target=keep_sending)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(20)


def test_the_platform_is_seen_to_breathe(instance: Settings, browser: Browser) -> None:
    """The graph's figures move while records flow, on a page that was loaded once."""
    with opened(browser, instance) as page, traffic(instance, 10_000):
        page.goto("/console")
        expect(page.locator("#live-status")).to_have_text("live")
        edge = page.locator('path[data-bind$="fraud|topic:card-transactions>processor:fraud-scoring|flow"]')
        expect(edge).to_have_attribute("data-flow", re.compile("slow|fast"))
        rate = page.locator('svg [data-live="fraud|connectors>topic:card-transactions|rate"]')
        expect(rate).to_have_text(re.compile(r"^[1-9][\d.,]*/s$"))
        expect(page.locator('a.node[aria-label^="processor fraud-scoring: running"]')).to_be_visible()
        time.sleep(4)
        picture(page, "pipelines")
        page.goto("/console/pipelines/fraud")
        expect(page.locator('[data-live="fraud-scoring|card-transactions|rate"]')).to_have_text(
            re.compile(r"^[1-9][\d.,]*/s$")
        )
        time.sleep(14)  # until there is a curve to see
        picture(page, "pipeline")
        page.goto("/console/events?topic=card-transactions&filter=currency%3DEUR")
        expect(page.locator("#events tr").first).to_contain_text("card-1")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#live-status")).to_have_text("paused")
        picture(page, "events")


def test_a_dead_letter_is_found_corrected_redriven_and_its_row_seen(
    instance: Settings, browser: Browser
) -> None:
    """From the cause to the letter, through the form, past a trial that refuses, to the row in the ledger."""
    with closing(Codec(instance.schema_registry_url)) as codec:
        send(instance, codec, CARD_TRANSACTIONS, [card(5000, currency="euro")])
    until(instance, "SELECT count(*) FROM dead_letters WHERE input_id = 'card-5000'", 1)
    with opened(browser, instance) as page:
        page.goto("/console")
        page.get_by_role("link", name="Dead letters", exact=True).click()
        page.get_by_role("link", name="invalid").first.click()
        page.locator("table").last.locator("tbody a").first.click()
        expect(page.locator("tr.fault")).to_contain_text("euro")
        page.get_by_role("link", name="Correct it").click()
        field = page.get_by_label(re.compile("^currency"))
        field.fill("Euro")
        page.get_by_role("button", name="Test").click()
        expect(page.get_by_text("fraud-scoring would refuse it")).to_be_visible()
        field.fill("EUR")
        page.get_by_role("button", name="Test").click()
        expect(page.get_by_text("fraud-scoring would accept it")).to_be_visible()
        assert findings(page, instance) == []
        picture(page, "letter")
        page.get_by_label("Why, for the audit").fill("the producer spells it out")
        page.get_by_role("button", name="Store and redrive").click()
        expect(page.get_by_text("Sent again")).to_be_visible()
        assert findings(page, instance) == []
        until(instance, "SELECT count(*) FROM card_ledger WHERE event_id = 'card-5000'", 1)
        page.get_by_role("row", name=re.compile("redriven")).get_by_role("link").click()
        expect(page.get_by_role("heading", name="Row in card_ledger")).to_be_visible()
        page.get_by_role("link", name="trace this row back").click()
        expect(page.get_by_text("by fraud-scoring")).to_be_visible()
        assert findings(page, instance) == []
        picture(page, "trace")
    assert ask(instance, "SELECT currency FROM card_ledger WHERE event_id = 'card-5000'") == "EUR"


def test_a_replay_is_planned_run_compared_and_swapped(instance: Settings, browser: Browser) -> None:
    """The wizard from the plan to the swap, each step confirmed by the page; live goes on afterwards."""
    before = ask(instance, "SELECT count(*) FROM truck_positions")
    with opened(browser, instance) as page:
        page.goto("/console/replays")
        page.get_by_label("Pipeline").select_option("fleet")
        page.get_by_role("button", name="Plan it").click()
        expect(page.get_by_role("heading", name="It would read")).to_be_visible()
        page.get_by_role("button", name="Run it beside live traffic").click()
        compare = page.get_by_role("button", name="Compare with live")
        expect(compare).to_be_enabled(timeout=120_000)
        number = page.url.rpartition("/")[2]
        compare.click()
        expect(page.get_by_text("Nothing differs.")).to_be_visible(timeout=60_000)
        assert findings(page, instance) == []
        picture(page, "replay")
        confirm = page.get_by_label(re.compile("^To confirm, write .swap"))
        confirm.fill("yes")
        page.get_by_role("button", name="Swap", exact=True).click()
        expect(page.get_by_text("nothing was done")).to_be_visible()
        page.go_back()
        confirm.fill(f"swap {number}")
        page.get_by_role("button", name="Swap", exact=True).click()
        expect(page.get_by_role("heading", name="Clear up")).to_be_visible(timeout=120_000)
        assert findings(page, instance) == []
    assert ask(instance, "SELECT generation FROM generations WHERE name = 'truck_positions'") == int(number)
    with closing(Codec(instance.schema_registry_url)) as codec:
        send(instance, codec, TRUCK_TELEMETRY, [fix(90_000 + n) for n in range(10)])
    until(instance, "SELECT count(*) FROM truck_positions", before + 10)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_every_page_passes_axe_and_fits(
    instance: Settings, browser: Browser, scheme: str, width: int
) -> None:
    """In light and dark, on a desk and a phone: no serious finding, and no page wider than its window."""
    told: list[str] = []
    with opened(
        browser,
        instance,
        color_scheme=scheme,
        viewport={"width": width, "height": 844},
        reduced_motion="reduce",
    ) as page:
        for path in PAGES:
            page.goto(path)
            told += [f"{path}: {finding}" for finding in findings(page, instance)]
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                told.append(f"{path} is {wide} wide")
            if (path, scheme, width) in (("/console", "dark", 1440), ("/console/dead-letters", "light", 390)):
                picture(page, "dark" if scheme == "dark" else "phone")
            if (scheme, width) == ("light", 1440) and path in PICTURED:
                picture(page, PICTURED[path])
    assert told == []


def test_the_keyboard_reaches_everything(instance: Settings, browser: Browser) -> None:
    """The first Tab offers to skip the navigation; nodes of the graph are links in the order of the flow."""
    with opened(browser, instance) as page:
        page.goto("/console")
        page.keyboard.press("Tab")
        assert focused(page) == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(focused(page))
        nodes = [name.partition(":")[0] for name in reached if ": " in name]
        assert nodes[:3] == ["connectors", "topic card-transactions", "topic card-decisions"]
        page.locator('a.node[aria-label^="processor fraud-scoring"]').focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/pipelines/fraud#fraud-scoring")


def test_one_signs_in_and_out(instance: Settings, browser: Browser) -> None:
    """A wrong password is told in few words; a right one leads on to the page that was asked for; signed out,
    the page that is gone back to is not there."""
    with opened(browser, instance, who=None) as page:
        page.goto("/console/replays")
        assert page.url.endswith("/console/sign-in?next=%2Fconsole%2Freplays")
        sign_in(page, "admin", "not the password")
        expect(page.get_by_role("alert")).to_have_text("The user name or the password is not right.")
        assert findings(page, instance) == []
        picture(page, "sign-in")
        page.get_by_label("Password").fill(instance.secret("admin"))
        page.keyboard.press("Enter")
        page.wait_for_url("**/console/replays")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_text("You are signed out")).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.context.add_cookies(
            [{"name": "millrace_access", "value": "forged.by.hand", "url": f"{instance.api_url}/console"}]
        )
        page.goto("/console")
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_session_is_renewed_while_one_watches(instance: Settings, browser: Browser) -> None:
    """Whose access token has gone sees the next page, and live figures, without being asked."""
    with opened(browser, instance) as page:
        page.context.clear_cookies(name="millrace_access")
        page.goto("/console")
        expect(page.locator("#live-status")).to_have_text("live")
        names = {cookie.get("name") for cookie in page.context.cookies(f"{instance.api_url}/console")}
        assert names == {"millrace_access", "millrace_refresh"}


def test_a_user_is_added_and_sees_what_they_may(instance: Settings, browser: Browser) -> None:
    """Their password is shown once; they sign in with it, see their pages, and are told what is not."""
    with opened(browser, instance) as page:
        page.get_by_role("link", name="Users").click()
        page.get_by_label("Name", exact=True).fill("olga")
        page.get_by_label("operator").check()
        page.get_by_role("button", name="Add").click()
        password = page.locator("#secret").inner_text()
        assert findings(page, instance) == []
        page.goto("/console/users")
        expect(page.get_by_role("row", name=re.compile("^olga person default operator"))).to_be_visible()
        picture(page, "users")
        assert page.get_by_text(password).count() == 0
    with opened(browser, instance, who="olga", password=password) as page:
        expect(page.get_by_role("heading", name="Pipelines")).to_be_visible()
        assert page.get_by_role("link", name="Users").count() == 0
        page.goto("/console/users")
        expect(page.get_by_role("heading", name="This is not for you")).to_be_visible()
        assert findings(page, instance) == []


def test_a_key_is_made_used_and_revoked(instance: Settings, browser: Browser) -> None:
    """It opens the API, is seen by its prefix alone, and opens nothing once it is revoked; all of it told."""

    def asked_with(key: str) -> int:
        answer = httpx.get(f"{instance.api_url}/v1/pipelines", headers={"x-api-key": key}, trust_env=False)
        return answer.status_code

    with opened(browser, instance) as page:
        page.get_by_role("link", name="Keys").click()
        page.get_by_label("Whose it is").select_option("admin")
        page.get_by_label("What it is for").fill("the journey")
        page.get_by_label("operator").check()
        page.get_by_role("button", name="Make the key").click()
        key = page.locator("#secret").inner_text()
        assert findings(page, instance) == []
        assert asked_with(key) == 200
        page.get_by_role("link", name="Keys").click()
        row = page.get_by_role("row", name=re.compile("the journey"))
        expect(row).to_contain_text(key.split("_")[1])
        assert page.get_by_text(key).count() == 0
        picture(page, "keys")
        row.get_by_role("button", name=re.compile("^Revoke")).click()
        expect(page.get_by_text("it opens nothing")).to_be_visible()
        expect(row).to_contain_text("revoked")
        time.sleep(2.5)
        assert asked_with(key) == 401
        page.get_by_role("link", name="Audit").click()
        page.get_by_label("What", exact=True).fill("keys")
        page.get_by_role("button", name="Find").click()
        expect(page.get_by_role("row", name=re.compile("admin.*keys.revoke")).first).to_be_visible()
        page.get_by_role("button", name="Verify").click()
        expect(page.get_by_text("the log is what was written")).to_be_visible(timeout=60_000)
        assert findings(page, instance) == []
        picture(page, "audit")


def test_a_delivery_is_sent_again(instance: Settings, browser: Browser) -> None:
    """What waits for an endpoint that is stopped is seen; one is queued once more, behind the others."""
    endpoint = ask(instance, "SELECT endpoint_id FROM outward_endpoints")
    pending = "SELECT count(*) FROM outward_deliveries WHERE status = 'pending'"
    live = f"({pending} AND origin = 'live')"
    until(instance, f"SELECT {live} = (SELECT count(*) FROM outbox) AND {live} > 0", True)
    with opened(browser, instance) as page:
        page.get_by_role("link", name="Webhooks").click()
        page.get_by_role("link", name=endpoint).click()
        expect(page.get_by_text("disabled: by an operator")).to_be_visible()
        page.get_by_role("button", name=re.compile(r"^Send again \d+$")).first.click()
        expect(page.get_by_text("1 queued once more")).to_be_visible()
        assert findings(page, instance) == []
        picture(page, "webhook")
    assert ask(instance, f"{pending} AND origin = 'replay'") == 1


def test_one_changes_ones_own_password(instance: Settings, browser: Browser) -> None:
    """With the present one; the session goes on, and the next sign-in takes the new one."""
    with connect(instance.database_url) as connection:
        subjects.create(connection, "gerda", "person", "default", PASSWORD, ["auditor"])
    with opened(browser, instance, who="gerda", password=PASSWORD) as page:
        page.get_by_role("link", name="gerda").click()
        for label, value in (
            ("The present one", PASSWORD),
            ("The new one", "short"),
            ("The new one again", "short"),
        ):
            page.get_by_label(label, exact=True).fill(value)
        page.get_by_role("button", name="Change it").click()
        expect(page.get_by_text("it has 5 characters")).to_be_visible()
        assert findings(page, instance) == []
        for label, value in (("The present one", PASSWORD), ("The new one", NEW), ("The new one again", NEW)):
            page.get_by_label(label, exact=True).fill(value)
        page.get_by_role("button", name="Change it").click()
        expect(page.get_by_text("The password is changed.")).to_be_visible()
    with opened(browser, instance, who="gerda", password=NEW) as page:
        page.goto("/console/audit")
        expect(page.get_by_role("heading", name="Audit")).to_be_visible()


def focused(page: Page) -> str:
    """What a screen reader would call what has the focus."""
    found: str = page.evaluate(
        "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent.trim()"
    )
    return found
