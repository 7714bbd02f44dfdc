-- Fraud rules as text, their way into force, lists, rates, and what decisions tell of rules on trial. They are the
-- instance's, of no tenant: whoever runs it reads them (millrace_reader), and no role that serves tenants does.

ALTER TABLE card_ledger
    ADD COLUMN rule_windows    bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN capped_rules    text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN shadow_rules    text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN shadow_decision text     CHECK (shadow_decision IN ('APPROVE', 'REVIEW', 'DECLINE'));

COMMENT ON COLUMN card_ledger.rule_windows IS 'Windows that rules name beyond those above, in the order of table rule_windows';
COMMENT ON COLUMN card_ledger.fired_rules IS 'Rules that fired, as id@version; their text is in table rules (of older ones, by id alone, in versions)';
COMMENT ON COLUMN card_ledger.capped_rules IS 'Those of them that had used up their cap and asked for review instead of declining';
COMMENT ON COLUMN card_ledger.shadow_rules IS 'Rules that held without effect: in shadow, of a canary outside its cards, or what a canary stands in for on its own';
COMMENT ON COLUMN card_ledger.shadow_decision IS 'The decision were all rules in shadow and canary active; null where they would change nothing and none of them held';

COMMENT ON COLUMN decisions_by_rule.rule_id IS 'The rule as id@version; its text is in table rules (of older ones, by id alone, in versions)';

CREATE VIEW shadows_by_rule WITH (security_invoker = true) AS
SELECT tenant, (occurred_at AT TIME ZONE 'UTC')::date AS day, rule_id, rules_version, decision,
       coalesce(shadow_decision, decision) AS shadow_decision, currency,
       count(*) AS transactions, sum(amount_minor)::bigint AS amount_minor
FROM card_ledger, unnest(shadow_rules) AS rule_id GROUP BY 1, 2, 3, 4, 5, 6, 7;
COMMENT ON VIEW shadows_by_rule IS 'How often each rule held without effect on each day (UTC), what was decided, and what would have been were all rules on trial active';

CREATE TABLE rules (
    rule_id     text        NOT NULL CHECK (rule_id ~ '^[a-z][a-z0-9]*(-[a-z0-9]+)*$' AND length(rule_id) <= 64),
    version     integer     NOT NULL CHECK (version > 0),
    place       integer     NOT NULL CHECK (place > 0),
    text        text        NOT NULL,
    sha256      text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    description text        NOT NULL,
    author      text        NOT NULL CHECK (author <> ''),
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rule_id, version),
    UNIQUE (rule_id, sha256)
);
COMMENT ON TABLE rules IS 'Versions of fraud rules; none is ever changed';
COMMENT ON COLUMN rules.place IS 'The rule''s place among the rules, the same for all its versions; reasons come in this order';
COMMENT ON COLUMN rules.text IS 'The rule in its normal form';
COMMENT ON COLUMN rules.sha256 IS 'Of ''millrace rule 1'', a line feed, and the text';

CREATE TABLE rule_events (
    event_id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule_id       text        NOT NULL,
    version       integer     NOT NULL,
    stage         text        NOT NULL CHECK (stage IN ('draft', 'backtested', 'approved', 'shadow', 'canary', 'active', 'retired')),
    share         double precision NOT NULL DEFAULT 1 CHECK (share BETWEEN 0 AND 1),
    cap           double precision CHECK (cap BETWEEN 0 AND 1),
    actor         text        NOT NULL CHECK (actor <> ''),
    note          text        NOT NULL DEFAULT '',
    at            timestamptz NOT NULL DEFAULT now(),
    rules_version integer,
    FOREIGN KEY (rule_id, version) REFERENCES rules
);
CREATE INDEX rule_events_by_rule ON rule_events (rule_id, version, event_id DESC);
COMMENT ON TABLE rule_events IS 'Who took which version of a rule to which stage, when; the last one says where it stands';
COMMENT ON COLUMN rule_events.share IS 'Of the cards, on which a canary decides';
COMMENT ON COLUMN rule_events.cap IS 'Which share of a partition''s transactions of a day the rule may decline; null: any';
COMMENT ON COLUMN rule_events.rules_version IS 'The version of kind rules that was published by it; null where nothing changed in force';

