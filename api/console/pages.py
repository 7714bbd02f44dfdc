"""The table of the console's pages: what the navigation shows, in which order, and to whom."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A place in the navigation of those who have its scope."""

    name: str
    title: str
    path: str
    scope: str = "ops:read"


PAGES: tuple[Page, ...] = (
    Page(name="pipelines", title="Pipelines", path="/console"),
    Page(name="events", title="Events", path="/console/events"),
    Page(name="trace", title="Trace", path="/console/trace"),
    Page(name="dead-letters", title="Dead letters", path="/console/dead-letters"),
    Page(name="replays", title="Replays", path="/console/replays"),
    Page(name="rules", title="Rules", path="/console/rules", scope="scoring:read"),
    Page(name="decisions", title="Decisions", path="/console/decisions", scope="scoring:read"),
    Page(name="models", title="Models", path="/console/models", scope="scoring:read"),
    Page(name="webhooks", title="Webhooks", path="/console/webhooks"),
    Page(name="schemas", title="Schemas", path="/console/schemas"),
    Page(name="users", title="Users", path="/console/users", scope="identity:read"),
    Page(name="keys", title="Keys", path="/console/keys", scope="identity:read"),
    Page(name="audit", title="Audit", path="/console/audit", scope="audit:read"),
)
