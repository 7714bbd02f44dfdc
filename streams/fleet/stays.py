"""A truck's stay in one fence: entered and left only when two consecutive fixes agree.

    out -> entering -> in -> exiting -> out

A fix inside starts *entering*; the next one inside confirms, any other fix withdraws. A fix farther beyond
the edge than its accuracy plus the fence's buffer starts *exiting*; the next such fix confirms, any other
one withdraws. What happened has the time and place of the first of the two fixes.
"""

from __future__ import annotations

import msgspec

ENTERING = "entering"
IN = "in"
EXITING = "exiting"


class Spot(msgspec.Struct, array_like=True, frozen=True):
    """When and where a fix was taken."""

    occurred_at: int
    latitude: float
    longitude: float


class Stay(msgspec.Struct, array_like=True, frozen=True):
    """A truck in, entering or leaving a fence; a truck that is out has none.

    `since` is the first fix of an entering or exiting that waits for its second. `started_by` and
    `started_at` are the id and time of the alert that began the stay; null while entering.
    """

    phase: str
    since: Spot | None = None
    started_by: str | None = None
    started_at: int | None = None


def entered(stay: Stay | None, spot: Spot) -> tuple[Stay, Spot | None]:
    """The stay after a fix inside, and the spot of the enter that it confirms, if it does."""
    if stay is None:
        return Stay(ENTERING, since=spot), None
    if stay.phase == ENTERING:
        return stay, stay.since
    if stay.phase == EXITING:
        return Stay(IN, started_by=stay.started_by, started_at=stay.started_at), None
    return stay, None


def left(stay: Stay, spot: Spot, beyond: bool) -> tuple[Stay | None, Spot | None]:
    """The stay after a fix outside, and the spot of the exit that it confirms, if it does.

    `beyond`: whether the fix is farther from the edge than its accuracy plus the fence's buffer.
    """
    if stay.phase == ENTERING:
        return None, None
    if not beyond:
        return (stay if stay.phase == IN else Stay(IN, None, stay.started_by, stay.started_at)), None
    if stay.phase == IN:
        return Stay(EXITING, spot, stay.started_by, stay.started_at), None
    return None, stay.since
