-- Fleet: positions, the newest one of each truck, alerts; what analysts ask of them; the first fences.

CREATE EXTENSION IF NOT EXISTS postgis;

SELECT millrace_time_table('truck_positions', 'occurred_at', interval '1 day', $ddl$
    event_id             text             NOT NULL,
    tenant               text             NOT NULL,
    occurred_at          timestamptz      NOT NULL,
    truck_id             text             NOT NULL,
    sequence             bigint           NOT NULL,
    latitude             double precision NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude            double precision NOT NULL CHECK (longitude BETWEEN -180 AND 180),
    speed_kmh            double precision CHECK (speed_kmh BETWEEN 0 AND 250),
    heading_deg          double precision CHECK (heading_deg BETWEEN 0 AND 360),
    accuracy_m           double precision CHECK (accuracy_m BETWEEN 0 AND 10000),
    engine_temperature_c double precision CHECK (engine_temperature_c BETWEEN -60 AND 200),
    odometer_m           double precision CHECK (odometer_m BETWEEN 0 AND 1e10),
    fuel_pct             double precision CHECK (fuel_pct BETWEEN 0 AND 100),
    load_kg              double precision CHECK (load_kg BETWEEN 0 AND 200000),
    fences               text[]           NOT NULL,
    is_late              boolean          NOT NULL,
    duplicate_of         text,
    code_version         integer          NOT NULL,
    fences_version       integer          NOT NULL CHECK (fences_version >= 0),
    source_partition     integer          NOT NULL,
    source_offset        bigint           NOT NULL,
    -- COPY names its columns and not this one: Postgres makes it of the two above.
    position             geography(Point, 4326) GENERATED ALWAYS AS
        (ST_SetSRID(ST_MakePoint(longitude, latitude), 4326)::geography) STORED,
    PRIMARY KEY (tenant, truck_id, occurred_at, event_id)
$ddl$);
CREATE INDEX truck_positions_by_event ON truck_positions (event_id);

CREATE TABLE latest_position (
    event_id             text             NOT NULL,
    tenant               text             NOT NULL,
    occurred_at          timestamptz      NOT NULL,
    truck_id             text             NOT NULL,
    sequence             bigint           NOT NULL,
    latitude             double precision NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude            double precision NOT NULL CHECK (longitude BETWEEN -180 AND 180),
    speed_kmh            double precision CHECK (speed_kmh BETWEEN 0 AND 250),
    heading_deg          double precision CHECK (heading_deg BETWEEN 0 AND 360),
    accuracy_m           double precision CHECK (accuracy_m BETWEEN 0 AND 10000),
    engine_temperature_c double precision CHECK (engine_temperature_c BETWEEN -60 AND 200),
    odometer_m           double precision CHECK (odometer_m BETWEEN 0 AND 1e10),
    fuel_pct             double precision CHECK (fuel_pct BETWEEN 0 AND 100),
    load_kg              double precision CHECK (load_kg BETWEEN 0 AND 200000),
    fences               text[]           NOT NULL,
    code_version         integer          NOT NULL,
    fences_version       integer          NOT NULL CHECK (fences_version >= 0),
    source_partition     integer          NOT NULL,
    source_offset        bigint           NOT NULL,
    -- COPY names its columns and not this one: Postgres makes it of the two above.
    position             geography(Point, 4326) GENERATED ALWAYS AS
        (ST_SetSRID(ST_MakePoint(longitude, latitude), 4326)::geography) STORED,
    PRIMARY KEY (tenant, truck_id)
);
CREATE INDEX latest_position_by_place ON latest_position USING gist (position);

CREATE TABLE truck_alerts (
    event_id             text             PRIMARY KEY,
    tenant               text             NOT NULL,
    occurred_at          timestamptz      NOT NULL,
    truck_id             text             NOT NULL,
    kind                 text             NOT NULL CHECK (kind IN ('geofence_inside', 'geofence_outside', 'geofence_enter',
                                              'geofence_exit', 'engine_overheat_raised', 'engine_overheat_cleared')),
    cause                text             NOT NULL CHECK (cause IN ('fixes', 'first_fix', 'fence_added', 'fence_removed')),
    fence_id             text,
    fence_name           text,
    confirmed_at         timestamptz      NOT NULL CHECK (confirmed_at >= occurred_at),
    started_by           text,
    started_at           timestamptz      CHECK (started_at <= occurred_at),
    latitude             double precision NOT NULL CHECK (latitude BETWEEN -90 AND 90),
    longitude            double precision NOT NULL CHECK (longitude BETWEEN -180 AND 180),
    engine_temperature_c double precision,
    input_id             text             NOT NULL,
    is_late              boolean          NOT NULL,
    code_version         integer          NOT NULL,
    fences_version       integer          NOT NULL CHECK (fences_version >= 0),
    source_partition     integer          NOT NULL,
    source_offset        bigint           NOT NULL,
    CHECK ((fence_id IS NOT NULL) = (kind IN ('geofence_inside', 'geofence_enter', 'geofence_exit'))),
    CHECK ((started_by IS NOT NULL) = (kind IN ('geofence_exit', 'engine_overheat_cleared'))),
    -- Sustained heat is five minutes of event time, whatever the processor thinks.
    CHECK (kind <> 'engine_overheat_raised'
           OR (engine_temperature_c > 100 AND confirmed_at - occurred_at >= interval '300 s')),
    CHECK (kind <> 'engine_overheat_cleared' OR engine_temperature_c < 98)
);
CREATE INDEX truck_alerts_by_truck ON truck_alerts (tenant, truck_id, occurred_at DESC, event_id DESC);
CREATE INDEX truck_alerts_by_time ON truck_alerts (tenant, occurred_at DESC, event_id DESC);
-- A stay or an episode ends once.
CREATE UNIQUE INDEX truck_alerts_ends ON truck_alerts (started_by) WHERE started_by IS NOT NULL;

