"""What every domain's topics may carry beside their events."""

from __future__ import annotations

from schemas.declare import Topic

TICK = Topic(
    domain="platform",
    name="tick",
    key="event_id",
    owner="platform",
    about="Ticks: no topic of its own, but records among the events of topics that declare tick_ms",
)
