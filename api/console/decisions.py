"""Decisions of all tenants: found, and one with its reasons, what scoring saw, its place in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from psycopg import sql
from psycopg.rows import dict_row
from starlette.responses import Response

from api.console import site, words
from api.console.actions import needs
from api.paging import decode_cursor, encode_cursor
from infra import deliveries, versions
from infra.ledger.heads import open_heads
from infra.ledger.proof import Proof, prove
from infra.moments import MomentError, moment
from infra.postgres import Connection
from infra.problems import Problem
from models.rules import store
from models.rules.ruleset import in_share
from models.rules.store import KIND, PIPELINE, Stored
from schemas.fraud import CARD_LEDGER, CARD_TRANSACTIONS

router: APIRouter = site.router()

SHOWN = 50
ANSWERS = ("APPROVE", "REVIEW", "DECLINE")
ANSWERED = frozenset(
    {
        *("decision", "risk", "model_risk", "fraud_chance", "reasons"),
        *("fired_rules", "capped_rules", "shadow_rules", "shadow_decision", "rule_windows"),
        *("rules_version", "model_version", "code_version"),
    }
)
"""Columns that the page shows by themselves; the others are the transaction, and what scoring saw of it."""
LISTED = (
    *("event_id", "tenant", "occurred_at", "card_id", "merchant_id", "amount_minor", "currency"),
    *("decision", "risk", "fired_rules", "shadow_rules"),
)

_FOUND = sql.SQL(
    "SELECT {columns} FROM card_ledger WHERE {where}"
    " ORDER BY occurred_at DESC, event_id DESC, tenant DESC LIMIT {most}"
)
_ONE = (
    "SELECT * FROM card_ledger WHERE tenant = %(tenant)s AND event_id = %(event_id)s"
    " AND (%(at)s::timestamptz IS NULL OR occurred_at = %(at)s) ORDER BY occurred_at LIMIT 2"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which decisions somebody asks for, as the fields of the form say it."""

    card_id: str = ""
    event_id: str = ""
    merchant_id: str = ""
    tenant: str = ""
    decision: str = ""
    rule: str = ""
    shadow: str = ""
    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Asked:
        return cls(**{f.name: given.get(f.name, "").strip()[:128] for f in fields(cls)})

    @property
    def given(self) -> dict[str, str]:
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name))}

    def conditions(self) -> list[sql.Composable]:
        """Raises `MomentError`."""
        if self.decision and self.decision not in ANSWERS:
            raise MomentError(f"decision is {self.decision!r}; choose one of {', '.join(ANSWERS)}")
        now = datetime.now(UTC)
        found: list[sql.Composable] = [
            sql.SQL("{} = {}").format(sql.Identifier(name), getattr(self, name))
            for name in ("card_id", "event_id", "merchant_id", "tenant", "decision")
            if getattr(self, name)
        ]
        for column, wanted in (("fired_rules", self.rule), ("shadow_rules", self.shadow)):
            if wanted:
                found.append(sql.SQL("{} = ANY ({})").format(wanted, sql.Identifier(column)))
        for sign, wanted in ((">=", self.since), ("<", self.until)):
            if wanted:
                found.append(sql.SQL("occurred_at {} {}").format(sql.SQL(sign), moment(wanted, now)))
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """What a rule did with a decision. `rule`: as it is stored; None for one of before there were texts."""

    key: str
    rule: Stored | None
    how: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A decision with all that its page shows. `again`: the same id was decided for another time, too."""

    row: Mapping[str, Any]
    again: bool
    parts: Sequence[Part]
    windows: Mapping[str, int]
    told: Sequence[Mapping[str, Any]]
    proof: Proof | None


@router.get("/decisions", dependencies=[needs("scoring:read", "decisions.list")])
async def list_(request: Request, after: Annotated[str, Query(max_length=600)] = "") -> Response:
    console = site.console(request)
    asked = Asked.of(request.query_params)

    def find() -> list[dict[str, Any]]:
        conditions = asked.conditions()
        if after:
            place = decode_cursor(after, datetime, str, str)
            row = sql.SQL(", ").join(map(sql.Literal, place))
            conditions.append(sql.SQL("(occurred_at, event_id, tenant) < ({})").format(row))
        query = _FOUND.format(
            columns=sql.SQL(", ").join(map(sql.Identifier, LISTED)),
            where=sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true"),
            most=SHOWN + 1,
        )
        with console.database() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query).fetchall()

    found = await console.apart(find)
    shown = found[:SHOWN]
    request.state.rows = len(shown)
    place = [shown[-1][name] for name in ("occurred_at", "event_id", "tenant")] if shown else []
    return site.page(
        request,
        "decisions.html",
        active="decisions",
        asked=asked,
        rows=shown,
        more=site.query(**asked.given, after=encode_cursor(*place)) if len(found) > SHOWN else None,
        first=not after,
        answers=ANSWERS,
        link=link,
        state=state,
    )


@router.get("/decision", dependencies=[needs("scoring:read", "decisions.show")])
async def show(
    request: Request,
    tenant: Annotated[str, Query(max_length=128)],
    event_id: Annotated[str, Query(max_length=128)],
    at: datetime | None = None,
    proved: Annotated[bool, Query(alias="prove")] = False,
) -> Response:
    """One decision; `at` tells apart those of an id that was used twice, `prove` computes its chain anew."""
    console = site.console(request)
    request.state.object = f"{tenant}/{event_id}"
    shown = await console.apart(_shown, console, {"tenant": tenant, "event_id": event_id, "at": at}, proved)
    request.state.rows = 1
    row = shown.row
    asked = [(name, row[name]) for name in CARD_TRANSACTIONS.fields if name in row]
    seen = [
        (name, row[name])
        for name in CARD_LEDGER.columns
        if name not in CARD_TRANSACTIONS.fields and name not in ANSWERED
    ]
    return site.page(
        request,
        "decision.html",
        active="decisions",
        shown=shown,
        row=row,
        asked=_lines(asked, row["currency"]),
        seen=_lines([*seen, *shown.windows.items()], row["currency"]),
        state=state,
        record=f"/console/trace{site.query(row=_row_name(row))}",
        again=link(row),
    )


def _shown(console: site.Console, wanted: Mapping[str, Any], proved: bool) -> Shown:
    with console.database() as connection:
        with connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_ONE, wanted).fetchall()
        if not found:
            raise Problem(
                404,
                "No decision",
                f"There is no decision on {wanted['event_id']!r} of {wanted['tenant']!r}: it was not sent,"
                " is on its way, or is a dead letter.",
            )
        row = found[0]
        proof = None
        if proved and row["chain_sequence"] is not None:
            heads = open_heads(console.settings)
            proof = prove(connection, CARD_LEDGER, heads, row["source_partition"], row["chain_sequence"])
        return Shown(
            row=row,
            again=len(found) > 1,
            parts=_parts(connection, row),
            windows=dict(zip(store.read_windows(connection), row["rule_windows"], strict=False)),
            told=deliveries.of_decision(connection, row["tenant"], row["event_id"], row["occurred_at"]),
            proof=proof,
        )


def _parts(connection: Connection, row: Mapping[str, Any]) -> list[Part]:
    """What each rule of the set that decided did, of those that fired or were on trial."""
    stored = {rule.key: rule for rule in store.stored(connection)}
    how = dict.fromkeys(row["fired_rules"], "fired")
    how |= dict.fromkeys(row["capped_rules"], "fired, and asked for review: its cap was used up")
    how |= dict.fromkeys(row["shadow_rules"], "held without effect")
    for rule in _set(connection, row["rules_version"]):
        key = f"{rule['id']}@{rule['version']}"
        if rule["stage"] == "shadow":
            how[key] = f"in shadow: {'held' if key in how else 'did not hold'}"
        if rule["stage"] == "canary":
            within = in_share(rule["id"], rule["share"], row["tenant"], row["card_id"])
            where = f"its card is {'among' if within else 'not among'} the {rule['share']:.3g} of the cards"
            how[key] = f"in canary, {where}: {how.get(key, 'did not hold')}"
    return [Part(key, stored.get(key), did) for key, did in how.items()]


def _set(connection: Connection, version: int) -> Sequence[Mapping[str, Any]]:
    """The rules of a version of the set; none of one from before they had stages, or that is gone."""
    try:
        body = versions.body(connection, PIPELINE, KIND, version)
    except LookupError:
        return []
    return body["rules"] if isinstance(body, dict) else []


def link(row: Mapping[str, Any]) -> str:
    """The page of a decision."""
    names = ("tenant", "event_id")
    return f"/console/decision{site.query(**{n: row[n] for n in names}, at=row['occurred_at'].isoformat())}"


def state(decision: str | None) -> str:
    """The sign that goes with an answer."""
    return {"APPROVE": "good", "REVIEW": "late", "DECLINE": "bad"}.get(decision or "", "unknown")


def _row_name(row: Mapping[str, Any]) -> str:
    key = ",".join(f"{name}={words.plain(row[name])}" for name in CARD_LEDGER.key)
    return f"{CARD_LEDGER.name}:{key}"


def _lines(values: Sequence[tuple[str, Any]], currency: str) -> list[tuple[str, str]]:
    return [(name, _line(name, value, currency)) for name, value in values]


def _line(name: str, value: Any, currency: str) -> str:
    if value is None:
        return words.NONE
    if name.endswith("_minor") or name.startswith(("sum(", "max(")):
        return words.money(value, currency)
    if isinstance(value, datetime):
        return f"{words.moment(value)} UTC"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_ms"):
        return words.span(value / 1000)
    return f"{value:,}" if isinstance(value, int) else str(words.plain(value))
