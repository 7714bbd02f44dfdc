"""What is known of each card, and for how long: its transactions of the last 8 days, by event time.

`streams.fraud.histories` keeps them. Windows are exact and by event time: a window of width w of a
transaction at t covers (t - w, t], itself included, whatever order the records came in. Three bounds keep
memory flat, none reads a clock:

- per card, by event time: transactions older than `HORIZON_MS` behind the card's newest are forgotten.
  A transaction up to `LATENESS_MS` behind it still finds all its windows.
- idle cards, by append time: a card without a record for `IDLE_MS` of the topic's own append time is
  forgotten. Event time cannot decide this: history loaded beside live traffic would be idle at once.
- `CARDS_MAX` cards a partition: the one longest without a record goes first.

All three depend on the log alone, so a restart, a replay and any cut into batches forget the same.
"""

from __future__ import annotations

from schemas.declare import DAY_MS, FUTURE_MS

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
WINDOWS_MS = {"10m": 10 * MINUTE_MS, "1h": HOUR_MS, "24h": DAY_MS, "7d": 7 * DAY_MS}
LONGEST_MS = max(WINDOWS_MS.values())
LATENESS_MS = DAY_MS
HORIZON_MS = LONGEST_MS + LATENESS_MS
"""What lies this far behind a card's newest is forgotten; what comes from there finds no windows."""
IDLE_MS = HORIZON_MS + FUTURE_MS
CARDS_MAX = 500_000
CHUNK_BYTES = 1 << 20
