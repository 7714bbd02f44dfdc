-- The second wall: a role of its own for each process, and row-level security under the API's.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['millrace_api', 'millrace_identity', 'millrace_gateway', 'millrace_sink'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;
-- COPY is refused under row-level security, and sinks serve all tenants. The reader is for those who run the
-- instance. Neither may be what the API connects by; it refuses a role that passes the wall.
ALTER ROLE millrace_sink BYPASSRLS;
ALTER ROLE millrace_reader BYPASSRLS;
GRANT USAGE ON SCHEMA public, live TO millrace_api, millrace_sink;
GRANT USAGE ON SCHEMA live TO millrace_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA live TO millrace_reader;

-- Who is there. The gateway reads grants and the hashes of API keys, never those of passwords.
GRANT USAGE ON SCHEMA identity TO millrace_identity, millrace_gateway;
GRANT SELECT, INSERT, UPDATE ON identity.subjects, identity.api_keys TO millrace_identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.refresh_tokens TO millrace_identity;
GRANT SELECT (subject, kind, tenant, grants, objects, version, disabled_at, locked_until, created_at)
    ON identity.subjects TO millrace_gateway;
GRANT SELECT ON identity.api_keys TO millrace_gateway;

CREATE FUNCTION millrace_tenant() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT nullif(current_setting('millrace.tenant', true), '') $$;
COMMENT ON FUNCTION millrace_tenant IS 'Whose rows this transaction may see; null, and so nobody''s, where it did not say';

CREATE FUNCTION millrace_objects(kind text) RETURNS text[] LANGUAGE sql STABLE PARALLEL SAFE AS
$$
    SELECT CASE
        WHEN o IS NULL THEN '{}'::text[]
        WHEN o ? kind THEN ARRAY(SELECT jsonb_array_elements_text(o -> kind))
    END
    FROM (SELECT nullif(current_setting('millrace.objects', true), '')::jsonb AS o) AS said
$$;
COMMENT ON FUNCTION millrace_objects IS 'The objects of a kind (merchant, fleet, customer, patient) whose rows this transaction may see; null for all, none where it did not say';

CREATE FUNCTION millrace_sees_all() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT coalesce(current_setting('millrace.objects', true), '') = '{}' $$;
COMMENT ON FUNCTION millrace_sees_all IS 'Whether this transaction may see every object of its tenant';

CREATE TABLE protected_tables (
    name     text PRIMARY KEY,
    kind     text NOT NULL,
    object   text,
    replaces boolean NOT NULL
);
COMMENT ON TABLE protected_tables IS 'Sink tables behind row-level security, by what their rows are told apart; see millrace_protect()';
COMMENT ON COLUMN protected_tables.name IS 'The table';
COMMENT ON COLUMN protected_tables.kind IS 'Kind of object: merchant, fleet, customer or patient';
COMMENT ON COLUMN protected_tables.object IS 'The column that holds the object''s id; null where rows are nobody''s in particular, and so for those who see all';
COMMENT ON COLUMN protected_tables.replaces IS 'Whether its sink replaces rows by newer ones; the others are only added to';
INSERT INTO protected_tables VALUES
    ('card_ledger', 'merchant', 'merchant_id', false),
    ('truck_positions', 'fleet', 'fleet_id', false),
    ('latest_position', 'fleet', 'fleet_id', true),
    ('truck_alerts', 'fleet', 'fleet_id', false),
    ('orders', 'customer', 'customer_id', true),
    ('order_lines', 'customer', 'customer_id', true),
    ('order_status_log', 'customer', 'customer_id', false),
    ('stock', 'customer', NULL, true),
    ('stock_ledger', 'customer', NULL, false),
    ('studies', 'patient', 'patient_id', false),
    ('series', 'patient', 'patient_id', false),
    ('instances', 'patient', 'patient_id', false),
    ('instance_uploads', 'patient', 'patient_id', false);

