-- Card fraud: the ledger of decisions, what analysts ask of it, and the first rules.

SELECT millrace_time_table('card_ledger', 'occurred_at', interval '7 days', $ddl$
    event_id          text        NOT NULL,
    tenant            text        NOT NULL,
    occurred_at       timestamptz NOT NULL,
    card_id           text        NOT NULL,
    amount_minor      bigint      NOT NULL CHECK (amount_minor >= 0),
    currency          text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    customer_id       text,
    merchant_id       text,
    terminal_id       text,
    country           text,
    home_country      text,
    mcc               text,
    channel           text        NOT NULL CHECK (channel IN ('UNKNOWN', 'PRESENT', 'ONLINE')),
    count_1h          bigint      NOT NULL CHECK (count_1h >= 1),
    sum_1h_minor      bigint      NOT NULL CHECK (sum_1h_minor >= amount_minor),
    count_24h         bigint      NOT NULL CHECK (count_24h >= count_1h),
    sum_24h_minor     bigint      NOT NULL CHECK (sum_24h_minor >= sum_1h_minor),
    count_7d          bigint      NOT NULL CHECK (count_7d >= count_24h),
    sum_7d_minor      bigint      NOT NULL CHECK (sum_7d_minor >= sum_24h_minor),
    since_previous_ms bigint      CHECK (since_previous_ms >= 0),
    late_ms           bigint      NOT NULL CHECK (late_ms >= 0),
    windows_complete  boolean     NOT NULL,
    model_risk        double precision NOT NULL CHECK (model_risk BETWEEN 0 AND 1),
    risk              double precision NOT NULL CHECK (risk BETWEEN 0 AND 1),
    decision          text        NOT NULL CHECK (decision IN ('APPROVE', 'REVIEW', 'DECLINE')),
    reasons           text[]      NOT NULL,
    fired_rules       text[]      NOT NULL,
    rules_version     integer     NOT NULL,
    model_version     integer     NOT NULL,
    code_version      integer     NOT NULL,
    source_partition  integer     NOT NULL,
    source_offset     bigint      NOT NULL,
    PRIMARY KEY (occurred_at, tenant, event_id)
$ddl$);
CREATE INDEX card_ledger_by_event ON card_ledger (event_id);
CREATE INDEX card_ledger_by_card ON card_ledger (card_id, occurred_at DESC, event_id DESC);

