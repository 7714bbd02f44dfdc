-- Identity: who there is, what they are granted, and the proofs that are stored of them. In a schema of its
-- own, which analysts' roles cannot look into.

CREATE SCHEMA identity;
COMMENT ON SCHEMA identity IS 'Subjects, API keys and refresh tokens; not for analysts';

CREATE TABLE identity.subjects (
    subject      text        PRIMARY KEY CHECK (subject ~ '^[a-z0-9][a-z0-9._@-]{1,63}$'),
    kind         text        NOT NULL CHECK (kind IN ('person', 'program')),
    tenant       text        NOT NULL CHECK (tenant <> ''),
    secret_hash  text        NOT NULL CHECK (secret_hash LIKE '$argon2id$%'),
    grants       text[]      NOT NULL,
    objects      jsonb       NOT NULL DEFAULT '{}',
    version      integer     NOT NULL DEFAULT 1 CHECK (version > 0),
    disabled_at  timestamptz,
    failures     integer     NOT NULL DEFAULT 0 CHECK (failures >= 0),
    locked_until timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE identity.subjects IS 'People and programs that may prove who they are';
COMMENT ON COLUMN identity.subjects.secret_hash IS 'Argon2id of the password or client secret';
COMMENT ON COLUMN identity.subjects.grants IS 'Roles, as viewer:fraud; what they mean stands in schemas/roles.py';
COMMENT ON COLUMN identity.subjects.objects IS 'By kind of object (merchant, fleet, customer, patient) the ids that the subject sees; of a kind that is missing it sees all';
COMMENT ON COLUMN identity.subjects.version IS 'Raised whenever all sessions end (a new password, disabled): access tokens bear it, and those of an older one are void';
COMMENT ON COLUMN identity.subjects.failures IS 'Wrong passwords since the last right one';
COMMENT ON COLUMN identity.subjects.locked_until IS 'Until then no password is right; null where none was wrong too often';

CREATE TABLE identity.refresh_tokens (
    hash       bytea       PRIMARY KEY,
    family     uuid        NOT NULL,
    subject    text        NOT NULL REFERENCES identity.subjects ON DELETE CASCADE,
    issued_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    revoked_at timestamptz
);
CREATE INDEX refresh_tokens_by_family ON identity.refresh_tokens (family);
CREATE INDEX refresh_tokens_by_subject ON identity.refresh_tokens (subject);
CREATE INDEX refresh_tokens_by_expiry ON identity.refresh_tokens (expires_at);
COMMENT ON TABLE identity.refresh_tokens IS 'SHA-256 of each refresh token; a family is one login and what followed from it';

CREATE TABLE identity.api_keys (
    prefix       text        PRIMARY KEY CHECK (prefix ~ '^[a-z0-9]{12}$'),
    secret_hash  bytea       NOT NULL,
    subject      text        NOT NULL REFERENCES identity.subjects ON DELETE CASCADE,
    name         text        NOT NULL CHECK (name <> ''),
    grants       text[]      NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz
);
CREATE INDEX api_keys_by_subject ON identity.api_keys (subject);
COMMENT ON TABLE identity.api_keys IS 'API keys: the prefix is shown, of the rest there is only the SHA-256';
COMMENT ON COLUMN identity.api_keys.grants IS 'What the key may at most; what its subject has lost, it has lost too';
