-- What stood before each position: a log that was put back and written on has another record there.

DO $$
DECLARE
    held text;
BEGIN
    FOR held IN
        SELECT schemaname FROM pg_tables
        WHERE tablename = 'checkpoints' AND (schemaname = 'public' OR schemaname LIKE 'replay\_%')
    LOOP
        EXECUTE format('ALTER TABLE %I.checkpoints ADD COLUMN append_ms bigint', held);
    END LOOP;
END $$;
COMMENT ON COLUMN checkpoints.append_ms IS 'Append time of the last record before next_offset, by which its next reader knows the log again; null before the first';
