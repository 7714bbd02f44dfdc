"""Chromium as an operator uses it, with what a page must hold to at every step of a journey."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from infra.settings import Settings
from schemas.roles import ADMIN

PICTURES = Path(__file__).parents[2] / "docs" / "console"
GRAVE = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; Playwright brings none of its own."""
    path = shutil.which("chromium")
    assert path is not None, "chromium is missing; `infra/bootstrap.sh test` installs it"
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and open nothing but pages of their own instance.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, settings: Settings, who: str | None = ADMIN, password: str = "", **context: Any
) -> Iterator[Page]:
    """A page of its own, signed in unless `who` is None; a script's error or complaint fails the journey."""
    made = browser.new_context(
        base_url=settings.api_url, **{"viewport": {"width": 1440, "height": 900}, **context}
    )
    page = made.new_page()
    page.set_default_timeout(30_000)
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        # A form that is refused answers 422 or 409, which Chromium notes as an error.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        if who is not None:
            sign_in(page, who, password or settings.secret(who))
            expect(page.get_by_role("button", name="Sign out")).to_be_visible()
        yield page
    finally:
        made.close()
    assert complaints == []


def sign_in(page: Page, who: str, password: str) -> None:
    """Fill the form in, which is shown now or is gone to."""
    if "/console/sign-in" not in page.url:
        page.goto("/console/sign-in")
    page.get_by_label("Name").fill(who)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()


def findings(page: Page, settings: Settings) -> list[str]:
    """What axe holds against the page as it stands, of what is serious."""
    path = Path(settings.text("cache")) / "axe" / "node_modules" / "axe-core" / "axe.min.js"
    assert path.exists(), "axe-core is missing; `infra/bootstrap.sh test` installs it"
    page.evaluate(path.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['impact']} {v['id']}: {n['html'][:160]} ({n['failureSummary'][:200]})"
        for v in found["violations"]
        if v["impact"] in GRAVE
        for n in v["nodes"][:3]
    ]


def picture(page: Page, name: str) -> None:
    """A picture for docs/console, where they are asked for (MILLRACE_PICTURES=1)."""
    if os.environ.get("MILLRACE_PICTURES"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        with Image.open(BytesIO(page.screenshot())) as taken:
            # A page has few colours: a palette of them is a third of the size, and looks the same.
            taken.convert("RGB").quantize(dither=Image.Dither.NONE).save(
                PICTURES / f"{name}.png", optimize=True
            )
