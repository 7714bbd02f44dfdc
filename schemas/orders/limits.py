"""What an order event or a stock receipt may hold at most, for connectors and processors alike."""

from __future__ import annotations

from typing import Final

IDENTIFIER: Final = r"^[^\s/\x00-\x1f\x7f]([^/\x00-\x1f\x7f]{0,62}[^\s/\x00-\x1f\x7f])?$"
"""An order id, SKU, customer id or tenant: 1 to 64 characters, no slash, no blank at either end.

Ids are joined by slashes into the ids of commands and stand in the paths of URLs.
"""
EVENT_ID: Final = r"^[^\x00-\x1f\x7f]{1,200}$"
"""An event id: 1 to 200 characters, none of them a control character (Postgres stores no NUL)."""
CURRENCY: Final = r"^[A-Z]{3}$"
"""An ISO 4217 code."""

MAX_LINES: Final = 5_000
MAX_QUANTITY: Final = 1_000_000
MAX_UNIT_PRICE_MINOR: Final = 1_000_000_000
"""With the two above: the largest total of an order, 5e18, still fits a signed 64-bit integer."""
MAX_EVENTS_PER_ORDER: Final = 64
"""How many different event ids one order remembers; more are refused, so that its state stays small."""

PLACED: Final = "placed"
CANCELLED: Final = "cancelled"
RETURNED: Final = "returned"
KINDS: Final = (PLACED, CANCELLED, RETURNED)
