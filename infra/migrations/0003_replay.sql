-- Replays: their runs, the generation that a table's name stands for, and the holds of a swap.

CREATE TABLE replay_runs (
    run_id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text        NOT NULL,
    in_place     boolean     NOT NULL,
    status       text        NOT NULL CHECK (status IN ('running', 'ready', 'swapped', 'aborting', 'aborted')),
    options      jsonb       NOT NULL,
    places       jsonb       NOT NULL,
    warm_ends    jsonb,
    records_done bigint      NOT NULL DEFAULT 0,
    records_all  bigint      NOT NULL DEFAULT 0,
    started_by   text        NOT NULL DEFAULT current_user,
    started_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    swapped_at   timestamptz
);
COMMENT ON TABLE replay_runs IS 'Replays, and what became of each. A run''s tables, positions and state lie in schema replay_<run_id>';
COMMENT ON COLUMN replay_runs.in_place IS 'True where rows went into the live tables, false where into tables of the run''s own';
COMMENT ON COLUMN replay_runs.status IS 'running: not at its end, maybe killed; ready: may be compared and swapped; swapped: live reads it';
COMMENT ON COLUMN replay_runs.options IS 'What was asked for: from, to, event_time, versions, rate';
COMMENT ON COLUMN replay_runs.places IS 'Per partition: where reading starts (warm), where rows count from (first), where it ends (last; null: at live''s position)';
COMMENT ON COLUMN replay_runs.warm_ends IS 'Per partition of the run''s result topics: rows below come from the warm-up; null until it is over';
COMMENT ON COLUMN replay_runs.records_all IS 'Records between start and end, as last seen';

CREATE TABLE generations (
    name          text        PRIMARY KEY,
    generation    bigint      NOT NULL,
    switched_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE generations IS 'Which generation a table''s name stands for: the run that was swapped in. Without a row: the first one, a plain table';
COMMENT ON COLUMN generations.generation IS 'replay_runs.run_id';

CREATE FUNCTION millrace_reads(table_name text, wanted bigint) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
DECLARE
    current bigint;
BEGIN
    SELECT g.generation INTO current FROM public.generations g WHERE g.name = table_name;
    IF current IS DISTINCT FROM wanted THEN
        -- A transaction whose snapshot is older than the swap: it would see the new table half filled.
        RAISE EXCEPTION 'table % was swapped to generation % after this transaction began', table_name, wanted
            USING ERRCODE = 'serialization_failure', HINT = 'Begin the transaction anew.';
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION millrace_reads IS 'The generation pointer, asked by the view of each swapped table: a reader sees one generation whole, or is told to begin again';

CREATE TABLE holds (
    consumer   text        PRIMARY KEY,
    run_id     bigint      NOT NULL,
    expires_at timestamptz NOT NULL
);
COMMENT ON TABLE holds IS 'Processors that shall give up their partitions for the moment of a swap; a hold whose owner died expires';

ALTER TABLE checkpoints ADD COLUMN held_by bigint;
COMMENT ON COLUMN checkpoints.held_by IS 'The run for whose swap the owner gave the partition up, with everything committed; null while somebody owns it';

-- The tables of the generations in force, once a swap has moved them here from public.
CREATE SCHEMA live;
COMMENT ON SCHEMA live IS 'Tables of swapped generations; read them through their views in public, which ask the generation pointer';

-- As before, but beside the table itself: a replay's tables lie in a schema of their own.
CREATE OR REPLACE FUNCTION millrace_ensure_partitions(table_name text, first timestamptz, last timestamptz) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    t       time_tables;
    home    text;
    seconds double precision;
    lower_s double precision;
    part    text;
    made    integer := 0;
BEGIN
    SELECT * INTO STRICT t FROM time_tables WHERE name = table_name;
    IF t.hypertable THEN
        RETURN 0;
    END IF;
    SELECT relnamespace::regnamespace::text INTO STRICT home FROM pg_class WHERE oid = to_regclass(quote_ident(table_name));
    seconds := extract(epoch FROM t.width);
    lower_s := floor(extract(epoch FROM first) / seconds) * seconds;
    WHILE lower_s <= extract(epoch FROM last) LOOP
        part := format('%I.%I', home, format('%s_%s', table_name, to_char(to_timestamp(lower_s) AT TIME ZONE 'UTC', 'YYYYMMDD"t"HH24MI')));
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE IF NOT EXISTS %s PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)',
                           part, home, table_name, to_timestamp(lower_s), to_timestamp(lower_s + seconds));
            made := made + 1;
        END IF;
        lower_s := lower_s + seconds;
    END LOOP;
    RETURN made;
END $$;
