"""A version of the rules, as published and ready to be used: which rules fire, and which only would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.rules import conditions_v1, one
from models.rules.batch import Bools, Columns, Program
from models.rules.checking import Context, Meaning, understand
from models.rules.currencies import Rates
from models.rules.lists import Lists, lists_of
from models.rules.problem import RuleError
from models.rules.syntax import normal
from models.rules.vocabulary import NAMED_MAX, named_window

LANGUAGE = 1
"""Rises when a text would mean something else."""
ONE_BY_ONE_MAX = 64
"""Up to so many rows are decided one by one: by column, 200 rules cost 0.9 ms however few there are."""
STAGES_IN_FORCE = ("shadow", "canary", "active")
NO_RATES = Rates("EUR", {}, "")


def content_hash(text: str) -> str:
    """SHA-256 of a rule: of its normal text, so that spaces and capitals make no other rule."""
    return hashlib.sha256(f"millrace rule {LANGUAGE}\n{normal(text)}".encode()).hexdigest()


@dataclass(slots=True, frozen=True)
class Rule:
    """A rule in force. `version` 0: one from before rules had versions of their own.

    `share`: of the cards, on which a canary decides. `cap`: which share of the transactions it may decline.
    """

    id: str
    version: int
    meaning: Meaning
    stage: str = "active"
    share: float = 1.0
    cap: float | None = None

    @property
    def key(self) -> str:
        """As decisions name it."""
        return f"{self.id}@{self.version}" if self.version else self.id


class Fired(NamedTuple):
    """What came of the rules for a batch, each in the order of the set, bool (rows,) of where.

    `decides`: rules that fire. `shadow`: rules that hold without effect. `would`: rules that would fire were
    every rule in shadow or canary active; equal to `decides` where nothing is.
    """

    decides: list[tuple[Rule, Bools]]
    shadow: list[tuple[Rule, Bools]]
    would: list[tuple[Rule, Bools]]


class RuleSet:
    """A version of the rules. `windows`: the named windows that decisions hold, in their order."""

    def __init__(
        self, version: int, rules: Sequence[Rule], rates: Rates = NO_RATES, lists: Lists | None = None,
        windows: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.version = version
        self.rules = tuple(rules)
        self.rates, self.lists = rates, lists or {}
        self.windows = tuple(windows)
        conditions = [rule.meaning.condition for rule in rules]
        self.program = Program(conditions, rates, self.lists)
        self._one = one.compiled(conditions, rates, self.lists)
        self._reads = one.read_by(conditions)
        newest: dict[str, int] = {}
        for rule in rules:
            newest[rule.id] = max(rule.version, newest.get(rule.id, 0))
        self._is_newest = [rule.version == newest[rule.id] for rule in rules]
        self._canary = {rule.id: rule for rule in rules if rule.stage == "canary"}
        self.is_tried = any(rule.stage != "active" for rule in rules)
        """Whether a rule is in shadow or canary."""

    @property
    def named(self) -> list[tuple[str, int]]:
        """Function and width (ms) of each named window, in their order."""
        return [found for window in self.windows if (found := named_window(window)) is not None]

    def fired(self, columns: Columns) -> Fired:
        """Which rules hold for the rows, and on which of them they decide."""
        fired = Fired([], [], [])
        if not self.rules:
            return fired
        held = self._held(columns)
        for n in np.flatnonzero(held.any(axis=1)).tolist():
            rule, where = self.rules[n], held[n]
            if not self.is_tried:
                fired.decides.append((rule, where))
                fired.would.append((rule, where))
                continue
            decides = self._decides(rule, where, columns)
            if decides.any():
                fired.decides.append((rule, decides))
            silent = where & ~decides
            if silent.any():
                fired.shadow.append((rule, silent))
            if self._is_newest[n]:
                fired.would.append((rule, where))
        return fired

    def _held(self, columns: Columns) -> Bools:
        """Where each rule holds: bool (rules, rows)."""
        if len(columns) > ONE_BY_ONE_MAX:
            return self.program.held(columns)
        return np.array([self._one(row) for row in columns.rows(self._reads)], dtype=bool).T

    def _decides(self, rule: Rule, where: Bools, columns: Columns) -> Bools:
        """On which rows a rule that holds also counts."""
        if rule.stage == "shadow":
            return np.zeros_like(where)
        canary = self._canary.get(rule.id)
        if canary is None:
            return where
        of_canary = _in_share(canary, where, columns)
        return where & (of_canary if rule is canary else ~of_canary)


def _in_share(rule: Rule, where: Bools, columns: Columns) -> Bools:
    """Which of the rows are of cards on which a canary decides; looked at where `where` says."""
    found = np.zeros_like(where)
    cards, card_codes = columns.distinct("card_id")
    tenants, tenant_codes = columns.distinct("tenant")
    known: dict[tuple[int, int], bool] = {}
    for row in np.flatnonzero(where).tolist():
        codes = int(card_codes[row]), int(tenant_codes[row])
        if codes not in known:
            known[codes] = in_share(rule.id, rule.share, tenants[codes[1]], cards[codes[0]])
        found[row] = known[codes]
    return found


def in_share(rule_id: str, share: float, tenant: str | None, card: str | None) -> bool:
    """Whether a card is among the share of cards that a rule's canary decides on. The same for all versions
    of the rule: a card stays where it is, and a larger share keeps the cards of a smaller one."""
    digest = hashlib.sha256(f"{rule_id}\0{tenant}\0{card}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < round(share * 2**32)


def body_of(
    texts: Mapping[str, str],
    *,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    lists: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    windows: Sequence[str] = (),
    rates: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `load_rules` takes, from texts by the rules' ids: each in its first version, and active.

    `stages` says otherwise of some: `stage`, `share`, `cap`. An id may be followed by @ and a version.
    """
    entries = []
    for key, text in texts.items():
        id_, _, version = key.partition("@")
        entry = {"id": id_, "version": int(version or 1), "text": text, "sha256": content_hash(text)}
        in_force = {"stage": "active", "share": 1.0, "cap": None}
        entries.append({**entry, **in_force, **(stages or {}).get(key, {})})
    return {
        "language": LANGUAGE,
        "currency": {"stated": "EUR", "as_of": "2025-06-30", "rates": dict(rates or {})},
        "lists": {name: [list(entry) for entry in entries_] for name, entries_ in (lists or {}).items()},
        "windows": list(windows),
        "rules": entries,
    }