COMMENT ON TABLE card_ledger IS 'Every decision on a card transaction, once, with all that it was decided by. Append-only: nobody changes or deletes a row, see card_ledger_append_only()';
COMMENT ON COLUMN card_ledger.event_id IS 'The transaction''s id, given by its producer';
COMMENT ON COLUMN card_ledger.tenant IS 'Whose card it is';
COMMENT ON COLUMN card_ledger.occurred_at IS 'When the card was used (event time)';
COMMENT ON COLUMN card_ledger.card_id IS 'The card (a token, never the card number)';
COMMENT ON COLUMN card_ledger.amount_minor IS 'Amount in minor units of the currency';
COMMENT ON COLUMN card_ledger.currency IS 'The card''s billing currency, ISO 4217';
COMMENT ON COLUMN card_ledger.customer_id IS 'Whom the card belongs to';
COMMENT ON COLUMN card_ledger.merchant_id IS 'Who is paid';
COMMENT ON COLUMN card_ledger.terminal_id IS 'Where the card was used';
COMMENT ON COLUMN card_ledger.country IS 'Country of the merchant, ISO 3166-1 alpha-2';
COMMENT ON COLUMN card_ledger.home_country IS 'Country of the card''s holder, ISO 3166-1 alpha-2';
COMMENT ON COLUMN card_ledger.mcc IS 'Merchant category code, ISO 18245';
COMMENT ON COLUMN card_ledger.channel IS 'PRESENT at a terminal, ONLINE, or UNKNOWN';
COMMENT ON COLUMN card_ledger.count_1h IS 'Transactions of the card in the hour up to and including this one, by event time, as known when it was decided';
COMMENT ON COLUMN card_ledger.sum_1h_minor IS 'Their amounts, summed, in minor units';
COMMENT ON COLUMN card_ledger.count_24h IS 'As count_1h, over 24 hours';
COMMENT ON COLUMN card_ledger.sum_24h_minor IS 'As sum_1h_minor, over 24 hours';
COMMENT ON COLUMN card_ledger.count_7d IS 'As count_1h, over 7 days';
COMMENT ON COLUMN card_ledger.sum_7d_minor IS 'As sum_1h_minor, over 7 days';
COMMENT ON COLUMN card_ledger.since_previous_ms IS 'Milliseconds since the card''s previous transaction within 7 days; null where none was known';
COMMENT ON COLUMN card_ledger.late_ms IS 'How far the transaction lay behind the card''s newest one when it was decided; 0 in order';
COMMENT ON COLUMN card_ledger.windows_complete IS 'False where the windows may lack transactions that had been forgotten already (more than a day late, or the card was idle for 8 days)';
COMMENT ON COLUMN card_ledger.model_risk IS 'Risk by the anomaly model alone: 0.25 for each factor of ten by which the transaction is rare; 0 without a model';
COMMENT ON COLUMN card_ledger.risk IS '1 - (1 - model_risk) * product of (1 - score) over the rules that fired';
COMMENT ON COLUMN card_ledger.decision IS 'APPROVE, REVIEW or DECLINE';
COMMENT ON COLUMN card_ledger.reasons IS 'Why, one sentence each';
COMMENT ON COLUMN card_ledger.fired_rules IS 'Ids of the rules that fired; their text is in versions (pipeline fraud, kind rules)';
COMMENT ON COLUMN card_ledger.rules_version IS 'Version of the rules that decided; 0 without rules';
COMMENT ON COLUMN card_ledger.model_version IS 'Version of the model that decided; 0 without a model';
COMMENT ON COLUMN card_ledger.code_version IS 'Version of the processor''s code';
COMMENT ON COLUMN card_ledger.source_partition IS 'Partition of card-decisions the row came from';
COMMENT ON COLUMN card_ledger.source_offset IS 'Its offset there';

-- Append-only. Grants alone do not hold the owner, whose role the sink uses; the trigger does. Erasure
-- (a court's order, a data subject's request) is a superuser's, who says so:
--     BEGIN; SET LOCAL millrace.erasure = 'request 4711'; DELETE FROM card_ledger WHERE ...; COMMIT;
-- Dropping a whole week's partition is retention, not a change of the ledger, and stays the owner's.
CREATE FUNCTION card_ledger_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('is_superuser') = 'on' AND coalesce(current_setting('millrace.erasure', true), '') <> '' THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    RAISE EXCEPTION 'card_ledger is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'A superuser may erase rows after SET LOCAL millrace.erasure = ''<reason>''.';
END $$;
COMMENT ON FUNCTION card_ledger_append_only IS 'Refuses UPDATE, DELETE and TRUNCATE of the ledger for everybody; a superuser may erase after SET LOCAL millrace.erasure = ''<reason>''';
-- For each row, as only such triggers are passed on to partitions: a partition named directly is held too.
CREATE TRIGGER card_ledger_append_only BEFORE UPDATE OR DELETE ON card_ledger
    FOR EACH ROW EXECUTE FUNCTION card_ledger_append_only();
CREATE TRIGGER card_ledger_no_truncate BEFORE TRUNCATE ON card_ledger
    FOR EACH STATEMENT EXECUTE FUNCTION card_ledger_append_only();
REVOKE UPDATE, DELETE, TRUNCATE ON card_ledger FROM PUBLIC, CURRENT_USER;

CREATE VIEW card_activity_daily AS
SELECT tenant, card_id, (occurred_at AT TIME ZONE 'UTC')::date AS day, currency,
       count(*)                                       AS transactions,
       sum(amount_minor)::bigint                      AS amount_minor,
       count(*) FILTER (WHERE decision = 'REVIEW')    AS reviewed,
       count(*) FILTER (WHERE decision = 'DECLINE')   AS declined,
       count(DISTINCT country)                        AS countries,
       max(risk)                                      AS risk_max
