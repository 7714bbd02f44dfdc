-- What operators do with dead letters: each letter's standing, and everything that was done, by whom and why.

ALTER TABLE dead_letters
    ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    ADD COLUMN status text NOT NULL DEFAULT 'open'
        CHECK (status IN ('open', 'sending', 'redriven', 'discarded'));
CREATE INDEX dead_letters_standing ON dead_letters (pipeline, created_at DESC) WHERE status IN ('open', 'sending');
COMMENT ON COLUMN dead_letters.id IS 'A short name for people: millrace dlq show ID';
COMMENT ON COLUMN dead_letters.status IS 'open; sending: a redrive may have sent it, its end was not seen; redriven: it is on its topic again; discarded: somebody decided against it';

CREATE TABLE dead_letter_actions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    letter     bigint NOT NULL REFERENCES dead_letters (id),
    action     text   NOT NULL CHECK (action IN ('edit', 'revert', 'send', 'unsent', 'redriven', 'discard', 'reopen')),
    actor      text   NOT NULL,
    note       text,
    key        bytea,
    value      bytea,
    topic      text,
    partition  integer,
    "offset"   bigint,
    at         timestamptz NOT NULL DEFAULT now(),
    CHECK ((action = 'edit') = (value IS NOT NULL)),
    CHECK ((action = 'redriven') = ("offset" IS NOT NULL))
);
CREATE INDEX dead_letter_actions_by_letter ON dead_letter_actions (letter, id);
CREATE INDEX dead_letter_actions_by_place ON dead_letter_actions (topic, partition, "offset") WHERE action = 'redriven';
COMMENT ON TABLE dead_letter_actions IS 'Everything that was done to a dead letter. Append-only, see dead_letter_actions_append_only()';
COMMENT ON COLUMN dead_letter_actions.action IS 'edit: these bytes stand in for the record''s; revert: its own again; send: a redrive begins; unsent: it did not reach the topic; redriven: it did; discard; reopen';
COMMENT ON COLUMN dead_letter_actions.actor IS 'Who did it, as user@host or as given by --by';
COMMENT ON COLUMN dead_letter_actions.note IS 'Why, or how an edit came about';
COMMENT ON COLUMN dead_letter_actions.value IS 'The edited record; the letter keeps the bytes that were refused';
COMMENT ON COLUMN dead_letter_actions."offset" IS 'Where the redriven record stands; a dead letter of this place is the same record refused again';

CREATE FUNCTION dead_letter_actions_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('is_superuser') = 'on' AND coalesce(current_setting('millrace.erasure', true), '') <> '' THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    RAISE EXCEPTION 'dead_letter_actions is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'A superuser may erase rows after SET LOCAL millrace.erasure = ''<reason>''.';
END $$;
COMMENT ON FUNCTION dead_letter_actions_append_only IS 'Refuses UPDATE, DELETE and TRUNCATE of the audit for everybody; a superuser may erase after SET LOCAL millrace.erasure = ''<reason>''';
CREATE TRIGGER dead_letter_actions_append_only BEFORE UPDATE OR DELETE ON dead_letter_actions
    FOR EACH ROW EXECUTE FUNCTION dead_letter_actions_append_only();
CREATE TRIGGER dead_letter_actions_no_truncate BEFORE TRUNCATE ON dead_letter_actions
    FOR EACH STATEMENT EXECUTE FUNCTION dead_letter_actions_append_only();

CREATE VIEW dead_letters_open AS
SELECT pipeline, consumer, topic, error_class, field, count(*) AS letters,
       min(created_at) AS first_at, max(created_at) AS last_at, min(error) AS example
FROM dead_letters WHERE status IN ('open', 'sending') GROUP BY 1, 2, 3, 4, 5;
COMMENT ON VIEW dead_letters_open IS 'Dead letters that nobody has redriven or discarded, by cause';