COMMENT ON TABLE truck_positions IS 'Every fix that passed the value checks, once, by day. Late fixes are among them, marked';
COMMENT ON COLUMN truck_positions.event_id IS 'The telemetry''s event_id';
COMMENT ON COLUMN truck_positions.tenant IS 'Owner of the truck';
COMMENT ON COLUMN truck_positions.occurred_at IS 'When the fix was taken, UTC';
COMMENT ON COLUMN truck_positions.truck_id IS 'The truck; the record''s key';
COMMENT ON COLUMN truck_positions.sequence IS 'Counter of the device; with occurred_at it identifies a fix that was sent again under another event id';
COMMENT ON COLUMN truck_positions.latitude IS 'Degrees north, WGS 84, -90 to 90';
COMMENT ON COLUMN truck_positions.longitude IS 'Degrees east, WGS 84, -180 to 180';
COMMENT ON COLUMN truck_positions.speed_kmh IS 'Speed over ground in km/h';
COMMENT ON COLUMN truck_positions.heading_deg IS 'Course over ground in degrees from north, clockwise, 0 to 360';
COMMENT ON COLUMN truck_positions.accuracy_m IS 'Horizontal accuracy in metres as the receiver states it; absent counts as 0';
COMMENT ON COLUMN truck_positions.engine_temperature_c IS 'Coolant temperature in degrees Celsius';
COMMENT ON COLUMN truck_positions.odometer_m IS 'Distance driven since the truck was built, in metres';
COMMENT ON COLUMN truck_positions.fuel_pct IS 'Fuel in per cent of the tank';
COMMENT ON COLUMN truck_positions.load_kg IS 'Load in kilograms';
COMMENT ON COLUMN truck_positions.fences IS 'Ids of the fences that cover the fix (their boundary counts), sorted';
COMMENT ON COLUMN truck_positions.is_late IS 'True where the truck had already sent a newer fix: history that does not move its state';
COMMENT ON COLUMN truck_positions.duplicate_of IS 'Event id under which the same fix (truck, sequence, occurred_at) had come before; it does not move the state again';
COMMENT ON COLUMN truck_positions.code_version IS 'Version of the processor''s code that decided';
COMMENT ON COLUMN truck_positions.fences_version IS 'Version of the fences that decided; 0 where none is in force';
COMMENT ON COLUMN truck_positions.source_partition IS 'Partition of truck-positions that the row came from';
COMMENT ON COLUMN truck_positions.source_offset IS 'Its offset there';
COMMENT ON COLUMN truck_positions.position IS 'Longitude and latitude as a PostGIS point, made by the database';