FROM card_ledger GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW card_activity_daily IS 'What each card did on each day (UTC) and how it was judged';
COMMENT ON COLUMN card_activity_daily.amount_minor IS 'All transactions of the day, also the declined ones';
COMMENT ON COLUMN card_activity_daily.countries IS 'How many countries the card was used in, as far as known';
COMMENT ON COLUMN card_activity_daily.risk_max IS 'The highest risk of the day';

CREATE VIEW decisions_by_rule AS
SELECT tenant, (occurred_at AT TIME ZONE 'UTC')::date AS day, rule_id, rules_version, decision, currency,
       count(*) AS transactions, sum(amount_minor)::bigint AS amount_minor
FROM card_ledger, unnest(fired_rules) AS rule_id GROUP BY 1, 2, 3, 4, 5, 6;
COMMENT ON VIEW decisions_by_rule IS 'How often each rule fired on each day (UTC), and what was decided; a transaction counts for each of its rules';
COMMENT ON COLUMN decisions_by_rule.rule_id IS 'The rule''s id; its text is in versions (pipeline fraud, kind rules, version rules_version)';

CREATE VIEW decisions_daily AS
SELECT tenant, (occurred_at AT TIME ZONE 'UTC')::date AS day, currency, decision,
       count(*) AS transactions, sum(amount_minor)::bigint AS amount_minor,
       count(*) FILTER (WHERE late_ms > 0) AS late, count(*) FILTER (WHERE NOT windows_complete) AS windows_incomplete
FROM card_ledger GROUP BY 1, 2, 3, 4;
COMMENT ON VIEW decisions_daily IS 'Transactions and value by decision and day (UTC)';
COMMENT ON COLUMN decisions_daily.late IS 'How many came behind a newer transaction of their card';
COMMENT ON COLUMN decisions_daily.windows_incomplete IS 'How many were decided on windows that may lack something';

INSERT INTO versions (pipeline, kind, version, body, author) VALUES ('fraud', 'rules', 1, $rules$[
  {"id": "velocity-1h", "description": "Many transactions within an hour",
   "when": [{"feature": "count_1h", "op": ">=", "value": 6}],
   "action": "review", "score": 0.5, "reason": "Six or more transactions within an hour"},
  {"id": "burst-1h", "description": "A burst that no holder makes by hand",
   "when": [{"feature": "count_1h", "op": ">=", "value": 12}],
   "action": "decline", "score": 0.9, "reason": "Twelve or more transactions within an hour"},
  {"id": "spend-24h", "description": "An unusual sum within a day",
   "when": [{"feature": "sum_24h_minor", "op": ">=", "value": 300000}, {"feature": "count_24h", "op": ">=", "value": 3}],
   "action": "review", "score": 0.5, "reason": "More than 3,000 spent within 24 hours"},
  {"id": "amount-jump", "description": "Far above what the card usually pays",
   "when": [{"feature": "count_7d", "op": ">=", "value": 4}, {"feature": "amount_pct_of_mean_7d", "op": ">=", "value": 800},
            {"feature": "amount_minor", "op": ">=", "value": 20000}],
   "action": "review", "score": 0.55, "reason": "At least eight times the card's mean amount of the last 7 days"},
  {"id": "foreign-quick", "description": "Abroad, and again within an hour",
   "when": [{"feature": "foreign", "op": "==", "value": true}, {"feature": "channel", "op": "==", "value": "PRESENT"},
            {"feature": "count_1h", "op": ">=", "value": 3}],
   "action": "decline", "score": 0.8, "reason": "Third use within an hour, at a terminal abroad"},
  {"id": "night-amount", "description": "A high amount at night (UTC)",
   "when": [{"feature": "hour_of_day", "op": "<", "value": 5}, {"feature": "amount_minor", "op": ">=", "value": 30000}],
   "action": "review", "score": 0.4, "reason": "A high amount between midnight and five"},
  {"id": "risky-mcc", "description": "Categories that stolen cards are turned into money with",
   "when": [{"feature": "mcc", "op": "in", "value": ["4829", "6051", "6211", "7995", "5967"]},
            {"feature": "amount_minor", "op": ">=", "value": 10000}],
   "action": "review", "score": 0.45, "reason": "A risky kind of merchant and more than 100"}
]$rules$, 'millrace');
