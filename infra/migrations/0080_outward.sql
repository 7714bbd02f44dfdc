-- What leaves the platform: who wants to know of which decisions, the outbox, and the deliveries (docs/adr/0061).

CREATE TABLE outward_endpoints (
    endpoint_id     text PRIMARY KEY,
    kind            text        NOT NULL CHECK (kind IN ('webhook', 'email')),
    tenant          text        NOT NULL,
    merchant_id     text,
    target          text        NOT NULL,
    decisions       text[]      NOT NULL CHECK (decisions <@ ARRAY['APPROVE', 'REVIEW', 'DECLINE'] AND cardinality(decisions) > 0),
    risk_min        double precision NOT NULL DEFAULT 0 CHECK (risk_min BETWEEN 0 AND 1),
    about           text        NOT NULL DEFAULT '',
    since_sequence  bigint      NOT NULL,
    token_sha256    bytea       UNIQUE CHECK (octet_length(token_sha256) = 32),
    status          text        NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    reason          text,
    failures        integer     NOT NULL DEFAULT 0,
    retry_at        timestamptz,
    last_success_at timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text        NOT NULL DEFAULT current_user
);
COMMENT ON TABLE outward_endpoints IS 'Who is told of decisions: receivers of webhooks, and mailboxes';
COMMENT ON COLUMN outward_endpoints.merchant_id IS 'Only this merchant''s decisions; null: all of the tenant';
COMMENT ON COLUMN outward_endpoints.since_sequence IS 'Where the outbox stood when the endpoint was added: it is told of what came after';
COMMENT ON COLUMN outward_endpoints.token_sha256 IS 'SHA-256 of the token with which the receiver may ask for its events; a proof of who asks, like an API key';
COMMENT ON COLUMN outward_endpoints.reason IS 'Why it is disabled';
COMMENT ON COLUMN outward_endpoints.failures IS 'Attempts since the last success that failed for the endpoint as a whole';
COMMENT ON COLUMN outward_endpoints.retry_at IS 'Until then it rests';

CREATE TABLE outward_secrets (
    secret_id   bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id text        NOT NULL REFERENCES outward_endpoints ON DELETE CASCADE,
    kind        text        NOT NULL CHECK (kind IN ('v1', 'v1a')),
    sealed      bytea       NOT NULL,
    public_key  text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz
);
CREATE INDEX outward_secrets_by_endpoint ON outward_secrets (endpoint_id);
REVOKE ALL ON outward_secrets FROM PUBLIC, millrace_reader;
COMMENT ON TABLE outward_secrets IS 'What webhooks are signed with, encrypted by the instance''s own key';
COMMENT ON COLUMN outward_secrets.expires_at IS 'End of the overlap after a rotation; null: in force';

-- Raised by every change of who wants to know what: the sink looks at it once a batch, and reads the rest if it moved.
CREATE TABLE outward_revision (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    revision bigint  NOT NULL,
    fanned_out bigint NOT NULL
);
INSERT INTO outward_revision (revision, fanned_out) VALUES (0, 0);
COMMENT ON TABLE outward_revision IS 'One row: the revision of the subscriptions, and up to where the outbox was fanned out';
CREATE FUNCTION outward_revised() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE public.outward_revision SET revision = revision + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER revised AFTER INSERT OR DELETE OR UPDATE OF tenant, merchant_id, decisions, risk_min ON outward_endpoints
    FOR EACH STATEMENT EXECUTE FUNCTION outward_revised();

CREATE TABLE outbox (
    sequence    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant      text        NOT NULL,
    merchant_id text,
    event_id    text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    decision    text        NOT NULL,
    risk        double precision NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, event_id, occurred_at)
);
CREATE INDEX outbox_by_merchant ON outbox (tenant, merchant_id, sequence);
COMMENT ON TABLE outbox IS 'Decisions that somebody subscribed to, written with the ledger''s row. sequence is the order in which they became visible';

CREATE TABLE outward_deliveries (
    delivery_id  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id  text        NOT NULL REFERENCES outward_endpoints ON DELETE CASCADE,
    lane         text        NOT NULL,
    sequence     bigint,
    message_id   text        NOT NULL,
    origin       text        NOT NULL CHECK (origin IN ('live', 'replay', 'test')),
    status       text        NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dropped')),
    batch        text,
    attempts     integer     NOT NULL DEFAULT 0,
    first_attempt_at timestamptz,
    last_attempt_at  timestamptz,
    last_status  integer,
    last_error   text,
    last_answer  text,
    last_ms      integer,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK ((origin = 'test') = (sequence IS NULL))
);
CREATE UNIQUE INDEX outward_deliveries_once ON outward_deliveries (endpoint_id, sequence) WHERE origin = 'live';
CREATE INDEX outward_deliveries_pending ON outward_deliveries (endpoint_id, lane, delivery_id) WHERE status = 'pending';
CREATE INDEX outward_deliveries_by_endpoint ON outward_deliveries (endpoint_id, delivery_id);
CREATE INDEX outward_deliveries_by_sequence ON outward_deliveries (sequence);
COMMENT ON TABLE outward_deliveries IS 'A decision on its way to an endpoint, and what became of it';
COMMENT ON COLUMN outward_deliveries.lane IS 'Within it deliveries go one by one: the merchant, or empty';
COMMENT ON COLUMN outward_deliveries.message_id IS 'The webhook-id: the same for every delivery of one decision';
COMMENT ON COLUMN outward_deliveries.batch IS 'The mail that it went into';
COMMENT ON COLUMN outward_deliveries.last_status IS 'HTTP status, or SMTP reply, of the last attempt; null where there was no answer';

