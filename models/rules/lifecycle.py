"""A rule's way into force: draft, backtested, approved, shadow, canary, active, retired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from models.rules.problem import RuleError

CANARY_CAP = 0.01
"""Which share of the transactions a rule may decline where nobody says otherwise."""


class Stage(StrEnum):
    """Where a version of a rule stands."""

    DRAFT = "draft"
    BACKTESTED = "backtested"
    APPROVED = "approved"
    SHADOW = "shadow"
    CANARY = "canary"
    ACTIVE = "active"
    RETIRED = "retired"

    @property
    def is_in_force(self) -> bool:
        """Whether the processor sees it."""
        return self in (Stage.SHADOW, Stage.CANARY, Stage.ACTIVE)


NEXT: Mapping[Stage, tuple[Stage, ...]] = {
    Stage.DRAFT: (Stage.BACKTESTED, Stage.RETIRED),
    Stage.BACKTESTED: (Stage.BACKTESTED, Stage.APPROVED, Stage.RETIRED),
    Stage.APPROVED: (Stage.SHADOW, Stage.RETIRED),
    Stage.SHADOW: (Stage.CANARY, Stage.RETIRED),
    Stage.CANARY: (Stage.CANARY, Stage.SHADOW, Stage.ACTIVE, Stage.RETIRED),
    Stage.ACTIVE: (Stage.ACTIVE, Stage.SHADOW, Stage.RETIRED),
    Stage.RETIRED: (),
}
"""Active to active: its cap is changed or lifted. Only a rollback brings back what was retired."""

COMMANDS: Mapping[Stage, str] = {
    Stage.BACKTESTED: "backtest",
    Stage.APPROVED: "approve",
    Stage.SHADOW: "shadow",
    Stage.CANARY: "canary",
    Stage.ACTIVE: "activate",
    Stage.RETIRED: "retire",
}


@dataclass(slots=True, frozen=True)
class Standing:
    """What a move depends on."""

    key: str
    stage: Stage
    author: str
    missing_windows: tuple[str, ...] = ()
    """Named windows that the ledger's newest decisions do not hold yet: the rule is warming."""


def require(standing: Standing, to: Stage, actor: str, share: float = 1.0, cap: float | None = None) -> None:
    """Raise `RuleError` where this person may not take the rule there."""
    key, stage = standing.key, standing.stage
    if not actor.strip():
        raise RuleError("say who you are with --as NAME")
    if to not in NEXT[stage]:
        after = [f"`millrace rules {COMMANDS[s]} {key}`" for s in NEXT[stage]]
        remedy = " or ".join(after) if after else "add its text again, or use `millrace rules rollback`"
        raise RuleError(f"{key} is {stage} and cannot become {to}; next is {remedy}")
    if to is Stage.APPROVED and actor == standing.author:
        raise RuleError(f"{key} was written by {actor}; let somebody else approve it")
    if to.is_in_force and standing.missing_windows:
        windows = ", ".join(standing.missing_windows)
        raise RuleError(f"{key} is warming: decisions do not hold {windows} yet; try again when they do")
    if to is Stage.CANARY and not 0 < share <= 1:
        raise RuleError(f"{key}: a canary's share is above 0 and at most 1; {share} is not")
    if cap is not None and not 0 <= cap <= 1:
        raise RuleError(f"{key}: a cap is a share from 0 to 1; {cap} is not")
