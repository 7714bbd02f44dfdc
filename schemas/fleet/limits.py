"""The ranges of a fix's values: what the gateway refuses and what the processor calls invalid."""

from __future__ import annotations

import re

LIMITS: dict[str, tuple[float, float]] = {
    "occurred_at": (946_684_800_000, 253_402_300_799_999),  # 2000 to 9999: a receiver that lost its clock
    "latitude": (-90.0, 90.0),
    "longitude": (-180.0, 180.0),
    "sequence": (0, 2**53),
    "speed_kmh": (0.0, 250.0),
    "heading_deg": (0.0, 360.0),
    "accuracy_m": (0.0, 10_000.0),
    "engine_temperature_c": (-60.0, 200.0),
    "odometer_m": (0.0, 1e10),
    "fuel_pct": (0.0, 100.0),
    "load_kg": (0.0, 200_000.0),
}
"""Field to (lowest, highest), both allowed. NaN lies in no range. Absent optional values are not checked."""

NAME = re.compile(r"[^\x00-\x1f\x7f/+#]{1,64}")
"""What a tenant, a truck or a fence may be called: they are parts of alert ids and levels of MQTT topics."""

NAME_RULE = "use 1 to 64 characters without /, +, # and control characters"


def out_of_range(field: str, value: float) -> str | None:
    """Why `value` cannot be a fix's `field`, or None where it can."""
    low, high = LIMITS[field]
    if low <= value <= high:
        return None
    return f"{field} is {value:.15g}; send a value from {low:.15g} to {high:.15g}"