COMMENT ON TABLE latest_position IS 'The newest fix of each truck by event time; history that comes late never replaces it';
COMMENT ON COLUMN latest_position.event_id IS 'The telemetry''s event_id';
COMMENT ON COLUMN latest_position.tenant IS 'Owner of the truck';
COMMENT ON COLUMN latest_position.occurred_at IS 'When the fix was taken, UTC';
COMMENT ON COLUMN latest_position.truck_id IS 'The truck; the record''s key';
COMMENT ON COLUMN latest_position.sequence IS 'Counter of the device; with occurred_at it identifies a fix that was sent again under another event id';
COMMENT ON COLUMN latest_position.latitude IS 'Degrees north, WGS 84, -90 to 90';
COMMENT ON COLUMN latest_position.longitude IS 'Degrees east, WGS 84, -180 to 180';
COMMENT ON COLUMN latest_position.speed_kmh IS 'Speed over ground in km/h';
COMMENT ON COLUMN latest_position.heading_deg IS 'Course over ground in degrees from north, clockwise, 0 to 360';
COMMENT ON COLUMN latest_position.accuracy_m IS 'Horizontal accuracy in metres as the receiver states it; absent counts as 0';
COMMENT ON COLUMN latest_position.engine_temperature_c IS 'Coolant temperature in degrees Celsius';
COMMENT ON COLUMN latest_position.odometer_m IS 'Distance driven since the truck was built, in metres';
COMMENT ON COLUMN latest_position.fuel_pct IS 'Fuel in per cent of the tank';
COMMENT ON COLUMN latest_position.load_kg IS 'Load in kilograms';
COMMENT ON COLUMN latest_position.fences IS 'Ids of the fences that cover the fix (their boundary counts), sorted';
COMMENT ON COLUMN latest_position.code_version IS 'Version of the processor''s code that decided';
COMMENT ON COLUMN latest_position.fences_version IS 'Version of the fences that decided; 0 where none is in force';
COMMENT ON COLUMN latest_position.source_partition IS 'Partition of truck-positions that the row came from';
COMMENT ON COLUMN latest_position.source_offset IS 'Its offset there';
COMMENT ON COLUMN latest_position.position IS 'Longitude and latitude as a PostGIS point, made by the database';

COMMENT ON TABLE truck_alerts IS 'Fences entered and left, engines too hot and cool again; each happening once, by an id made of truck, fence, kind and event time';
COMMENT ON COLUMN truck_alerts.event_id IS 'tenant/truck_id/fence_id or engine/kind/occurred_at: the same happening always has the same id';
COMMENT ON COLUMN truck_alerts.tenant IS 'Owner of the truck';
COMMENT ON COLUMN truck_alerts.occurred_at IS 'When it happened: the time of the first fix or sample that showed it, UTC';
COMMENT ON COLUMN truck_alerts.truck_id IS 'The truck; the record''s key';
COMMENT ON COLUMN truck_alerts.kind IS 'geofence_inside, geofence_outside, geofence_enter, geofence_exit, engine_overheat_raised or engine_overheat_cleared';
COMMENT ON COLUMN truck_alerts.cause IS 'fixes: seen in consecutive fixes or samples; first_fix: the truck''s first; fence_added or fence_removed: another version of the fences';
COMMENT ON COLUMN truck_alerts.fence_id IS 'The fence; null for engine alerts and for geofence_outside, which is about all fences';
COMMENT ON COLUMN truck_alerts.fence_name IS 'The fence''s name in the version that decided';
COMMENT ON COLUMN truck_alerts.confirmed_at IS 'Time of the fix or sample that settled it, UTC';
COMMENT ON COLUMN truck_alerts.started_by IS 'event_id of the alert whose stay or episode this one ends';
COMMENT ON COLUMN truck_alerts.started_at IS 'occurred_at of that alert, UTC';
COMMENT ON COLUMN truck_alerts.latitude IS 'Where it happened, degrees north';
COMMENT ON COLUMN truck_alerts.longitude IS 'Where it happened, degrees east';
COMMENT ON COLUMN truck_alerts.engine_temperature_c IS 'The sample that settled an engine alert, degrees Celsius';
COMMENT ON COLUMN truck_alerts.input_id IS 'event_id of the telemetry that settled it';
COMMENT ON COLUMN truck_alerts.is_late IS 'True for alerts found in history after newer ones had been told';
COMMENT ON COLUMN truck_alerts.code_version IS 'Version of the processor''s code that decided';
COMMENT ON COLUMN truck_alerts.fences_version IS 'Version of the fences that decided; 0 where none is in force';
COMMENT ON COLUMN truck_alerts.source_partition IS 'Partition of truck-alerts that the row came from';
COMMENT ON COLUMN truck_alerts.source_offset IS 'Its offset there';

CREATE VIEW fence_visits AS
SELECT b.tenant, b.truck_id, b.fence_id, b.fence_name, b.event_id AS visit_id,
       b.occurred_at AS entered_at, e.occurred_at AS left_at, e.occurred_at - b.occurred_at AS stayed,
       b.kind = 'geofence_inside' AS began_before, e.cause = 'fence_removed' AS ended_by_removal
FROM truck_alerts b
LEFT JOIN truck_alerts e ON e.started_by = b.event_id
WHERE b.kind IN ('geofence_enter', 'geofence_inside');
COMMENT ON VIEW fence_visits IS 'One row per stay of a truck in a fence, open ones included';
COMMENT ON COLUMN fence_visits.visit_id IS 'event_id of the alert that began the stay';
COMMENT ON COLUMN fence_visits.entered_at IS 'First fix inside';
COMMENT ON COLUMN fence_visits.left_at IS 'First fix beyond the fence, or null while the truck is in it';
COMMENT ON COLUMN fence_visits.stayed IS 'left_at less entered_at';
COMMENT ON COLUMN fence_visits.began_before IS 'True where the truck was inside already when it, or the fence, was first seen: it entered before entered_at';
COMMENT ON COLUMN fence_visits.ended_by_removal IS 'True where the stay ended because the fence was taken away';