def load_rules(version: int, body: Any) -> RuleSet:
    """Make a published version usable. Raises `RuleError` where it cannot be.

    A list is a version from before there was a language (`conditions_v1`).
    """
    try:
        return _loaded(version, body)
    except RuleError as error:
        raise RuleError(f"rules version {version}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise RuleError(
            f"rules version {version}: the body is not one that `millrace rules` publishes ({error!r});"
            " publish the version of before again with `millrace rules rollback --to N`"
        ) from None


def _loaded(version: int, body: Any) -> RuleSet:
    if isinstance(body, list):
        found = [Rule(id_, 0, meaning) for id_, meaning in conditions_v1.meanings(body)]
        return RuleSet(version, found)
    if body["language"] != LANGUAGE:
        raise RuleError(f"it is of language {body['language']}, and this code knows {LANGUAGE}; update it")
    rates, lists = Rates.of(body["currency"]), lists_of(body["lists"])
    context = Context(lists, rates.stated, rates.per_stated)
    rules = [_rule(entry, context) for entry in body["rules"]]
    windows = body["windows"]
    if len(windows) > NAMED_MAX or any(named_window(window) is None for window in windows):
        raise RuleError(f"its windows {windows} cannot be kept; name at most {NAMED_MAX}")
    keys = [rule.key for rule in rules]
    for rule in rules:
        if keys.count(rule.key) > 1:
            raise RuleError(f"{rule.key} stands in it twice")
        if missing := set(rule.meaning.windows) - set(windows):
            raise RuleError(f"{rule.key} needs {', '.join(sorted(missing))}, which it does not keep")
    return RuleSet(version, rules, rates, lists, windows)


def _rule(entry: Mapping[str, Any], context: Context) -> Rule:
    key = f"{entry['id']}@{entry['version']}"
    if content_hash(entry["text"]) != entry["sha256"]:
        raise RuleError(f"{key}: its text is not the one that was approved, by its hash; publish it again")
    if entry["stage"] not in STAGES_IN_FORCE:
        raise RuleError(f"{key}: {entry['stage']!r} is no stage in force; use {', '.join(STAGES_IN_FORCE)}")
    try:
        meaning = understand(entry["text"], context)
    except RuleError as error:
        raise RuleError(f"{key}: {error}") from None
    return Rule(entry["id"], entry["version"], meaning, entry["stage"], entry["share"], entry["cap"])


def combined(
    model_risk: npt.NDArray[np.float64], fired: Sequence[tuple[Rule, Bools]]
) -> tuple[npt.NDArray[np.float64], Bools, Bools]:
    """Risk (to 4 places) of model and rules together, and where a rule declines and where one asks for
    review.

    1 - (1 - model) * product of (1 - score), in the order of the rules: it is rounded as it is multiplied.
    """
    safe = 1.0 - model_risk
    declined, reviewed = np.zeros(len(safe), dtype=bool), np.zeros(len(safe), dtype=bool)
    for rule, where in fired:
        if rule.meaning.score:
            safe = np.where(where, safe * (1.0 - rule.meaning.score), safe)
        if rule.meaning.action is not None:
            (declined if rule.meaning.action == "decline" else reviewed)[where] = True
    risk = np.rint(np.clip(1.0 - safe, 0.0, 1.0) * 10_000) / 10_000
    return risk, declined, reviewed
