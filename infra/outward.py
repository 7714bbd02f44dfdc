"""What the outside is told of a decision: the same body for webhooks and for whoever asks for missed ones."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

DECISION_MADE = "decision.made"
TEST = "webhook.test"

FIELDS = (
    "event_id", "tenant", "occurred_at", "merchant_id", "terminal_id", "card_id", "amount_minor", "currency",
    "decision", "risk", "reasons", "fired_rules", "rules_version", "model_version",
)  # fmt: skip
"""Of the ledger's row: what a merchant may act on, and not how the windows looked."""

LEDGER_COLUMNS = ", ".join(f"l.{name}" for name in FIELDS)
LEDGER_JOIN = (
    "card_ledger l ON l.occurred_at = o.occurred_at AND l.tenant = o.tenant AND l.event_id = o.event_id"
)


def message(row: Mapping[str, Any], made_at: datetime) -> dict[str, Any]:
    """The body, as Standard Webhooks has it, of a row with `FIELDS`. `made_at`: when it was stored."""
    data = {name: row[name] for name in FIELDS}
    data["occurred_at"] = iso(row["occurred_at"])
    data["reasons"], data["fired_rules"] = list(row["reasons"]), list(row["fired_rules"])
    return {"type": DECISION_MADE, "timestamp": iso(made_at), "data": data}


def iso(at: datetime) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