-- Also called for the table of each generation that is swapped in, and for the view of its name.
CREATE FUNCTION millrace_protect(home text, table_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p      public.protected_tables;
    target text := format('%I.%I', home, table_name);
    rule   text := 'tenant = (SELECT public.millrace_tenant())';
BEGIN
    SELECT * INTO p FROM public.protected_tables t WHERE t.name = table_name;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    EXECUTE format('GRANT SELECT ON %s TO millrace_api', target);
    IF (SELECT relkind FROM pg_class WHERE oid = to_regclass(target)) = 'v' THEN
        RETURN;  -- it asks in the name of whoever reads it, and has no rows of its own
    END IF;
    -- In subqueries, which are asked once and not for each row.
    rule := rule || format(' AND ((SELECT public.millrace_objects(%L)) IS NULL', p.kind);
    IF p.object IS NOT NULL THEN
        rule := rule || format(' OR %I = ANY ((SELECT public.millrace_objects(%L))::text[])', p.object, p.kind);
    END IF;
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('DROP POLICY IF EXISTS own ON %s', target);
    EXECUTE format('CREATE POLICY own ON %s FOR SELECT TO millrace_api USING (%s))', target, rule);
    EXECUTE format('GRANT SELECT ON %s TO millrace_reader', target);
    EXECUTE format('GRANT SELECT, INSERT %s ON %s TO millrace_sink', CASE WHEN p.replaces THEN ', UPDATE' ELSE '' END, target);
END $$;
COMMENT ON FUNCTION millrace_protect IS 'Puts a sink table behind row-level security, and lets the API and its sink in; does nothing for one that is not in protected_tables';
REVOKE ALL ON FUNCTION millrace_protect FROM PUBLIC;
SELECT millrace_protect('public', name) FROM protected_tables;

-- A dead letter is no object's, and one that no tenant could be read of is for those who run the instance.
ALTER TABLE dead_letters ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON dead_letters FOR SELECT TO millrace_api USING (
    (tenant = (SELECT millrace_tenant()) OR tenant = '' AND (SELECT millrace_tenant()) = 'default')
    AND (SELECT millrace_sees_all()));
GRANT SELECT ON dead_letters, checkpoints, generations TO millrace_api;

-- Views ask in the name of whoever reads them: the owner's name would pass the wall.
DO $$
DECLARE
    view regclass;
BEGIN
    FOR view IN
        SELECT c.oid FROM pg_class c
        WHERE c.relkind = 'v' AND c.relnamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER VIEW %s SET (security_invoker = true)', view);
    END LOOP;
END $$;
GRANT SELECT ON series_overview, study_overview TO millrace_api;

-- What a sink does beside its own tables.
GRANT SELECT, INSERT, UPDATE ON checkpoints TO millrace_sink;
GRANT SELECT, INSERT ON range_records, dead_letters TO millrace_sink;
GRANT SELECT ON time_tables, generations, holds TO millrace_sink;

-- Partitions are made in the owner's name, of tables that the caller's search path finds.
CREATE FUNCTION millrace_make_partitions(target regclass, first timestamptz, last timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t       public.time_tables;
    home    text;
    parent  text;
    seconds double precision;
    lower_s double precision;
    part    text;
    made    integer := 0;
BEGIN
    SELECT n.nspname, c.relname INTO STRICT home, parent
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target;
    IF starts_with(home, 'pg_') THEN
        RAISE EXCEPTION 'table % is nobody''s but its session''s', target USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT * INTO STRICT t FROM public.time_tables x WHERE x.name = parent;
    IF t.hypertable THEN
        RETURN 0;
    END IF;
    seconds := extract(epoch FROM t.width);
    lower_s := floor(extract(epoch FROM first) / seconds) * seconds;
    WHILE lower_s <= extract(epoch FROM last) LOOP
        part := format('%I.%I', home, format('%s_%s', parent, to_char(to_timestamp(lower_s) AT TIME ZONE 'UTC', 'YYYYMMDD"t"HH24MI')));
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE IF NOT EXISTS %s PARTITION OF %I.%I FOR VALUES FROM (%L) TO (%L)',
                           part, home, parent, to_timestamp(lower_s), to_timestamp(lower_s + seconds));
            made := made + 1;
        END IF;
        lower_s := lower_s + seconds;
    END LOOP;
    RETURN made;
END $$;
COMMENT ON FUNCTION millrace_make_partitions IS 'Creates the native partitions of a table that cover a span of time, for roles that may not create any';
REVOKE ALL ON FUNCTION millrace_make_partitions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace_make_partitions TO millrace_sink;

CREATE OR REPLACE FUNCTION millrace_ensure_partitions(table_name text, first timestamptz, last timestamptz) RETURNS integer
LANGUAGE sql AS
$$ SELECT public.millrace_make_partitions(quote_ident(table_name)::regclass, first, last) $$;
