"""A fix as devices send it in JSON, over MQTT or HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from schemas.fleet.limits import LIMITS, NAME, NAME_RULE, out_of_range

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RULE = "is {value!r}; send milliseconds since 1970 UTC, or ISO 8601 text with a zone"


def milliseconds(value: Any) -> int:
    """Milliseconds since 1970 UTC of such an integer, or of ISO 8601 text with a zone. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(_RULE.format(value=value)) from None
        if moment.tzinfo is not None:
            return (moment - _EPOCH) // _MILLISECOND
    raise ValueError(_RULE.format(value=value))


class Telemetry(BaseModel):
    """One fix of a truck's receiver with the engine's readings. Values may still be out of range."""

    model_config = ConfigDict(strict=True, extra="forbid")

    event_id: str | None = Field(
        None,
        description="The device's own id of the message; the same message sent again bears the same id.",
        examples=["0194-truck-7-1001"],
    )
    tenant: str | None = Field(None, description="Owner of the truck.", examples=["default"])
    truck_id: str | None = Field(None, description="The truck.", examples=["truck-7"])
    fleet_id: str | None = Field(
        None, description="The fleet that the truck drives for.", examples=["harbour"]
    )
    occurred_at: Annotated[int, BeforeValidator(milliseconds)] = Field(
        description="When the fix was taken: milliseconds since 1970 UTC, or ISO 8601 text with a zone.",
        examples=["2026-01-01T09:00:00Z"],
        json_schema_extra={"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]},
    )
    sequence: int = Field(description="Counter of the device.", examples=[1001], lt=2**63, ge=-(2**63))
    latitude: float = Field(description="Degrees north, WGS 84.", examples=[51.8921])
    longitude: float = Field(description="Degrees east, WGS 84.", examples=[4.4312])
    speed_kmh: float | None = Field(None, description="Speed over ground.", examples=[42.5])
    heading_deg: float | None = Field(
        None, description="Course over ground, degrees from north.", examples=[181]
    )
    accuracy_m: float | None = Field(None, description="Horizontal accuracy.", examples=[4])
    engine_temperature_c: float | None = Field(None, description="Coolant temperature.", examples=[91.5])
    odometer_m: float | None = Field(
        None, description="Distance driven since the truck was built.", examples=[1.8e8]
    )
    fuel_pct: float | None = Field(None, description="Fuel in per cent of the tank.", examples=[63])
    load_kg: float | None = Field(None, description="Load.", examples=[12400])

    def event(self, *, event_id: str, tenant: str, truck_id: str) -> dict[str, Any]:
        """The event for topic truck-telemetry; what the device left out is given by the arguments."""
        event = self.model_dump()
        for name, default in (("event_id", event_id), ("tenant", tenant), ("truck_id", truck_id)):
            if event[name] is None:
                event[name] = default
        return event


class CheckedTelemetry(Telemetry):
    """A fix whose every value is in range."""

    truck_id: str = Field(description="The truck.", examples=["truck-7"])

    @field_validator(*LIMITS)
    @classmethod
    def _in_range(cls, value: float | None, info: ValidationInfo) -> float | None:
        reason = out_of_range(str(info.field_name), value) if value is not None else None
        if reason is not None:
            raise ValueError(reason)
        return value

    @field_validator("truck_id", "tenant", "fleet_id")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(f"is {value!r}; {NAME_RULE}")
        return value

    @field_validator("event_id")
    @classmethod
    def _is_id(cls, value: str | None) -> str | None:
        if value is not None and not 1 <= len(value) <= 200:
            raise ValueError("has no or too many characters; send 1 to 200, or leave event_id out")
        return value
