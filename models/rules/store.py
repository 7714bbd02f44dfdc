"""Rules, lists and rates in Postgres, and the versions that are published from them.

Every change that decisions can see ends with a new version of the whole set (`infra.versions`), in the same
transaction. Changes wait for one another: a set is made of what all of them left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from psycopg.types.json import Jsonb

from infra import versions
from infra.postgres import Connection
from models.rules.checking import Context, Meaning, understand
from models.rules.currencies import Rates
from models.rules.lifecycle import CANARY_CAP, Stage, Standing, require
from models.rules.lists import lists_of
from models.rules.problem import RuleError, suggestion
from models.rules.ruleset import LANGUAGE, RuleSet, content_hash, load_rules
from models.rules.syntax import normal
from models.rules.vocabulary import NAMEABLE, NAMED_MAX, named_window

PIPELINE, KIND = "fraud", "rules"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
NAME_MAX = 64
NEWEST_DECISIONS = 100
"""As many of the ledger's newest decisions must hold a named window before a rule may use it."""


@dataclass(slots=True, frozen=True)
class Stored:
    """A version of a rule, and where it stands. `share` and `cap` are those of its stage; `since`: when it
    came there. `missing_windows`: named windows that decisions do not hold yet; with any, the rule is
    warming."""

    id: str
    version: int
    place: int
    text: str
    sha256: str
    description: str
    author: str
    created_at: datetime
    stage: Stage
    share: float
    cap: float | None
    since: datetime
    missing_windows: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.id}@{self.version}"

    @property
    def standing(self) -> Standing:
        return Standing(self.key, self.stage, self.author, self.missing_windows)


@dataclass(slots=True, frozen=True)
class Event:
    """A step of a rule's way."""

    version: int
    stage: Stage
    share: float
    cap: float | None
    actor: str
    note: str
    at: datetime
    rules_version: int | None


_STORED = """
SELECT r.rule_id, r.version, r.place, r.text, r.sha256, r.description, r.author, r.created_at,
       e.stage, e.share, e.cap, e.at
FROM rules r CROSS JOIN LATERAL (
    SELECT stage, share, cap, at FROM rule_events e
    WHERE e.rule_id = r.rule_id AND e.version = r.version ORDER BY event_id DESC LIMIT 1) e
ORDER BY r.place, r.version
"""
_STORED_FIELDS = (
    *("id", "version", "place", "text", "sha256", "description", "author", "created_at"),
    *("stage", "share", "cap", "since"),
)


def stored(connection: Connection) -> list[Stored]:
    """Every version of every rule, in the order of the rules."""
    context, unfilled = read_context(connection), unfilled_windows(connection)
    found = []
    for row in connection.execute(_STORED):
        values: dict[str, Any] = dict(zip(_STORED_FIELDS, row, strict=True))
        try:
            windows: Sequence[str] = understand(values["text"], context).windows
        except RuleError:  # as where its list is gone: it says so when it is to be used
            windows = ()
        missing = tuple(window for window in windows if window in unfilled)
        found.append(Stored(**values | {"stage": Stage(values["stage"]), "missing_windows": missing}))
    return found


def find(connection: Connection, wanted: str) -> Stored:
    """A rule by `id@version`, or by its id its newest version. Raises `RuleError`."""
    id_, _, version = wanted.partition("@")
    everything = stored(connection)
    of_id = [rule for rule in everything if rule.id == id_]
    if not of_id:
        ends, _ = suggestion(id_, {rule.id for rule in everything})
        raise RuleError(f"there is no rule {id_}; {ends}")
    found = of_id[-1] if not version else next((r for r in of_id if str(r.version) == version), None)
    if found is None:
        raise RuleError(f"{id_} has no version {version}; it has {', '.join(str(r.version) for r in of_id)}")
    return found


def events(connection: Connection, rule_id: str) -> list[Event]:
    """What became of a rule's versions, in the order in which it happened."""
    rows = connection.execute(
        "SELECT version, stage, share, cap, actor, note, at, rules_version FROM rule_events"
        " WHERE rule_id = %s ORDER BY event_id",
        (rule_id,),
    )
    return [Event(row[0], Stage(str(row[1])), *row[2:]) for row in rows]  # type: ignore[arg-type]


# Reading what rules are checked against


def read_rates(connection: Connection) -> Rates:
    """The rates that the next version will state."""
    row = connection.execute(
        "SELECT stated, as_of::text, rates FROM rule_rates ORDER BY rates_id DESC LIMIT 1"
    ).fetchone()
    if row is None:
        raise RuleError("no rates are stated; state some with `millrace rules rates EUR USD=1.08`")
    return Rates.of({"stated": row[0], "as_of": row[1], "rates": row[2]})


