"""Writing a rule: checked as it is typed, each mistake marked where it is, with what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from api.console import rule_text, site
from api.console.actions import Acting, needs
from models.rules import store, vocabulary
from models.rules.checking import Checked, check
from models.rules.problem import CheckError, RuleError
from models.rules.ruleset import content_hash
from models.rules.store import Stored
from models.rules.syntax import TEXT_MAX, normal

router: APIRouter = site.router()

EXAMPLE = """WHEN amount > 500 AND country != home_country AND count(card, 1h) >= 3
THEN review SCORE +0.3 REASON 'velocity abroad'"""
Text = Annotated[str, Query(max_length=2 * TEXT_MAX)]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of a text. Without problems: its normal form, its hash, and windows that it would be the
    first to name."""

    checked: Checked
    normal: str = ""
    sha256: str = ""
    warming: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[rule_text.Piece]:
        return rule_text.pieces(self.checked.text, self.checked.problems)


@dataclass(frozen=True, slots=True)
class Draft:
    """What the form says."""

    id: str = ""
    text: str = ""
    description: str = ""
    known: bool = False
    """Whether the rule is there already: the text becomes its next version."""


@router.get("/rule-editor", dependencies=[needs("scoring:read", "rules.edit")])
async def form(
    request: Request,
    id: Annotated[str, Query(max_length=80)] = "",
    version: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """An empty form, or that of a rule's next version, which begins with the text of an earlier one."""
    if not id:
        return await _page(request, Draft(text=EXAMPLE))
    console = site.console(request)

    def find() -> Stored:
        with console.database() as connection:
            return store.find(connection, id if version is None else f"{id}@{version}")

    rule = await console.apart(find)
    return await _page(request, Draft(rule.id, rule.text, rule.description, True))


@router.post("/rule-editor/check", dependencies=[needs("scoring:read", "rules.check")])
async def checked(request: Request) -> Response:
    """The form with what is wrong with its text, or with a correction made in it (`instead`)."""
    fields = site.texts(await request.form())
    draft = _draft(fields)
    if wanted := fields.get("instead"):
        draft = Draft(draft.id, rule_text.corrected(draft.text, wanted), draft.description, draft.known)
    return await _page(request, draft)


@router.get("/live/rule-editor", dependencies=[needs("scoring:read", "rules.check")])
async def as_typed(request: Request, text: Text = "") -> Response:
    """What is said of a text alone, for the script to show while somebody types."""
    verdict = await site.console(request).apart(_verdict, site.console(request), text)
    return HTMLResponse(site.render("rule_checked.html", verdict=verdict, correction=rule_text.correction))


@router.post("/rules", dependencies=[needs("scoring:write", "rules.add")])
async def add(request: Request, actor: Acting) -> Response:
    """Store the text as a draft: a new rule, or the next version of one."""
    console = site.console(request)
    draft = _draft(site.texts(await request.form()))
    request.state.object = draft.id

    def act() -> tuple[Stored, bool]:
        with console.database(reading=False) as connection:
            return store.add(connection, draft.id, draft.text, actor.subject, draft.description)

    try:
        rule, is_new = await console.apart(act)
    except CheckError:
        return await _page(request, draft, status=422)
    except RuleError as error:
        return await _page(request, draft, wrong=str(error), status=422)
    said = "draft" if is_new else "same"
    return site.to(f"/console/rules/{rule.id}?version={rule.version}&said={said}")


def _draft(fields: dict[str, str]) -> Draft:
    text = fields.get("text", "").replace("\r\n", "\n").strip()
    return Draft(
        fields.get("id", "").strip(), text, fields.get("description", "").strip()[:500], "known" in fields
    )


def _verdict(console: site.Console, text: str) -> Verdict:
    with console.database() as connection:
        found = check(text, store.read_context(connection))
        known = store.read_windows(connection)
    if found.meaning is None:
        return Verdict(checked=found)
    new = tuple(window for window in found.meaning.windows if window not in known)
    return Verdict(checked=found, normal=normal(text), sha256=content_hash(text), warming=new)


async def _page(request: Request, draft: Draft, *, wrong: str = "", status: int = 200) -> Response:
    console = site.console(request)

    def look() -> tuple[Verdict, list[tuple[str, int]]]:
        with console.database() as connection:
            lists = [(name, len(entries)) for name, entries in store.read_lists(connection).items()]
        return _verdict(console, draft.text), lists

    verdict, lists = await console.apart(look)
    return site.page(
        request,
        "rule_edit.html",
        status,
        active="rules",
        draft=draft,
        verdict=verdict,
        correction=rule_text.correction,
        wrong=wrong,
        lists=lists,
        words=list(vocabulary.words()),
        longest=TEXT_MAX,
    )
