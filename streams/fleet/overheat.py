"""Engines that stay too hot: samples all above 100 °C, no gap above a minute, five minutes of event time.

A gap or a sample that is not hot starts the run anew. One alert an episode: after it nothing is raised
until a sample below 98 °C has cleared it; a gap does not clear, for nobody saw the engine cool.
"""

from __future__ import annotations

import msgspec

from streams.fleet.stays import Spot

HOT_ABOVE_C = 100.0
CLEAR_BELOW_C = 98.0
SUSTAINED_MS = 300_000
MAX_GAP_MS = 60_000


class Heat(msgspec.Struct, array_like=True, frozen=True):
    """A run of hot samples from `first` to `last_ms`; `raised_by` is its alert's id once it has one."""

    first: Spot
    last_ms: int
    raised_by: str | None = None

    def raised(self, alert_id: str) -> Heat:
        """The run once its alert stands."""
        return Heat(self.first, self.last_ms, alert_id)


def heated(heat: Heat | None, spot: Spot, temperature_c: float) -> tuple[Heat | None, bool, bool]:
    """The run after a sample, whether the sample raises the alert, and whether it clears one."""
    if heat is not None and heat.raised_by is not None:
        return (None, False, True) if temperature_c < CLEAR_BELOW_C else (heat, False, False)
    if not temperature_c > HOT_ABOVE_C:
        return None, False, False
    if heat is None or spot.occurred_at - heat.last_ms > MAX_GAP_MS:
        return Heat(spot, spot.occurred_at), False, False
    run = Heat(heat.first, spot.occurred_at)
    return run, run.last_ms - run.first.occurred_at >= SUSTAINED_MS, False