def read_lists(connection: Connection) -> dict[str, list[tuple[str, datetime | None]]]:
    """The lists' entries and when they expire, in event time."""
    found: dict[str, list[tuple[str, datetime | None]]] = {}
    for name, value, until in connection.execute(
        'SELECT list_name, value, expires_at FROM rule_lists ORDER BY list_name, value COLLATE "C"'
    ):
        found.setdefault(str(name), []).append((str(value), until))  # type: ignore[arg-type]
    return found


def read_context(connection: Connection) -> Context:
    """What a rule is checked against."""
    rates = read_rates(connection)
    names = {str(name) for (name,) in connection.execute("SELECT DISTINCT list_name FROM rule_lists")}
    return Context(names, rates.stated, rates.per_stated)


def read_windows(connection: Connection) -> list[str]:
    """The named windows, in the order of a decision's `rule_windows`."""
    return [str(name) for (name,) in connection.execute("SELECT name FROM rule_windows ORDER BY place")]


def unfilled_windows(connection: Connection) -> set[str]:
    """The named windows that the ledger's newest decisions do not all hold yet."""
    windows = read_windows(connection)
    if not windows:
        return set()
    row = connection.execute(
        "SELECT min(cardinality(rule_windows)) FROM"
        " (SELECT rule_windows FROM card_ledger ORDER BY occurred_at DESC LIMIT %s) AS newest",
        (NEWEST_DECISIONS,),
    ).fetchone()
    held = 0 if row is None or row[0] is None else int(str(row[0]))
    return set(windows[held:])


def in_force(connection: Connection) -> RuleSet:
    """The version of the rules that was published last."""
    version = versions.latest(connection, PIPELINE, [KIND])[KIND]
    if version == versions.NONE_PUBLISHED:
        return RuleSet(0, ())
    return load_rules(version, versions.body(connection, PIPELINE, KIND, version))


# Changing


def add(
    connection: Connection, rule_id: str, text: str, author: str, description: str = ""
) -> tuple[Stored, bool]:
    """Store a rule's text as its next version, a draft; returns it, and whether it is new.

    Windows that it names are kept from the next version of the set on. Raises `RuleError` (`CheckError`
    with places where it is the text).
    """
    if not NAME.fullmatch(rule_id) or len(rule_id) > NAME_MAX:
        raise RuleError(f"{rule_id!r} cannot be a rule's id; use kebab-case such as velocity-abroad")
    with _changing(connection, author):
        meaning = understand(text, read_context(connection))
        sha256 = content_hash(text)
        of_id = [rule for rule in stored(connection) if rule.id == rule_id]
        for rule in of_id:
            if rule.sha256 == sha256:
                return rule, False
        (highest,) = connection.execute("SELECT coalesce(max(place), 0) FROM rules").fetchone() or (0,)
        version, place = len(of_id) + 1, of_id[0].place if of_id else int(str(highest)) + 1
        connection.execute(
            "INSERT INTO rules (rule_id, version, place, text, sha256, description, author)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (rule_id, version, place, normal(text), sha256, description or meaning.reason, author),
        )
        _note(connection, rule_id, version, Stage.DRAFT, author)
        if _name_windows(connection, meaning, author):
            publish(connection, author)
        return find(connection, f"{rule_id}@{version}"), True


def move(
    connection: Connection,
    wanted: str,
    to: Stage,
    actor: str,
    *,
    share: float = 1.0,
    cap: float | None = CANARY_CAP,
    note: str = "",
) -> tuple[Stored, int | None]:
    """Take a rule to a stage; returns it, and the version of the set that was published, if one was.

    `share` and `cap` are a canary's; an active rule keeps `cap` until it is lifted (None). A version that
    becomes active retires the one before. Raises `RuleError` where it may not be.
    """
    with _changing(connection, actor):
        rule = find(connection, wanted)
        require(rule.standing, to, actor, share, cap)
        if to.is_in_force:
            understand(rule.text, read_context(connection))
        others = [r for r in stored(connection) if r.id == rule.id and r.version != rule.version]
        if to is Stage.CANARY and (other := next((r for r in others if r.stage is to), None)):
            raise RuleError(f"{other.key} is in canary already; retire it before, or take it back to shadow")
        has_cap = to in (Stage.CANARY, Stage.ACTIVE)
        share, cap = (share if to is Stage.CANARY else 1.0), (cap if has_cap else None)
        because = [_note(connection, rule.id, rule.version, to, actor, note, share=share, cap=cap)]
        if to is Stage.ACTIVE:
            for other in others:
                if other.stage is Stage.ACTIVE:
                    replaced = f"replaced by {rule.key}"
                    because.append(_note(connection, other.id, other.version, Stage.RETIRED, actor, replaced))
        published = publish(connection, actor, because) if to.is_in_force or rule.stage.is_in_force else None
        return find(connection, rule.key), published