CREATE VIEW overheat_episodes AS
SELECT b.tenant, b.truck_id, b.event_id AS episode_id, b.occurred_at AS hot_since, b.confirmed_at AS raised_at,
       e.occurred_at AS cleared_at
FROM truck_alerts b
LEFT JOIN truck_alerts e ON e.started_by = b.event_id
WHERE b.kind = 'engine_overheat_raised';
COMMENT ON VIEW overheat_episodes IS 'One row per episode of an engine above 100 degrees Celsius for five minutes, open ones included';
COMMENT ON COLUMN overheat_episodes.episode_id IS 'event_id of the alert that was raised';
COMMENT ON COLUMN overheat_episodes.hot_since IS 'First sample of the run above 100 degrees';
COMMENT ON COLUMN overheat_episodes.raised_at IS 'Sample at which the run had lasted five minutes';
COMMENT ON COLUMN overheat_episodes.cleared_at IS 'First sample below 98 degrees, or null while the episode lasts';

CREATE VIEW fence_versions AS
SELECT v.version, f.feature ->> 'id' AS fence_id, f.feature -> 'properties' ->> 'name' AS name,
       (f.feature -> 'properties' ->> 'buffer_m')::double precision AS buffer_m,
       coalesce(f.feature -> 'properties' ->> 'radius_m', f.feature -> 'properties' ->> 'half_width_m')::double precision AS reach_m,
       (f.feature -> 'properties' ->> 'since_version')::integer AS since_version,
       ST_SetSRID(ST_GeomFromGeoJSON(f.feature -> 'geometry'), 4326) AS geometry, v.author, v.created_at
FROM versions v, LATERAL jsonb_array_elements(v.body -> 'features') AS f (feature)
WHERE v.pipeline = 'fleet' AND v.kind = 'fences';
COMMENT ON VIEW fence_versions IS 'The fences of each version';
COMMENT ON COLUMN fence_versions.buffer_m IS 'Metres beyond the edge, added to a fix''s accuracy, before a truck counts as gone';
COMMENT ON COLUMN fence_versions.reach_m IS 'Radius of a circle (geometry is its centre) or half the width of a corridor (its line), metres';
COMMENT ON COLUMN fence_versions.since_version IS 'The version in which the fence first came';

-- The demonstration's area: the harbour of Rotterdam, and a yard that lies on both sides of 180°.
INSERT INTO versions (pipeline, kind, version, body) VALUES ('fleet', 'fences', 1, $fences${
  "type": "FeatureCollection",
  "features": [
    {"type": "Feature", "id": "charlois-customer", "properties": {"name": "Customer in Charlois", "buffer_m": 15.0, "since_version": 1, "radius_m": 150.0}, "geometry": {"type": "Point", "coordinates": [4.466, 51.8835]}},
    {"type": "Feature", "id": "harbour-road", "properties": {"name": "Harbour road", "buffer_m": 15.0, "since_version": 1, "half_width_m": 60.0}, "geometry": {"type": "LineString", "coordinates": [[4.405, 51.8835], [4.425, 51.8835], [4.43, 51.8855]]}},
    {"type": "Feature", "id": "pernis-terminal", "properties": {"name": "Pernis terminal, both quays", "buffer_m": 15.0, "since_version": 1}, "geometry": {"type": "MultiPolygon", "coordinates": [[[[4.385, 51.886], [4.391, 51.886], [4.391, 51.882], [4.385, 51.882], [4.385, 51.886]]], [[[4.395, 51.886], [4.401, 51.886], [4.401, 51.882], [4.395, 51.882], [4.395, 51.886]]]]}},
    {"type": "Feature", "id": "taveuni-yard", "properties": {"name": "Yard on Taveuni, across 180°", "buffer_m": 15.0, "since_version": 1}, "geometry": {"type": "MultiPolygon", "coordinates": [[[[-179.995, -16.795], [-179.995, -16.805], [-180.0, -16.805], [-180.0, -16.795], [-179.995, -16.795]]], [[[179.995, -16.805], [179.995, -16.795], [180.0, -16.795], [180.0, -16.805], [179.995, -16.805]]]]}},
    {"type": "Feature", "id": "waalhaven-depot", "properties": {"name": "Waalhaven depot", "buffer_m": 15.0, "since_version": 1}, "geometry": {"type": "Polygon", "coordinates": [[[4.436, 51.8825], [4.445, 51.8825], [4.445, 51.8885], [4.436, 51.8885], [4.436, 51.8825]], [[4.439, 51.8845], [4.442, 51.8845], [4.442, 51.8865], [4.439, 51.8865], [4.439, 51.8845]]]}}
  ]
}$fences$);