CREATE TABLE outward_lanes (
    endpoint_id  text        NOT NULL REFERENCES outward_endpoints ON DELETE CASCADE,
    lane         text        NOT NULL,
    pending      integer     NOT NULL DEFAULT 0 CHECK (pending >= 0),
    due_at       timestamptz NOT NULL DEFAULT now(),
    lease        text,
    leased_until timestamptz,
    PRIMARY KEY (endpoint_id, lane)
) WITH (fillfactor = 70);
CREATE INDEX outward_lanes_waiting ON outward_lanes (endpoint_id, due_at) WHERE pending > 0;
COMMENT ON TABLE outward_lanes IS 'Endpoint and merchant: how much waits, when to try next, and which process works on it until when';

CREATE FUNCTION outward_message_id(tenant text, event_id text, occurred_at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT 'dec_' || left(encode(sha256(convert_to(
        jsonb_build_array($1, $2, (extract(epoch FROM $3) * 1000)::bigint)::text, 'UTF8')), 'hex'), 40)
$$;
COMMENT ON FUNCTION outward_message_id IS 'The id under which a decision is told to everybody: made of what the decision is known by alone';

CREATE FUNCTION outward_enqueue(wanted text, origin text, first bigint, last bigint, most integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    upto bigint;
BEGIN
    -- At most so many outbox rows at once; what lies behind them comes with the next call.
    SELECT max(sequence) INTO upto FROM (
        SELECT sequence FROM outbox WHERE sequence > first AND sequence <= last ORDER BY sequence LIMIT most
    ) AS following;
    IF upto IS NULL THEN
        RETURN NULL;
    END IF;
    WITH made AS (
        INSERT INTO outward_deliveries (endpoint_id, lane, sequence, message_id, origin)
        SELECT e.endpoint_id, CASE e.kind WHEN 'webhook' THEN coalesce(o.merchant_id, '') ELSE '' END, o.sequence,
               outward_message_id(o.tenant, o.event_id, o.occurred_at), origin
        FROM outbox o JOIN outward_endpoints e
          ON e.tenant = o.tenant AND (e.merchant_id IS NULL OR e.merchant_id = o.merchant_id)
         AND o.decision = ANY(e.decisions) AND o.risk >= e.risk_min
        WHERE o.sequence > first AND o.sequence <= upto
          AND (CASE WHEN wanted IS NULL THEN o.sequence > e.since_sequence ELSE e.endpoint_id = wanted END)
        ORDER BY o.sequence
        ON CONFLICT DO NOTHING
        RETURNING endpoint_id, lane
    )
    INSERT INTO outward_lanes AS l (endpoint_id, lane, pending)
    SELECT endpoint_id, lane, count(*) FROM made GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (endpoint_id, lane) DO UPDATE SET pending = l.pending + excluded.pending,
        due_at = CASE WHEN l.pending = 0 THEN least(l.due_at, now()) ELSE l.due_at END;
    RETURN upto;
END $$;
COMMENT ON FUNCTION outward_enqueue IS 'Deliveries of the outbox'' rows in (first, last] for one endpoint, or for all that want them; returns how far it came';

CREATE FUNCTION outward_fan_out(most integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    reached bigint;
    upto    bigint;
BEGIN
    SELECT fanned_out INTO reached FROM outward_revision FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    upto := outward_enqueue(NULL, 'live', reached, 9223372036854775807, most);
    IF upto IS NOT NULL THEN
        UPDATE outward_revision SET fanned_out = upto;
    END IF;
    RETURN upto;
END $$;
COMMENT ON FUNCTION outward_fan_out IS 'The next rows of the outbox become deliveries; null where there are none, or another process is at it';

CREATE FUNCTION outward_settle(mine text, ids bigint[], status integer, answer text, took_ms integer, lease_s double precision)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    at_endpoint text;
    at_lane     text;
    settled     integer;
BEGIN
    SELECT endpoint_id, lane INTO at_endpoint, at_lane FROM outward_deliveries WHERE delivery_id = ids[1];
    PERFORM FROM outward_lanes WHERE endpoint_id = at_endpoint AND lane = at_lane AND lease = mine FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE outward_deliveries d SET status = 'delivered', attempts = attempts + 1, last_status = outward_settle.status,
        last_error = NULL, last_answer = answer, last_ms = took_ms, last_attempt_at = now(),
        first_attempt_at = coalesce(first_attempt_at, now())
    WHERE delivery_id = ANY(ids) AND d.status = 'pending';
    GET DIAGNOSTICS settled = ROW_COUNT;
    UPDATE outward_lanes SET pending = pending - settled, due_at = now(), leased_until = now() + lease_s * interval '1 s'
    WHERE endpoint_id = at_endpoint AND lane = at_lane;
    UPDATE outward_endpoints SET failures = 0, retry_at = NULL, last_success_at = now()
    WHERE endpoint_id = at_endpoint AND (failures > 0 OR last_success_at IS NULL OR last_success_at < now() - interval '5 s');
    RETURN true;
END $$;
COMMENT ON FUNCTION outward_settle IS 'Deliveries of one lane were answered well; false where the lease had gone to another process';

CREATE FUNCTION outward_failed(mine text, ids bigint[], status integer, error text, answer text, took_ms integer,
                               wait_s double precision, rest_s double precision)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    at_endpoint text;
    at_lane     text;
BEGIN
    SELECT endpoint_id, lane INTO at_endpoint, at_lane FROM outward_deliveries WHERE delivery_id = ids[1];
    UPDATE outward_lanes SET due_at = now() + wait_s * interval '1 s', lease = NULL, leased_until = NULL
    WHERE endpoint_id = at_endpoint AND lane = at_lane AND lease = mine;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE outward_deliveries d SET attempts = attempts + 1, last_status = outward_failed.status, last_error = error,
        last_answer = answer, last_ms = took_ms, last_attempt_at = now(), first_attempt_at = coalesce(first_attempt_at, now())
    WHERE delivery_id = ANY(ids) AND d.status = 'pending';
    IF rest_s IS NOT NULL THEN
        -- Lanes that were under way together fail together: that counts once.
        UPDATE outward_endpoints SET failures = failures + CASE WHEN retry_at > now() THEN 0 ELSE 1 END,
            retry_at = greatest(retry_at, now() + rest_s * interval '1 s')
        WHERE endpoint_id = at_endpoint;
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION outward_failed IS 'An attempt failed: the lane waits, and with rest_s the whole endpoint; false where the lease had gone';

-- Who may do what with it (docs/adr/0050). The deliverer serves all tenants, and only what it delivers from.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'millrace_outward') THEN
        CREATE ROLE millrace_outward NOLOGIN;
    END IF;
END $$;
GRANT USAGE ON SCHEMA public TO millrace_outward, millrace_identity, millrace_gateway;
GRANT SELECT, UPDATE (status, reason, failures, retry_at, last_success_at) ON outward_endpoints TO millrace_outward;
GRANT SELECT (secret_id, endpoint_id, kind, sealed, expires_at) ON outward_secrets TO millrace_outward;
GRANT SELECT, UPDATE (fanned_out) ON outward_revision TO millrace_outward;
GRANT SELECT, DELETE ON outbox TO millrace_outward;
GRANT SELECT, INSERT, UPDATE, DELETE ON outward_deliveries TO millrace_outward;
GRANT SELECT, INSERT, UPDATE ON outward_lanes TO millrace_outward;
-- Of a decision what is told outside (infra/outward.py), and no window, feature or seal.
GRANT SELECT (event_id, tenant, occurred_at, merchant_id, terminal_id, card_id, amount_minor, currency, decision, risk,
              reasons, fired_rules, rules_version, model_version) ON card_ledger TO millrace_outward;
CREATE POLICY told ON card_ledger FOR SELECT TO millrace_outward USING (true);

-- The sink adds to the outbox, and asks who wants what. A receiver reads through the API what it missed.
INSERT INTO protected_tables VALUES ('outbox', 'merchant', 'merchant_id', false);
SELECT millrace_protect('public', 'outbox');
CREATE POLICY told ON outbox TO millrace_outward USING (true);
GRANT SELECT (tenant, merchant_id, decisions, risk_min) ON outward_endpoints TO millrace_sink;
GRANT SELECT (revision) ON outward_revision TO millrace_sink;

ALTER TABLE outward_endpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY told ON outward_endpoints TO millrace_outward USING (true);
GRANT SELECT (endpoint_id, tenant, merchant_id, decisions, risk_min, since_sequence) ON outward_endpoints TO millrace_api;
CREATE POLICY own ON outward_endpoints FOR SELECT TO millrace_api USING (
    tenant = (SELECT millrace_tenant()) AND ((SELECT millrace_objects('merchant')) IS NULL
        OR merchant_id = ANY ((SELECT millrace_objects('merchant'))::text[])));
GRANT SELECT (endpoint_id, tenant, merchant_id, token_sha256) ON outward_endpoints TO millrace_identity, millrace_gateway;
CREATE POLICY known ON outward_endpoints FOR SELECT TO millrace_identity, millrace_gateway USING (true);