def roll_back(connection: Connection, rule_id: str, actor: str) -> tuple[Stored | None, int | None]:
    """Take what is in force of a rule out of force, and put back what was active before it.

    Returns the version that is active again, None where there was none before, and the version published.
    """
    with _changing(connection, actor):
        rule_id = find(connection, rule_id).id
        of_id = [rule for rule in stored(connection) if rule.id == rule_id]
        live = [rule for rule in of_id if rule.stage.is_in_force]
        if not live:
            raise RuleError(f"nothing of {rule_id} is in force; there is nothing to roll back")
        tried = [rule for rule in live if rule.stage is not Stage.ACTIVE]
        # What is on trial goes first; what was active stays where it was.
        leaving = tried or live
        earlier = None
        if not tried:
            active = [e for e in events(connection, live[0].id) if e.stage is Stage.ACTIVE]
            earlier = next((e for e in reversed(active) if e.version != live[0].version), None)
        before = next((r for r in of_id if earlier and r.version == earlier.version), None)
        because = [
            _note(connection, rule.id, rule.version, Stage.RETIRED, actor, "rolled back") for rule in leaving
        ]
        if before is not None and earlier is not None:
            note, cap = f"rolled back from {live[0].key}", earlier.cap
            because.append(_note(connection, before.id, before.version, Stage.ACTIVE, actor, note, cap=cap))
        published = publish(connection, actor, because)
        return (find(connection, before.key) if before else None), published


def roll_back_to(connection: Connection, rules_version: int, actor: str) -> int:
    """Put the rules of an earlier version back into force, stages, shares and caps as they were.

    Lists and rates stay as they are now: they say what is known, not what was decided. Returns the version
    published. Raises `RuleError`.
    """
    with _changing(connection, actor):
        try:
            body = versions.body(connection, PIPELINE, KIND, rules_version)
        except LookupError:
            raise RuleError(f"there is no version {rules_version} of the rules") from None
        if isinstance(body, list):
            # From before there were texts: nothing of it stands in `rules`. It is published as it was.
            for rule in stored(connection):
                if rule.stage.is_in_force:
                    note = f"rolled back to version {rules_version}"
                    _note(connection, rule.id, rule.version, Stage.RETIRED, actor, note)
            return versions.publish(connection, PIPELINE, KIND, body, actor)
        wanted = {(entry["id"], entry["version"]): entry for entry in body["rules"]}
        note = f"rolled back to version {rules_version}"
        because = []
        for rule in stored(connection):
            entry = wanted.get((rule.id, rule.version))
            if entry is None:
                if rule.stage.is_in_force:
                    because.append(_note(connection, rule.id, rule.version, Stage.RETIRED, actor, note))
            elif (rule.stage, rule.share, rule.cap) != (entry["stage"], entry["share"], entry["cap"]):
                stage, share, cap = Stage(entry["stage"]), entry["share"], entry["cap"]
                because.append(
                    _note(connection, rule.id, rule.version, stage, actor, note, share=share, cap=cap)
                )
        return publish(connection, actor, because) or versions.latest(connection, PIPELINE, [KIND])[KIND]


def put_in_list(
    connection: Connection, name: str, values: Iterable[str], actor: str, until: datetime | None = None
) -> int | None:
    """Put values into a list, for ever or until an event time; returns the version published, if one was."""
    if not NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise RuleError(f"{name!r} cannot be a list's name; use kebab-case such as stolen-cards")
    with _changing(connection, actor), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO rule_lists (list_name, value, expires_at, actor) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (list_name, value) DO UPDATE SET expires_at = excluded.expires_at,"
            " actor = excluded.actor, at = now()",
            [(name, value, until, actor) for value in values],
        )
        return publish(connection, actor)


def take_from_list(connection: Connection, name: str, values: Sequence[str], actor: str) -> int | None:
    """Take values out of a list; returns the version published. Raises `RuleError` for one that is not there,
    and for the last one of a list that a rule in force asks."""
    with _changing(connection, actor):
        entries = {value for value, _ in read_lists(connection).get(name, [])}
        if missing := [value for value in values if value not in entries]:
            ends, _ = suggestion(missing[0], entries)
            raise RuleError(f"{missing[0]} is not in list {name}; {ends}")
        connection.execute(
            "DELETE FROM rule_lists WHERE list_name = %s AND value = ANY (%s)", (name, list(values))
        )
        return publish(connection, actor)


