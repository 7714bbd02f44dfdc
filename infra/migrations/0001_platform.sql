-- The platform's own tables: positions, state, range records, dead letters, versions.

CREATE TABLE checkpoints (
    consumer     text   NOT NULL,
    topic        text   NOT NULL,
    partition    integer NOT NULL,
    topic_id     text   NOT NULL,
    epoch        bigint NOT NULL,
    next_offset  bigint NOT NULL CHECK (next_offset >= 0),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition)
);
COMMENT ON TABLE checkpoints IS 'The truth about positions: every offset below next_offset has taken its effect. Kafka''s committed offsets are only a hint.';
COMMENT ON COLUMN checkpoints.consumer IS 'Processor or sink';
COMMENT ON COLUMN checkpoints.topic_id IS 'The broker''s id of the topic: a topic deleted and created anew is another topic';
COMMENT ON COLUMN checkpoints.epoch IS 'Raised by each process that takes the partition; an older epoch can no longer commit';
COMMENT ON COLUMN checkpoints.next_offset IS 'The next offset to read';

CREATE TABLE state_chunks (
    consumer     text   NOT NULL,
    topic        text   NOT NULL,
    partition    integer NOT NULL,
    next_offset  bigint NOT NULL,
    n            integer NOT NULL,
    is_snapshot  boolean NOT NULL,
    body         bytea  NOT NULL,
    PRIMARY KEY (consumer, topic, partition, next_offset, n)
);
ALTER TABLE state_chunks ALTER COLUMN body SET STORAGE EXTERNAL;
COMMENT ON TABLE state_chunks IS 'A processor''s state per partition: the chunks of one snapshot, then deltas; each written together with the checkpoint it belongs to';
COMMENT ON COLUMN state_chunks.next_offset IS 'The checkpoint as of which the state stands once this chunk is loaded';

CREATE TABLE range_records (
    consumer          text    NOT NULL,
    topic             text    NOT NULL,
    partition         integer NOT NULL,
    from_offset       bigint  NOT NULL,
    to_offset         bigint  NOT NULL CHECK (to_offset > from_offset),
    records_total     bigint  NOT NULL,
    dead_total        bigint  NOT NULL,
    duplicates_total  bigint  NOT NULL,
    ids_hash          bigint  NOT NULL,
    epoch             bigint  NOT NULL,
    committed_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, partition, from_offset)
);
COMMENT ON TABLE range_records IS 'What each committed batch of a sink covered; an upsert erases its own evidence, these rows keep it';
COMMENT ON COLUMN range_records.to_offset IS 'First offset after the range';
COMMENT ON COLUMN range_records.records_total IS 'Records read in the range; offsets without a record are transaction markers or compacted';
COMMENT ON COLUMN range_records.duplicates_total IS 'Rows left out because a first-wins table had their key';
COMMENT ON COLUMN range_records.ids_hash IS 'Sum of 64-bit hashes of the event ids stored, modulo 2^64: independent of order';

CREATE TABLE dead_letters (
    consumer     text    NOT NULL,
    topic        text    NOT NULL,
    partition    integer NOT NULL,
    "offset"     bigint  NOT NULL,
    pipeline     text    NOT NULL,
    tenant       text    NOT NULL DEFAULT '',
    schema_id    integer,
    input_id     text,
    error_class  text    NOT NULL,
    field        text,
    error        text    NOT NULL,
    key          bytea,
    value        bytea,
    append_time  timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, "offset", consumer)
);
CREATE INDEX dead_letters_by_pipeline ON dead_letters (pipeline, created_at DESC);
COMMENT ON TABLE dead_letters IS 'Records that could not be decoded, decided or stored, with the reason; their bytes are kept';
COMMENT ON COLUMN dead_letters.consumer IS 'The processor or sink that refused the record';
COMMENT ON COLUMN dead_letters.input_id IS 'The event''s own id, where it could be decoded';
COMMENT ON COLUMN dead_letters.append_time IS 'When the broker appended the record';

CREATE TABLE versions (
    pipeline    text    NOT NULL,
    kind        text    NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    body        jsonb   NOT NULL,
    author      text    NOT NULL DEFAULT current_user,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, kind, version)
);
COMMENT ON TABLE versions IS 'What changes decisions: rules, fences, models. The highest version is in force for records that no version was applied to yet';

CREATE TABLE version_activations (
    consumer     text    NOT NULL,
    topic        text    NOT NULL,
    partition    integer NOT NULL,
    kind         text    NOT NULL,
    from_offset  bigint  NOT NULL,
    version      integer NOT NULL,
    PRIMARY KEY (consumer, topic, partition, kind, from_offset)
);
COMMENT ON TABLE version_activations IS 'From which offset a partition''s owner applies a version; written before it is used, so that a restart or replay decides the same';

-- A sink table partitioned by time: a hypertable where TimescaleDB is installed, otherwise native range partitions.
CREATE TABLE time_tables (
    name      text PRIMARY KEY,
    time      text NOT NULL,
    width     interval NOT NULL,
    hypertable boolean NOT NULL
);
COMMENT ON TABLE time_tables IS 'Sink tables that are partitioned by time';

CREATE FUNCTION millrace_time_table(table_name text, time_column text, width interval, columns text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    timescale boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb');
BEGIN
    IF timescale THEN
        EXECUTE format('CREATE TABLE %I (%s)', table_name, columns);
        EXECUTE format('SELECT create_hypertable(%L, %L, chunk_time_interval => %L::interval)', table_name, time_column, width);
    ELSE
        EXECUTE format('CREATE TABLE %I (%s) PARTITION BY RANGE (%I)', table_name, columns, time_column);
    END IF;
    INSERT INTO time_tables VALUES (table_name, time_column, width, timescale);
END $$;
COMMENT ON FUNCTION millrace_time_table IS 'Creates a table partitioned by time, from its column definitions';

CREATE FUNCTION millrace_ensure_partitions(table_name text, first timestamptz, last timestamptz) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    t       time_tables;
    seconds double precision;
    lower_s double precision;
    part    text;
    made    integer := 0;
BEGIN
    SELECT * INTO STRICT t FROM time_tables WHERE name = table_name;
    IF t.hypertable THEN
        RETURN 0;
    END IF;
    seconds := extract(epoch FROM t.width);
    lower_s := floor(extract(epoch FROM first) / seconds) * seconds;
    WHILE lower_s <= extract(epoch FROM last) LOOP
        part := format('%s_%s', table_name, to_char(to_timestamp(lower_s) AT TIME ZONE 'UTC', 'YYYYMMDD"t"HH24MI'));
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                           part, table_name, to_timestamp(lower_s), to_timestamp(lower_s + seconds));
            made := made + 1;
        END IF;
        lower_s := lower_s + seconds;
    END LOOP;
    RETURN made;
END $$;
COMMENT ON FUNCTION millrace_ensure_partitions IS 'Creates the native partitions that cover a span of time; nothing to do for a hypertable';

-- Analysts read everything and write nothing.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'millrace_reader') THEN
        CREATE ROLE millrace_reader NOLOGIN;
    END IF;
END $$;
GRANT USAGE ON SCHEMA public TO millrace_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO millrace_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO millrace_reader;
