-- The ledger's chain: each row's hash covers the row before (docs/adr/0061). Rows of before have none.

ALTER TABLE card_ledger
    ADD COLUMN chain_sequence bigint CHECK (chain_sequence > 0),
    ADD COLUMN chain_hash     bytea  CHECK (octet_length(chain_hash) = 32),
    ADD COLUMN seal           bytea  CHECK (octet_length(seal) = 32),
    ADD COLUMN seal_key       bytea  CHECK (octet_length(seal_key) = 16);
COMMENT ON COLUMN card_ledger.chain_sequence IS 'Place in the chain of its source partition, from 1 without a gap; null in rows of before it was kept';
COMMENT ON COLUMN card_ledger.chain_hash IS 'SHA-256 of the hash before, the place, the seal and the row (infra/ledger/chain.py)';
COMMENT ON COLUMN card_ledger.seal IS 'SHA-256 of seal_key, card_id and customer_id: what the chain knows of them';
COMMENT ON COLUMN card_ledger.seal_key IS '16 random bytes of this row alone; destroyed when card_id and customer_id are erased';

CREATE TABLE ledger_chains (
    table_name text    NOT NULL,
    partition  integer NOT NULL,
    begins     bigint  NOT NULL,
    sequence   bigint  NOT NULL,
    hash       bytea   NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (table_name, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE ledger_chains IS 'How far each chain has come; the sink goes on from here';
COMMENT ON COLUMN ledger_chains.begins IS 'The first offset of the source partition whose row is in the chain';
-- A sink moves its chains forward; which chains there are, and where they began, stays.
GRANT SELECT, INSERT, UPDATE (sequence, hash) ON ledger_chains TO millrace_sink;

CREATE TABLE ledger_erasures (
    sequence   bigint      PRIMARY KEY CHECK (sequence > 0),
    table_name text        NOT NULL,
    ref        text        NOT NULL UNIQUE,
    tenant     text        NOT NULL,
    reason     text        NOT NULL CHECK (reason <> ''),
    at         timestamptz NOT NULL,
    by         text        NOT NULL,
    rows       bigint      NOT NULL,
    digest     bytea       NOT NULL CHECK (octet_length(digest) = 32),
    hash       bytea       NOT NULL CHECK (octet_length(hash) = 32)
);
COMMENT ON TABLE ledger_erasures IS 'Erasures of personal data from the ledger: a chain of its own, whose head is signed with each entry';
COMMENT ON COLUMN ledger_erasures.ref IS 'What stands in the rows instead of the card: erased:<ref>';
COMMENT ON COLUMN ledger_erasures.digest IS 'SHA-256 of the erased rows'' hashes, in their order';

-- Nobody changes a row, superusers included. One thing passes: personal columns that become an erasure's.
CREATE OR REPLACE FUNCTION card_ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ref text := coalesce(current_setting('millrace.erasure', true), '');
BEGIN
    IF TG_OP = 'UPDATE' AND ref <> '' AND NEW.card_id = 'erased:' || ref AND NEW.customer_id IS NULL
        AND NEW.seal_key IS NULL
        AND to_jsonb(NEW) - '{card_id,customer_id,seal_key}'::text[] = to_jsonb(OLD) - '{card_id,customer_id,seal_key}'::text[]
    THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'card_ledger is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Personal data is erased by `millrace ledger erase`; rows stay.';
END $$;
COMMENT ON FUNCTION card_ledger_append_only IS 'Refuses UPDATE, DELETE and TRUNCATE of the ledger for everybody; `millrace ledger erase` may replace personal columns';
GRANT UPDATE (card_id, customer_id, seal_key) ON card_ledger TO CURRENT_USER;

CREATE FUNCTION ledger_erasures_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger_erasures is append-only: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_erasures
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_erasures_append_only();
ALTER TABLE ledger_erasures ENABLE ALWAYS TRIGGER append_only;
REVOKE UPDATE, DELETE, TRUNCATE ON ledger_erasures FROM PUBLIC, CURRENT_USER;
