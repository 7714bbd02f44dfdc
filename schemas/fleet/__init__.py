"""The fleet pipeline: telemetry of trucks in, positions and alerts out."""

from __future__ import annotations

from schemas.declare import DAY_MS, Evidence, Merge, Pipeline, Processor, Table, Topic

TRUCK_TELEMETRY = Topic(
    domain="fleet",
    name="truck-telemetry",
    key="truck_id",
    owner="fleet",
    about="Fixes and engine readings as the trucks sent them",
    retention_ms=90 * DAY_MS,
)
TRUCK_POSITIONS = Topic(
    domain="fleet",
    name="truck-positions",
    key="truck_id",
    owner="fleet",
    about="Checked fixes with the fences they lie in",
)
TRUCK_ALERTS = Topic(
    domain="fleet",
    name="truck-alerts",
    key="truck_id",
    owner="fleet",
    about="Fences entered and left, engines too hot and cool again",
    retention_ms=365 * DAY_MS,
)

GEOFENCING = Processor(
    name="fleet-geofencing",
    sources=(TRUCK_TELEMETRY,),
    outputs=(TRUCK_POSITIONS, TRUCK_ALERTS),
    stateful=True,
)

POSITIONS_TABLE = Table(
    name="truck_positions",
    topic=TRUCK_POSITIONS,
    key=("tenant", "truck_id", "occurred_at", "event_id"),
    columns=(
        "event_id",
        "tenant",
        "occurred_at",
        "truck_id",
        "fleet_id",
        "sequence",
        "latitude",
        "longitude",
        "speed_kmh",
        "heading_deg",
        "accuracy_m",
        "engine_temperature_c",
        "odometer_m",
        "fuel_pct",
        "load_kg",
        "fences",
        "is_late",
        "duplicate_of",
        "code_version",
        "fences_version",
    ),
    time="occurred_at",
)
LATEST_POSITION_TABLE = Table(
    name="latest_position",
    topic=TRUCK_POSITIONS,
    key=("tenant", "truck_id"),
    columns=tuple(c for c in POSITIONS_TABLE.columns if c not in ("is_late", "duplicate_of")),
    merge=Merge.NEWEST,
    order_by="occurred_at",
)
ALERTS_TABLE = Table(
    name="truck_alerts",
    topic=TRUCK_ALERTS,
    key=("event_id",),
    columns=(
        "event_id",
        "tenant",
        "occurred_at",
        "truck_id",
        "fleet_id",
        "kind",
        "cause",
        "fence_id",
        "fence_name",
        "confirmed_at",
        "started_by",
        "started_at",
        "latitude",
        "longitude",
        "engine_temperature_c",
        "input_id",
        "is_late",
        "code_version",
        "fences_version",
    ),
)

PIPELINE = Pipeline(
    name="fleet",
    about="Telemetry of trucks: positions, geofences, overheating engines",
    inputs=(TRUCK_TELEMETRY,),
    processors=(GEOFENCING,),
    tables=(POSITIONS_TABLE, LATEST_POSITION_TABLE, ALERTS_TABLE),
    evidence=(
        Evidence(
            topic=TRUCK_TELEMETRY,
            table="truck_positions",
            column="event_id",
            sums=(("sequence", "sequence"),),
        ),
    ),
)