CREATE TABLE rule_backtests (
    backtest_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule_id     text        NOT NULL,
    version     integer     NOT NULL,
    since       timestamptz NOT NULL,
    until       timestamptz NOT NULL,
    report      jsonb       NOT NULL,
    actor       text        NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (rule_id, version) REFERENCES rules
);
CREATE INDEX rule_backtests_by_rule ON rule_backtests (rule_id, version, backtest_id DESC);
COMMENT ON TABLE rule_backtests IS 'What a rule would have done with the transactions from since up to until';

CREATE TABLE rule_lists (
    list_name  text        NOT NULL CHECK (list_name ~ '^[a-z][a-z0-9]*(-[a-z0-9]+)*$' AND length(list_name) <= 64),
    value      text        NOT NULL CHECK (length(value) BETWEEN 1 AND 128),
    expires_at timestamptz,
    actor      text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (list_name, value)
);
COMMENT ON TABLE rule_lists IS 'Entries of the lists that rules ask; what they were in a version of the rules stands in versions';
COMMENT ON COLUMN rule_lists.expires_at IS 'The entry counts for transactions before this event time; null: for all';

CREATE TABLE rule_rates (
    rates_id bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stated   text        NOT NULL CHECK (stated ~ '^[A-Z]{3}$'),
    as_of    date        NOT NULL,
    rates    jsonb       NOT NULL,
    actor    text        NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rule_rates IS 'The currency that amounts in rules are in, and what one of it is worth in others; the last row counts';

CREATE TABLE rule_windows (
    place  integer     PRIMARY KEY CHECK (place BETWEEN 1 AND 16),
    name   text        NOT NULL UNIQUE,
    actor  text        NOT NULL,
    at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rule_windows IS 'Windows that rules name beyond those of every decision: card_ledger.rule_windows[place]';

INSERT INTO rule_rates (stated, as_of, rates, actor) VALUES ('EUR', '2025-06-30', $rates$
  {"USD": "1.17", "GBP": "0.856", "CHF": "0.935", "JPY": "169", "SEK": "11.1", "NOK": "11.8", "DKK": "7.46",
   "PLN": "4.24", "CZK": "24.7", "CAD": "1.60", "AUD": "1.79"}
$rates$, 'millrace');

INSERT INTO rule_lists (list_name, value, actor)
SELECT 'risky', unnest('{4829,6051,6211,7995,5967}'::text[]), 'millrace';

-- The first rules, in the language. Amounts are in EUR, whatever the card is billed in.
INSERT INTO rules (rule_id, version, place, description, text, author, sha256)
SELECT rule_id, 1, place, description, text, 'millrace',
       encode(sha256(convert_to(E'millrace rule 1\n' || text, 'UTF8')), 'hex')
FROM (VALUES
  (1, 'velocity-1h', 'Many transactions within an hour',
   $$WHEN count(card, 1h) >= 6 THEN review SCORE +0.5 REASON 'Six or more transactions within an hour'$$),
  (2, 'burst-1h', 'A burst that no holder makes by hand',
   $$WHEN count(card, 1h) >= 12 THEN decline SCORE +0.9 REASON 'Twelve or more transactions within an hour'$$),
  (3, 'spend-24h', 'An unusual sum within a day',
   $$WHEN sum(card, 24h) >= 3000 AND count(card, 24h) >= 3 THEN review SCORE +0.5 REASON '3,000 or more spent within 24 hours'$$),
  (4, 'amount-jump', 'Far above what the card usually pays',
   $$WHEN count(card, 7d) >= 4 AND amount >= 8 * usual(card, 7d) AND amount >= 200 THEN review SCORE +0.55 REASON 'At least eight times the card''s mean amount of the last 7 days'$$),
  (5, 'foreign-quick', 'Abroad, and again within an hour',
   $$WHEN foreign AND channel = 'PRESENT' AND count(card, 1h) >= 3 THEN decline SCORE +0.8 REASON 'Third use within an hour, at a terminal abroad'$$),
  (6, 'night-amount', 'A high amount at night (UTC)',
   $$WHEN hour < 5 AND amount >= 300 THEN review SCORE +0.4 REASON 'A high amount between midnight and five'$$),
  (7, 'risky-mcc', 'Categories that stolen cards are turned into money with',
   $$WHEN mcc IN list('risky') AND amount >= 100 THEN review SCORE +0.45 REASON 'A risky kind of merchant and more than 100'$$)
) AS first (place, rule_id, description, text);

INSERT INTO rule_events (rule_id, version, stage, actor, note)
SELECT rule_id, 1, stage, CASE stage WHEN 'approved' THEN 'release' ELSE 'millrace' END, 'came with the platform'
FROM (VALUES (1, 'draft'), (2, 'backtested'), (3, 'approved')) AS steps (n, stage), rules
ORDER BY place, n;

-- Where somebody has published rules of their own, those stay in force and the first ones wait approved.
WITH published AS (
    INSERT INTO versions (pipeline, kind, version, body, author)
    SELECT 'fraud', 'rules', 2, jsonb_build_object(
        'language', 1,
        'currency', (SELECT jsonb_build_object('stated', stated, 'as_of', as_of, 'rates', rates) FROM rule_rates),
        'lists', (SELECT jsonb_object_agg(list_name, entries) FROM (
            SELECT list_name, jsonb_agg(jsonb_build_array(value, NULL) ORDER BY value COLLATE "C") AS entries
            FROM rule_lists GROUP BY list_name) AS l),
        'windows', '[]'::jsonb,
        'rules', (SELECT jsonb_agg(jsonb_build_object('id', rule_id, 'version', version, 'text', text, 'sha256', sha256,
            'stage', 'active', 'share', 1.0, 'cap', NULL) ORDER BY place) FROM rules)
    ), 'millrace'
    WHERE (SELECT max(version) FROM versions WHERE pipeline = 'fraud' AND kind = 'rules') = 1
    RETURNING version
)
INSERT INTO rule_events (rule_id, version, stage, actor, note, rules_version)
SELECT rule_id, rules.version, 'active', 'millrace', 'came with the platform', published.version
FROM rules, published ORDER BY place;

-- What the log says may not be changed, and two people stand behind each rule in force: held here, whoever writes.
CREATE FUNCTION rules_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Add a new version of the rule.';
END $$;
COMMENT ON FUNCTION rules_append_only IS 'Refuses UPDATE, DELETE and TRUNCATE of rules and of what became of them';
CREATE TRIGGER rules_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON rules
    FOR EACH STATEMENT EXECUTE FUNCTION rules_append_only();
CREATE TRIGGER rule_backtests_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON rule_backtests
    FOR EACH STATEMENT EXECUTE FUNCTION rules_append_only();
CREATE TRIGGER rule_events_append_only BEFORE DELETE OR TRUNCATE ON rule_events
    FOR EACH STATEMENT EXECUTE FUNCTION rules_append_only();

CREATE FUNCTION rule_events_published_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.rules_version IS NOT NULL OR to_jsonb(NEW) - 'rules_version' <> to_jsonb(OLD) - 'rules_version' THEN
        RAISE EXCEPTION 'rule_events is append-only: UPDATE refused' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION rule_events_published_once IS 'An event changes once: it gets the number of the version that was published by it';
CREATE TRIGGER rule_events_published_once BEFORE UPDATE ON rule_events
    FOR EACH ROW EXECUTE FUNCTION rule_events_published_once();

CREATE FUNCTION rule_events_two_people() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.stage = 'approved' AND NEW.actor = (
        SELECT author FROM rules WHERE rule_id = NEW.rule_id AND version = NEW.version) THEN
        RAISE EXCEPTION '%@% was written by %; somebody else must approve it', NEW.rule_id, NEW.version, NEW.actor
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.stage IN ('shadow', 'canary', 'active') AND NOT EXISTS (
        SELECT FROM rule_events
        WHERE rule_id = NEW.rule_id AND version = NEW.version AND stage = 'approved') THEN
        RAISE EXCEPTION '%@% was not approved and cannot be %', NEW.rule_id, NEW.version, NEW.stage
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION rule_events_two_people IS 'No rule is in force that was not approved by somebody other than its author';
CREATE TRIGGER rule_events_two_people BEFORE INSERT ON rule_events
    FOR EACH ROW EXECUTE FUNCTION rule_events_two_people();