def state_rates(
    connection: Connection, stated: str, rates: Mapping[str, str], as_of: date, actor: str
) -> int | None:
    """State what one major unit of `stated` is worth in other currencies; returns the version published."""
    with _changing(connection, actor):
        Rates.of({"stated": stated, "as_of": str(as_of), "rates": rates})
        connection.execute(
            "INSERT INTO rule_rates (stated, as_of, rates, actor) VALUES (%s, %s, %s, %s)",
            (stated, as_of, Jsonb(dict(rates)), actor),
        )
        return publish(connection, actor)


def publish(connection: Connection, actor: str, because: Sequence[int] = ()) -> int | None:
    """Publish the set as it now stands; None where it is what was published last.

    `because`: the events that changed it; they remember the version. Raises `RuleError` where the processor
    could not load it, and nothing has changed then.
    """
    body = set_body(connection)
    last = versions.latest(connection, PIPELINE, [KIND])[KIND]
    if last and versions.body(connection, PIPELINE, KIND, last) == body:
        return None
    load_rules(last + 1, body)
    version = versions.publish(connection, PIPELINE, KIND, body, actor)
    connection.execute(
        "UPDATE rule_events SET rules_version = %s WHERE event_id = ANY (%s)", (version, list(because))
    )
    return version


def set_body(connection: Connection) -> dict[str, Any]:
    """The set as it now stands, in the form that is published."""
    rates = connection.execute(
        "SELECT stated, as_of::text, rates FROM rule_rates ORDER BY rates_id DESC LIMIT 1"
    ).fetchone()
    assert rates is not None
    lists = {
        name: [[value, None if until is None else _ms(until)] for value, until in entries]
        for name, entries in read_lists(connection).items()
    }
    lists_of(lists)
    return {
        "language": LANGUAGE,
        "currency": {"stated": rates[0], "as_of": rates[1], "rates": rates[2]},
        "lists": lists,
        "windows": read_windows(connection),
        "rules": [
            {
                "id": rule.id,
                "version": rule.version,
                "text": rule.text,
                "sha256": rule.sha256,
                "stage": str(rule.stage),
                "share": rule.share,
                "cap": rule.cap,
            }
            for rule in stored(connection)
            if rule.stage.is_in_force
        ],
    }


def record_backtest(
    connection: Connection,
    rule: Stored,
    since: datetime,
    until: datetime,
    report: Mapping[str, Any],
    actor: str,
) -> Stored:
    """Keep a report, which takes a draft on; the report of a rule further on is kept beside it."""
    with _changing(connection, actor):
        connection.execute(
            "INSERT INTO rule_backtests (rule_id, version, since, until, report, actor)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (rule.id, rule.version, since, until, Jsonb(dict(report)), actor),
        )
        now = find(connection, rule.key)
        if now.stage is Stage.DRAFT:
            _note(connection, rule.id, rule.version, Stage.BACKTESTED, actor)
        return find(connection, rule.key)


def last_backtest(connection: Connection, rule: Stored) -> dict[str, Any] | None:
    """The report that was made last of this version."""
    row = connection.execute(
        "SELECT report FROM rule_backtests WHERE rule_id = %s AND version = %s"
        " ORDER BY backtest_id DESC LIMIT 1",
        (rule.id, rule.version),
    ).fetchone()
    return None if row is None else dict(row[0])  # type: ignore[call-overload]


@contextmanager
def _changing(connection: Connection, actor: str) -> Iterator[None]:
    """One transaction, alone among those that change rules."""
    if not actor.strip():
        raise RuleError("say who you are with --as NAME")
    with connection.transaction():
        connection.execute("LOCK TABLE rule_events IN SHARE ROW EXCLUSIVE MODE")
        yield


def _note(
    connection: Connection,
    rule_id: str,
    version: int,
    stage: Stage,
    actor: str,
    note: str = "",
    *,
    share: float = 1.0,
    cap: float | None = None,
) -> int:
    row = connection.execute(
        "INSERT INTO rule_events (rule_id, version, stage, share, cap, actor, note)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING event_id",
        (rule_id, version, str(stage), share, cap, actor, note),
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


def _name_windows(connection: Connection, meaning: Meaning, actor: str) -> bool:
    """Give windows that a rule names for the first time their places."""
    known = read_windows(connection)
    new = [window for window in meaning.windows if window not in known]
    for n, window in enumerate(new, len(known) + 1):
        if n > NAMED_MAX:
            raise RuleError(
                f"{window} cannot be kept: {NAMED_MAX} windows are named already; use one of"
                f" {', '.join(known)}"
            )
        found = named_window(window)
        assert found is not None and found[0] in NAMEABLE
        connection.execute(
            "INSERT INTO rule_windows (place, name, actor) VALUES (%s, %s, %s)", (n, window, actor)
        )
    return bool(new)


def _ms(at: datetime) -> int:
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
