-- The audit log: who did what. Append-only for everybody but the database's owner, who is found out by
-- `millrace verify audit` (see docs/adr/0051).

CREATE SCHEMA audit;
COMMENT ON SCHEMA audit IS 'Who did what to which object; append-only';

CREATE TABLE audit.entries (
    chain    uuid        NOT NULL,
    sequence bigint      NOT NULL CHECK (sequence > 0),
    at       timestamptz NOT NULL,
    subject  text        NOT NULL,
    tenant   text        NOT NULL,
    proof    text        NOT NULL,
    action   text        NOT NULL CHECK (action <> ''),
    object   text        NOT NULL,
    outcome  text        NOT NULL CHECK (outcome IN ('done', 'denied', 'failed')),
    -- json, not jsonb: the hash is of the very bytes.
    details  json        NOT NULL,
    hash     bytea       NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (chain, sequence)
);
CREATE INDEX entries_by_time ON audit.entries (at);
CREATE INDEX entries_by_subject ON audit.entries (subject, at);
COMMENT ON TABLE audit.entries IS 'The audit log: one chain for each process that writes it';
COMMENT ON COLUMN audit.entries.sequence IS 'Place in the chain, from 1 without a gap';
COMMENT ON COLUMN audit.entries.at IS 'When it happened, by the clock of the process';
COMMENT ON COLUMN audit.entries.subject IS 'Who; empty for somebody who did not prove who they are';
COMMENT ON COLUMN audit.entries.proof IS 'What the subject was known by, as token:<id> or key:<prefix>';
COMMENT ON COLUMN audit.entries.action IS 'What, as read, login, dlq.redrive; audit.* is the log about itself';
COMMENT ON COLUMN audit.entries.object IS 'To what, as a route or a pipeline';
COMMENT ON COLUMN audit.entries.details IS 'What else is told; never the data that was read';
COMMENT ON COLUMN audit.entries.hash IS 'SHA-256 of the hash before and of this entry (infra/audit/entry.py)';

CREATE FUNCTION audit.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit.entries is append-only; % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.entries
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse();
-- Also where somebody sets session_replication_role, which turns ordinary triggers off.
ALTER TABLE audit.entries ENABLE ALWAYS TRIGGER append_only;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'millrace_audit') THEN
        CREATE ROLE millrace_audit NOLOGIN;
    END IF;
END
$$;
GRANT USAGE ON SCHEMA audit TO millrace_audit;
GRANT INSERT ON audit.entries TO millrace_audit;
-- So that a writer whose COMMIT was not answered sees whether it took effect.
GRANT SELECT (chain, sequence, hash) ON audit.entries TO millrace_audit;

-- Auditors read by the API, the rows of their own tenant; what was done by nobody known is the default one's.
ALTER TABLE audit.entries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY written ON audit.entries FOR INSERT TO millrace_audit WITH CHECK (true);
CREATE POLICY ours ON audit.entries FOR SELECT TO millrace_audit USING (true);
CREATE POLICY own ON audit.entries FOR SELECT TO millrace_api USING (
    tenant = (SELECT millrace_tenant()) OR tenant = '' AND (SELECT millrace_tenant()) = 'default');
GRANT USAGE ON SCHEMA audit TO millrace_api;
GRANT SELECT ON audit.entries TO millrace_api;
